"""What a training job imports: opening a published version, and reading it. No Dagster, no torch."""

from wds_pipeline.training.cache import CacheConfig
from wds_pipeline.training.dataset import Dataset, open_dataset
from wds_pipeline.training.decode import Decoder
from wds_pipeline.training.decode_image import ImageSpec
from wds_pipeline.training.mix import Mixture, mix
from wds_pipeline.training.order import Shuffle
from wds_pipeline.training.overlay_shards import join_shards

__all__ = [
    "CacheConfig",
    "Dataset",
    "Decoder",
    "ImageSpec",
    "Mixture",
    "Shuffle",
    "join_shards",
    "mix",
    "open_dataset",
]
