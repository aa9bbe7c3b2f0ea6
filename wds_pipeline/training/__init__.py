"""What a training job imports: opening a published version, and reading it. No Dagster, no torch."""

from wds_pipeline.training.dataset import Dataset, open_dataset

__all__ = ["Dataset", "open_dataset"]
