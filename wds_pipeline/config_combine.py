"""What the `combine:` of a dataset's YAML file may say."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from wds_pipeline.config_storage import check_no_password
from wds_pipeline.config_values import Model


class CombineConfig(Model):
    """One memory-mapped folder of a token dataset; `combine: {}` will do."""

    url: str = ""
    """A folder of this machine, in which each split has one; a newer version takes the place of the one
    before, and only what changed is copied. By default `combined/` beside the shards, a folder a version."""
    splits: list[str] | None = None
    """Only these splits; by default all."""
    duplicates: Literal["drop", "refuse"] = "drop"
    """What to do with rows that have the same key."""
    allow_missing: bool = False
    """Go on without shards that are missing or damaged: their rows get idx -1 and write_flag 0."""

    automatic: bool = False
    """Under Dagster's daemon, each new version is combined by itself."""

    @field_validator("url")
    @classmethod
    def _folder(cls, url: str) -> str:
        check_no_password(url)
        if "://" in url and not url.startswith("file://"):
            raise ValueError("memory maps need a folder of this machine, not a store")
        return url.removeprefix("file://")
