"""Published datasets that many tests only read, made once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from wds_pipeline.dataset.version import Manifest
from wds_pipeline_tests.conftest import Project, group_members, png, read_tar

FIELDS = {"png": ["png"], "txt": ["txt"], "json": ["json"], "seg.png": ["seg.png"]}
OPTIONS = {
    "samples": {"required": ["png", "txt"], "fields": FIELDS},
    "split": {"train": 0.7, "val": 0.3},
}


def write_samples(project: Project, numbers: Iterable[int]) -> None:
    """Pictures of several sizes with captions; some also with json, some with a second picture."""
    for number in numbers:
        key = f"{'cats' if number % 3 else 'dogs'}/{number:04d}"
        project.write(f"{key}.png", png(number))
        project.write(f"{key}.txt", f"caption of {key}".ljust(20 + number % 7, "."))
        if number % 2:
            project.write(f"{key}.json", json.dumps({"number": number, "pad": "x" * (number % 40)}))
        if number % 7 < 2:
            project.write(f"{key}.seg.png", png(1000 + number * 7))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """120 samples in two splits of several shards, decoded by verification. Not to be changed."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "raw").mkdir()
    project = Project(folder, OPTIONS)
    write_samples(project, range(120))
    result = project.build()
    assert result.status == "published" and result.manifest is not None
    assert all(split.shards > 2 for split in result.manifest.splits.values())
    return project


def stored(
    project: Project, split: str | None = None, manifest: Manifest | None = None
) -> list[tuple[str, dict[str, bytes]]]:
    """(key, fields) of all samples in stored order, by tarfile."""
    found: list[tuple[str, dict[str, bytes]]] = []
    for shard in (manifest or project.latest()).of_split(split):
        found += group_members(read_tar(project.destination / shard.path)).items()
    return found


def plain(sample: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """A sample as `stored` has it."""
    fields = {name: value for name, value in sample.items() if not name.startswith("__")}
    assert all(type(value) is bytes for value in fields.values())
    return sample["__key__"], fields
