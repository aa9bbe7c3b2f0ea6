"""The whole pipeline from store to store: the same files make the same shards, wherever they lie."""

from __future__ import annotations

import json
import tarfile
from typing import Any

import pytest

from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import build
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.stores.backends import NAMES, WRITABLE, Backend, Backends
from wds_pipeline_tests.stores.conftest import prepare

# Each store once as source and once as destination, and some far apart.
PAIRS = [
    *((source, "local") for source in NAMES),
    *(("local", destination) for destination in WRITABLE if destination != "local"),
    ("http", "gs"),
    ("s3-moto", "az"),
    ("az", "s3-rclone"),
    ("gs", "sftp"),
    ("memory", "s3-moto"),
    ("sftp", "memory"),
]
SAMPLES = 13
FILES: dict[str, bytes] = {}
for number in range(SAMPLES):
    key = f"a/{number:04d}" if number % 3 else f"b c/ü%{number:04d}"
    FILES[f"{key}.png"] = png(number)
    FILES[f"{key}.txt"] = f"caption {number}".encode()
    FILES[f"{key}.json"] = json.dumps({"number": number}).encode()


def config(project: Project, source: Backend, destination: Backend) -> Any:
    ends = {}
    for name, backend in (("source", source), ("destination", destination)):
        storage = {"retry_seconds": 5, **backend.options}
        ends[name] = {"url": backend.url, "storage": storage}
    if not destination.conditional:
        ends["destination"]["commit"] = "single_writer"
    return project.config(**ends)


def digests(backend: Backend) -> list[tuple[str, str, int]]:
    manifest = version.latest(backend.open())
    assert manifest is not None
    return sorted((shard.split, shard.digest, shard.samples) for shard in manifest.shards)


@pytest.fixture(scope="module")
def wanted(
    backends: Backends, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, str, int]]:
    """The shards' digests from a folder into a folder."""
    source, destination = backends.get("local"), backends.get("local")
    source.fill(FILES)
    build(config(Project(tmp_path_factory.mktemp("p")), source, destination))
    return digests(destination)


@pytest.mark.parametrize(("source_name", "destination_name"), PAIRS)
def test_from_store_to_store(
    project: Project,
    backends: Backends,
    monkeypatch: pytest.MonkeyPatch,
    wanted: list[tuple[str, str, int]],
    source_name: str,
    destination_name: str,
) -> None:
    source = prepare(backends.get(source_name), monkeypatch)
    destination = prepare(backends.get(destination_name), monkeypatch)
    source.fill(FILES)
    settings = config(project, source, destination)
    first = build(settings)
    assert first.manifest is not None
    assert digests(destination) == wanted
    assert sum(shard.samples for shard in first.manifest.shards) == SAMPLES

    storage = destination.open()
    members = {}
    for shard in first.manifest.shards:
        with storage.open(shard.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert data is not None
                members[member.name] = data.read()
    assert members == FILES

    # Nothing changed: nothing is made. One edit: one more version.
    again = build(settings)
    assert version.list_versions(storage) == [1]
    assert again.manifest is None or again.manifest.version == 1
    changed = b"another caption, longer than it was"
    source.fill({"a/0001.txt": changed})
    build(settings)
    assert version.list_versions(storage) == [1, 2]
    assert len(set(digests(destination)) - set(wanted)) == 1
