"""A stored report says what the report said; what it speaks of may be gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import seal, stored_report, version
from wds_pipeline.dataset.audit import audit
from wds_pipeline.dataset.settle import rules
from wds_pipeline.errors import VersionError
from wds_pipeline_tests.conftest import Project, png


@pytest.fixture
def published(project: Project) -> Project:
    project.options["split"] = {"train": 0.7, "val": 0.3}
    project.add(0, 30)
    for number in range(10, 20):
        project.write(f"a/{number:04d}.png", png(0))  # duplicates and leaks
    project.write("b/0031.txt", "lonely")
    project.build()
    return project


def path(project: Project) -> Path:
    return project.destination / version.folder(1) / version.REPORT_JSON


def test_the_same_as_the_report(published: Project) -> None:
    manifest, config = published.latest(), published.config()
    with open_pool(config.compute) as pool:
        made = audit(config, published.storage, manifest, rules(config), pool).report
    found, expected = stored_report.read(published.storage, manifest), stored_report.of_report(made)
    assert found.counts == expected.counts != {}
    assert found.findings == expected.findings
    assert found.groups == expected.groups
    assert found.groups[0].code == "leak"
    assert found.level == "decode"
    assert found.read_members
    for name in ("in", "published", "quarantined"):
        assert found.samples[name] == expected.samples[name]
    assert found.total("warning") == manifest.verification["warnings"]


@pytest.mark.parametrize(
    "damage", [{"findings": 3}, {"level": "guess"}, {"same_content": [{}]}, {"samples": {"in": 1}}]
)
def test_damaged(published: Project, damage: dict[str, Any]) -> None:
    values = json.loads(path(published).read_text())
    path(published).write_text(json.dumps(values | damage))
    with pytest.raises(VersionError, match=r"report\.json: not readable as a report .* restore"):
        stored_report.read(published.storage, published.latest())


def test_not_even_json(published: Project) -> None:
    path(published).write_bytes(b"\xff{")
    with pytest.raises(VersionError, match="not readable as a report"):
        stored_report.read(published.storage, published.latest())


def test_a_newer_format(published: Project) -> None:
    values = json.loads(path(published).read_text())
    path(published).write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(VersionError, match="found format version 2"):
        stored_report.read(published.storage, published.latest())


def test_missing_shards(published: Project) -> None:
    manifest = published.latest()
    assert stored_report.missing(published.storage, manifest) == []
    first, second, third = manifest.shards[:3]
    (published.destination / first.path).unlink()
    with (published.destination / second.path).open("ab") as file:
        file.write(b"more")
    (published.destination / seal.path(third.name, seal.MEMBERS)).unlink()
    (published.destination / seal.path(third.name, seal.SEAL)).unlink()
    found = stored_report.missing(published.storage, manifest)
    assert [(each.code, each.shard) for each in found] == [
        ("missing_tar", first.name),
        ("wrong_size", second.name),
        ("missing_index", third.name),
        ("missing_seal", third.name),
    ]
    assert f"expected {second.bytes:,}" in found[1].message
