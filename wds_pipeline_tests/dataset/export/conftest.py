"""A published version of two splits, and its samples' bytes by key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wds_pipeline_tests.conftest import Project, Sample

SPLIT = {"train": 0.6, "val": 0.4}


@pytest.fixture
def publish(project: Project) -> Callable[..., Path]:
    """Builds 40 samples with an export; returns the export's folder."""

    def build(name: str, **more: object) -> Path:
        if not any(project.source.iterdir()):
            project.add(0, 40)
        project.options = {"split": SPLIT, **more}
        result = project.build(exports=[name])
        return project.destination / f"versions/{result.manifest.version:08d}/exports/{name}"

    return build


@pytest.fixture
def by_split(project: Project) -> Callable[[], dict[str, Sample]]:
    """Split → key → field → bytes, of the newest version."""

    def read() -> dict[str, Sample]:
        manifest = project.latest()
        found = {}
        for split in manifest.splits:
            part = manifest.model_copy()
            part.__dict__["shards"] = manifest.of_split(split)
            found[split] = project.published(part)
        return found

    return read
