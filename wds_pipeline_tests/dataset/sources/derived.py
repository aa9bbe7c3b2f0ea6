"""Datasets made of others, for the tests."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from wds_pipeline.config import DatasetConfig, RetentionConfig
from wds_pipeline.dataset import retain
from wds_pipeline.dataset.build import build
from wds_pipeline_tests.conftest import TINY_SHARD, Project, Sample

SPLIT = {"train": 0.8, "val": 0.2}


class Derived(Project):
    """A dataset whose source is not a folder."""

    def config(self, **more: Any) -> DatasetConfig:
        values: dict[str, Any] = {
            "name": "derived",
            "destination": {"url": str(self.destination)},
            "samples": {"max_quarantined": 1},
            "shards": {"max_bytes": TINY_SHARD},
            "compute": {"kind": "threads", "workers": 1},
        }
        for key, value in {**self.options, **more}.items():
            merge = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if merge else value
        if values["shards"].get("layout") == "source":
            del values["shards"]["max_bytes"]
        return DatasetConfig.model_validate(values)


def upstream(folder: Path, count: int = 30, **options: Any) -> Project:
    """A published dataset of raw files, with two splits."""
    (folder / "raw").mkdir(parents=True)
    project = Project(folder, {"split": SPLIT, **options})
    if count:
        project.add(0, count)
        project.build()
    return project


def of_source(folder: Path, source: dict[str, Any], **options: Any) -> Derived:
    """A dataset with a source of any kind."""
    return Derived(folder, {**options, "source": source})


def derived(
    other: Project, folder: Path, source: dict[str, Any] | None = None, **options: Any
) -> Derived:
    """A dataset of what another one publishes."""
    values = {"url": str(other.destination), **(source or {})}
    return of_source(folder, {"dataset": values}, **options)


def places(project: Project) -> dict[str, tuple[str, int]]:
    """Key → split and slot, of the newest version, by its shards."""
    return {
        key: (shard.split, shard.slot)
        for shard in project.latest().shards
        for key in keys_of(project, shard.path)
    }


def keys_of(project: Project, path: str) -> list[str]:
    """The keys of a shard, in the tar's order."""
    import tarfile

    with tarfile.open(project.destination / path) as tar:
        folders = (name.rpartition("/") for name in tar.getnames())
        return list(dict.fromkeys(f"{a}{b}{c.partition('.')[0]}" for a, b, c in folders))


def members(samples: Sample) -> Counter[tuple[str, str, bytes]]:
    """Samples as a multiset of what is in them."""
    return Counter(
        (key, field, data) for key, fields in samples.items() for field, data in fields.items()
    )


def expire(project: Project) -> None:
    """Removes all versions but the newest, and what only they need, at once."""
    time.sleep(0.01)  # a version's age is more than none
    config = RetentionConfig(versions=1, days=0)
    retain.collect(project.storage, retain.find_garbage(project.storage, config, 0), 0)


def rebuild(project: Project) -> list[str]:
    """Builds; the partitions that were packed."""
    result = build(project.config())
    assert result.packed == len(result.causes)
    return sorted(result.causes)
