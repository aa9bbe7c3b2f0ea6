"""What the `overlay:` of a dataset's YAML file may say."""

from __future__ import annotations

from pydantic import field_validator

from wds_pipeline.config_source import DatasetSource
from wds_pipeline.config_values import Model, Share


class OverlayConfig(Model):
    """New fields for the samples of another dataset, whose shards stay as they are."""

    base: DatasetSource
    """The other dataset: the name of one of this folder, or `{url: …}`, its destination; `version` pins one.
    Its keys decide in which split and shard, and where in that, each sample here is."""
    max_missing: Share = 1.0
    """The build fails when a larger share of the base's samples has nothing in this dataset."""

    @field_validator("base")
    @classmethod
    def _whole(cls, base: DatasetSource) -> DatasetSource:
        given = [name for name in ("splits", "where", "fields") if getattr(base, name) is not None]
        if given:
            raise ValueError(
                f"{given[0]}: an overlay's base is the whole dataset; `source` says what is made of it"
            )
        return base
