"""Per-sample functions: what a dataset's `transforms:` name. Each is usable alone."""

from wds_pipeline.transforms.api import Context, Rejected, Sample

__all__ = ["Context", "Rejected", "Sample"]
