"""The manifest stays small; the shards beside it are read when they are asked for, and checked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wds_pipeline.dataset import publish, shard_table, version
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.errors import VersionError
from wds_pipeline_tests.conftest import Project

HALVES = {"train": 0.5, "val": 0.5}


@pytest.fixture
def built(project: Project) -> Project:
    project.add(0, 24)
    project.build(split=HALVES)
    return project


def beside(project: Project, number: int = 1) -> Path:
    return project.destination / f"versions/{number:08d}/{version.SHARDS}"


def entries(count: int, split: str = "train", since: int = 1) -> list[ShardEntry]:
    return [
        ShardEntry(
            f"{split}-{slot:06d}-{slot:032x}", split, slot, 3, 10_240, f"xxh3-128:{slot:032x}",
            since, "3 new",
        )
        for slot in range(count)
    ]  # fmt: skip


def manifest_of(shards: list[ShardEntry], number: int = 1) -> Manifest:
    return Manifest.of_shards(
        shards, version=number, dataset="small", parent=number - 1, write_id="a", created="",
        writer="", source="", inputs="", content_rules="", config={}, files={}, quarantined={},
        verification={},
    )  # fmt: skip


def test_what_only_needs_totals_reads_no_shard(built: Project) -> None:
    full = built.latest()
    assert full.shards
    beside(built).unlink()
    manifest = version.read(built.storage, None, "small")
    assert manifest.total_shards == len(full.shards)
    assert manifest.total_bytes == sum(shard.bytes for shard in full.shards)
    assert (manifest.new.shards, manifest.changes) == (len(full.shards), {"new": 24})
    assert manifest.new.bytes == manifest.total_bytes
    assert manifest == full
    for ask in (lambda: manifest.shards, lambda: manifest.of_split("val")):
        with pytest.raises(
            VersionError, match=r"shards.parquet: missing from version 1 of small; restore the file"
        ):
            ask()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"", bytes.swapcase])
def test_a_table_that_is_not_the_one_committed(built: Project, change: object) -> None:
    data = beside(built).read_bytes()
    beside(built).write_bytes(change(data))  # type: ignore[operator]
    message = rf"shards.parquet: damaged: .* the manifest says {len(data):,} bytes.*from a backup"
    with pytest.raises(VersionError, match=message):
        built.latest().of_split("train")
    with pytest.raises(VersionError, match=message):
        built.build(split=HALVES)


def test_a_split_is_read_without_the_others(built: Project) -> None:
    manifest = built.latest()
    assert list(manifest.splits) == ["train", "val"]
    assert {shard.split for shard in manifest.of_split("val")} == {"val"}
    assert manifest.of_split("train") + manifest.of_split("val") == manifest.shards
    metadata = pq.ParquetFile(io.BytesIO(manifest.table())).metadata
    rows = [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]
    assert rows == [manifest.splits[name].shards for name in manifest.splits]
    for shard in manifest.shards:
        assert shard.name == f"{shard.partition}-{shard.recipe}"


def test_the_manifest_does_not_grow_with_the_shards() -> None:
    few, many = manifest_of(entries(10)), manifest_of(entries(5_000))
    assert len(many.dump()) < len(few.dump()) + 100
    assert json.loads(many.dump())["splits"]["train"]["shards"] == 5_000
    assert shard_table.parse(many.table(), "train") == entries(5_000)
    assert shard_table.parse(many.table(), "val") == []
    assert shard_table.parse(shard_table.dump([])) == []


def test_the_digest_is_of_the_shards_alone() -> None:
    one, two = entries(7), entries(7, since=2)
    assert manifest_of(one).digest == manifest_of(two, 2).digest
    assert manifest_of(one).shard_table.digest != manifest_of(two, 2).shard_table.digest
    other = [*one[:-1], one[-1]._replace(digest="xxh3-128:0")]
    swapped = [one[1], one[0], *one[2:]]
    more = manifest_of([*one, *entries(2, "val")])
    digests = {each.digest for each in map(manifest_of, (one, other, swapped, one[:-1]))}
    assert len(digests | {more.digest}) == 5
    assert more.splits["train"].digest == manifest_of(one).splits["train"].digest


def test_a_restored_version_has_the_old_shards_and_none_that_are_new(built: Project) -> None:
    first = built.latest()
    built.add(24, 4)
    built.build(split=HALVES)
    second = built.latest()
    assert (second.new.shards, second.changes["new"]) == (
        sum(shard.since == 2 for shard in second.shards), 4,
    )  # fmt: skip
    restored = publish.restore(built.storage, 1, "small")
    assert built.latest() == restored
    assert (restored.new.shards, restored.changes) == (0, {})
    assert built.latest().shards == first.shards
    assert restored.digest == first.digest != second.digest
