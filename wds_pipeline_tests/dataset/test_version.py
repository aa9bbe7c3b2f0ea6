"""Manifests: immutable, read back as written, and clear about what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.dataset import publish, version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import DestinationError, VerificationError, VersionError
from wds_pipeline_tests.conftest import Project


@pytest.fixture
def built(project: Project) -> Project:
    project.add(0, 10)
    project.build()
    return project


def manifest_path(project: Project, number: int = 1) -> Path:
    return project.destination / f"versions/{number:08d}/manifest.json"


def test_read_back(built: Project) -> None:
    manifest = built.latest()
    assert Manifest.model_validate_json(manifest.dump()) == manifest
    assert version.read(built.storage, 1, "small").shards == manifest.shards
    assert version.read(built.storage, 1, "small") == manifest
    assert version.read(built.storage, None, "small") == manifest
    assert version.list_versions(built.storage) == [1]
    assert manifest.total_samples == 10
    assert sum(shard.samples for shard in manifest.of_split("train")) == 10
    assert manifest.of_split(None) == manifest.shards
    with pytest.raises(VersionError, match="version 1 has no split 'test'; it has train"):
        manifest.of_split("test")


def test_versions_that_are_not_there(project: Project) -> None:
    assert version.latest(project.storage) is None
    with pytest.raises(VersionError, match=r"small: .*no version is published; build it first"):
        version.read(project.storage, None, "small")
    project.add(0, 3)
    project.build()
    with pytest.raises(VersionError, match="version 7 is not published; there are 1"):
        version.read(project.storage, 7, "small")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"format_version": 1}']
)
def test_a_damaged_manifest(built: Project, data: bytes) -> None:
    manifest_path(built).write_bytes(data)
    advice = (
        r"versions/00000001/manifest.json: not a readable manifest.*backup, or remove the version"
    )
    with pytest.raises(VersionError, match=advice):
        version.latest(built.storage)
    with pytest.raises(VersionError, match=advice):
        built.build()
    with pytest.raises(VersionError, match=advice):
        version.read(built.storage, 1, "small")


@pytest.mark.parametrize("found", [2, 99, "1", None])
def test_a_manifest_of_a_newer_format(built: Project, found: Any) -> None:
    values = json.loads(manifest_path(built).read_bytes()) | {"format_version": found}
    manifest_path(built).write_text(json.dumps(values))
    message = rf"manifest.json: found format version {found}; this release reads up to 1. Update"
    for work in (lambda: version.latest(built.storage), built.build):
        with pytest.raises(VersionError, match=message):
            work()


def test_fields_of_a_later_release_are_no_obstacle(built: Project) -> None:
    values = json.loads(manifest_path(built).read_bytes()) | {"added_later": [1]}
    manifest_path(built).write_text(json.dumps(values))
    assert version.latest(built.storage)
    assert built.build().status == "unchanged"


def test_the_newest_falls_back_when_its_folder_is_removed(built: Project) -> None:
    built.add(10, 3)
    built.build()
    before = (built.destination / "views/00000002/train-000000.tar").read_bytes()
    manifest_path(built, 2).unlink()
    with pytest.raises(VersionError, match=r"version 2 was published.*remove the version's folder"):
        built.latest()
    shutil.rmtree(manifest_path(built, 2).parent)
    assert built.latest().version == 1
    assert built.build().manifest.version == 3, "who reads version 2 never gets another one"
    assert (built.destination / "views/00000002/train-000000.tar").read_bytes() == before
    assert built.latest().parent == 1
    assert built.published() == built.raw()


@pytest.mark.parametrize("name", [version.LEDGER, version.QUARANTINE])
def test_a_damaged_or_missing_ledger(built: Project, name: str) -> None:
    path = manifest_path(built).with_name(name)
    data = path.read_bytes()
    built.add(10, 3)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match=f"00000001/{name}: damaged .*restore the file"):
        built.build()
    path.unlink()
    with pytest.raises(
        VersionError, match=f"{name}: missing from version 1 of small; restore the file"
    ):
        built.build()
    assert version.list_versions(built.storage) == [1]
    path.write_bytes(data)
    assert built.build().status == "published"


def test_files_are_found_before_and_after_tidying_up(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 10)
    monkeypatch.setattr(publish, "finish", lambda *_: None)
    project.build()
    folder = manifest_path(project).parent
    manifest = project.latest()
    assert not (folder / version.LEDGER).exists()
    before = {n: version.read_file(project.storage, manifest, n) for n in
              (version.LEDGER, version.INVENTORY, version.REPORT_HTML, version.SHARDS)}  # fmt: skip
    shards = manifest.shards
    monkeypatch.undo()
    project.build()
    assert (folder / version.LEDGER).exists()
    assert not list(folder.glob("build-*"))
    assert before == {n: version.read_file(project.storage, manifest, n) for n in before}
    assert project.latest().shards == shards


def test_the_marker(project: Project) -> None:
    storage = project.storage
    assert not version.check_marker(storage, "small")
    version.write_marker(storage, "small")
    assert version.check_marker(storage, "small")
    version.write_marker(storage, "small")
    with pytest.raises(DestinationError, match="holds the dataset 'small'"):
        version.write_marker(storage, "other")
    for data in (b"", b"{}", b"[]", b"\xff"):
        storage.put(version.MARKER, data)
        with pytest.raises(DestinationError, match="not readable as wds_pipeline's"):
            version.check_marker(storage, "small")
    storage.put(version.MARKER, b'{"dataset": "small", "format_version": 2}')
    with pytest.raises(VersionError, match=r"found format version 2.*Update"):
        version.check_marker(storage, "small")
