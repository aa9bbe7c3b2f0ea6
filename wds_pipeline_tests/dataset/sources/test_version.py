"""A dataset of another dataset's version: what it takes, what triggers what, what it says when it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from pydantic import ValidationError

from wds_pipeline.compute import open_pool
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, shard_report, version
from wds_pipeline.dataset.audit import audit, audit_rules
from wds_pipeline.dataset.build import Build, build
from wds_pipeline.dataset.publish import restore
from wds_pipeline.dataset.repair import repair
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.sources.content_digests import digest_array, fingerprints, read_digests
from wds_pipeline.errors import ConfigError, SourceError
from wds_pipeline.storage import CONTENT, LocalStorage
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.dataset.sources.derived import (
    Derived,
    derived,
    expire,
    keys_of,
    places,
    rebuild,
    upstream,
)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """An upstream dataset that no test changes."""
    return upstream(tmp_path_factory.mktemp("still"))


@pytest.fixture
def moving(still: Project, tmp_path: Path) -> Project:
    """A copy of it, to change."""
    shutil.copytree(still.folder, tmp_path / "moving", symlinks=True)
    return Project(tmp_path / "moving", still.options)


def test_it_has_the_samples_of_the_newest_version_in_their_splits(
    still: Project, tmp_path: Path
) -> None:
    project = derived(still, tmp_path)
    manifest = project.build().manifest
    assert project.published() == still.published()
    split = {key: place[0] for key, place in places(still).items()}
    assert set(split.values()) == {"train", "val"}
    assert {key: place[0] for key, place in places(project).items()} == split
    newest = still.latest()
    assert manifest.made_of == {
        "dataset": "small", "url": str(still.destination),
        "version": newest.version, "digest": newest.digest,
    }  # fmt: skip


def test_nothing_changed_reads_no_index(
    moving: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = derived(moving, tmp_path / "b")
    project.build()
    first = moving.latest().version
    moving.write("a/0001.txt", "edited")
    moving.build()
    restore(moving.storage, first, "small")  # another version of the same shards
    assert moving.latest().version > first

    def fail(*_: Any) -> Any:
        raise AssertionError("a member index was read")

    monkeypatch.setattr(seal, "read_member_index", fail)
    assert project.build().status == "unchanged"
    work = Build(project.config())
    look = work.source.look(1.0)
    assert look.complete and look.digest == work.scan().digest
    assert look.files == 30


def test_one_edit_rebuilds_one_shard_of_each(moving: Project, tmp_path: Path) -> None:
    every = derived(moving, tmp_path / "b")
    images = derived(moving, tmp_path / "c", {"fields": ["png"]})
    for project in (every, images):
        project.build()
    moving.write("a/0007.txt", "edited")
    assert len(rebuild(moving)) == 1
    assert len(rebuild(every)) == 1
    assert every.published() == moving.published()
    assert rebuild(images) == []  # its members are what they were


def test_shards_that_were_laid_out_anew_move_nothing(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    project.build()
    before = moving.latest()
    moving.options["shards"] = {"max_bytes": 30_000}
    moving.build(repack=True)
    assert moving.latest().digest != before.digest
    assert rebuild(project) == []


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("png.width > 9", lambda number: 8 + number % 5 > 9),
        ('key in ["a/0003", "a/0004"]', lambda number: number in (3, 4)),
        ("txt.size == 17 and png.width == 8", lambda number: number % 5 == 0),
    ],
)
def test_where_takes_some_samples(still: Project, tmp_path: Path, where: str, wanted: Any) -> None:
    project = derived(still, tmp_path, {"where": where})
    project.build()
    keys = {f"a/{number:04d}" for number in range(30) if wanted(number)}
    assert project.published() == {k: v for k, v in still.published().items() if k in keys}


def test_splits_and_fields(still: Project, tmp_path: Path) -> None:
    project = derived(still, tmp_path, {"splits": ["val"], "fields": ["txt", "json"]})
    manifest = project.build().manifest
    assert set(manifest.splits) == {"val"}
    val = {key for key, place in places(still).items() if place[0] == "val"}
    expected = {
        key: {name: data for name, data in fields.items() if name != "png"}
        for key, fields in still.published().items()
        if key in val
    }
    assert project.published() == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"splits": ["vall"]}, r"no split 'vall'; it has train, val; did you mean 'val'\?"),
        ({"fields": ["txtt"]}, r"fields: no sample .* a field 'txtt'.* did you mean 'txt'\?"),
        ({"where": "pngg.width > 1"}, r"where: no sample of version 1 of small has a field 'pngg'"),
        ({"where": "txt.width > 1"}, r"asks for txt.width, but no txt .* has a width"),
        ({"where": "png.width > 999"}, r"no sample of version 1 of small answers"),
        ({"where": "png.width >"}, r"source.dataset.where: the query .* cannot be read"),
        ({"where": 'png.width == "x"'}, r"source.dataset.where: the query cannot be answered"),
    ],
)
def test_what_there_is_not(
    still: Project, tmp_path: Path, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        derived(still, tmp_path, source).build()


def test_no_version_yet(tmp_path: Path) -> None:
    empty = upstream(tmp_path / "a", 0)
    project = derived(empty, tmp_path / "b")
    with pytest.raises(SourceError, match="no version is published there; build it first"):
        project.build()
    source = {"dataset": "small"}
    config = project.config(source=source).with_upstream({"small": empty.config()})
    with pytest.raises(SourceError, match="`wds-pipeline build small` first"):
        open_source(config).check()
    empty.add(0, 4)
    empty.build()
    assert build(config).manifest.total_samples == 4


def test_a_pinned_version(moving: Project, tmp_path: Path) -> None:
    pinned = derived(moving, tmp_path / "b", {"version": 1})
    before = moving.published()
    moving.write("a/0001.txt", "edited")
    moving.build()
    pinned.build()
    assert pinned.published() == before
    expire(moving)
    with pytest.raises(SourceError, match="version 1 is not there, or gc removed it; there are 2:"):
        pinned.build()


def test_a_version_of_a_newer_release(moving: Project, tmp_path: Path) -> None:
    where = moving.destination / "versions/00000001/manifest.json"
    values = json.loads(where.read_bytes())
    where.write_text(json.dumps(values | {"format_version": 2}))
    with pytest.raises(SourceError, match=r"derived: source.dataset: .*Update wds_pipeline"):
        derived(moving, tmp_path / "b").build()


def test_where_on_what_nobody_decoded(tmp_path: Path) -> None:
    shallow = upstream(tmp_path / "a", 6, verify={"level": "samples"})
    project = derived(shallow, tmp_path / "b", {"where": "png.width > 9"})
    with pytest.raises(
        SourceError, match=r"width is not known: .* never decoded; .*--level decode"
    ):
        project.build()


def test_digests_that_no_report_has_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = upstream(tmp_path / "a", 12, verify={"level": "digest"})
    report = shard_report.load_report(shallow.storage, shallow.latest().shards[0].name)
    assert report is None or report.members["digest"].null_count
    project = derived(shallow, tmp_path / "b")
    project.build()
    assert project.published() == shallow.published()
    shallow.write("a/0001.txt", "edited")
    shallow.build()
    read: list[str] = []

    def count(storage: Any, path: str, *rest: Any) -> np.ndarray:
        read.append(path)
        return read_digests(storage, path, *rest)

    monkeypatch.setattr("wds_pipeline.dataset.sources.version.read_digests", count)
    assert len(rebuild(project)) == 1
    assert len(read) == 1  # of the shard that is new
    assert project.published() == shallow.published()


def test_the_digests_of_reports_are_those_of_the_contents(still: Project) -> None:
    shard = still.latest().shards[0]
    index = seal.read_member_index(still.storage, shard.name)
    report = shard_report.read_columns(still.storage, shard.name, ["digest"])
    assert report is not None
    offsets, sizes = index["offset"].to_numpy(), index["size"].to_numpy()
    read = read_digests(still.storage, shard.path, offsets, sizes)
    assert np.array_equal(read, digest_array(report["digest"]))
    data = (still.destination / shard.path).read_bytes()
    texts = [
        CONTENT + xxhash.xxh3_128_hexdigest(data[at : at + size])
        for at, size in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]
    assert fingerprints(read).to_pylist() == texts


def test_large_members_are_digested_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wds_pipeline.dataset.sources.content_digests.BLOCK", 1000)
    data = np.random.default_rng(0).bytes(12_000)
    (tmp_path / "x").write_bytes(data)
    offsets = np.array([0, 10, 500, 1500, 9000, 9000])
    sizes = np.array([10, 0, 990, 7000, 0, 1001])
    found = read_digests(LocalStorage(tmp_path), "x", offsets, sizes)
    expected = [
        xxhash.xxh3_128_digest(data[at : at + size])
        for at, size in zip(offsets.tolist(), sizes.tolist(), strict=True)
    ]
    assert [each.tobytes() for each in found] == expected


# Splits.


def test_a_split_of_its_own(still: Project, tmp_path: Path) -> None:
    project = derived(still, tmp_path, split={"a": 0.5, "b": 0.5})
    assert set(project.build().manifest.splits) == {"a", "b"}


def test_a_sample_that_changes_its_split_upstream_stays(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    project.build()
    before = places(project)
    moving.options["split"] = {"train": 0.2, "val": 0.8}
    build(moving.config(), resplit=True)
    result = project.build()
    assert places(project) == before
    assert "samples would now be in another split" in result.warnings[0]
    build(project.config(), resplit=True)
    now = {key: place[0] for key, place in places(project).items()}
    assert now == {key: place[0] for key, place in places(moving).items()}


# One shard for one.


def same_layout(project: Project, other: Project) -> None:
    """Each shard has exactly the other's samples, in its order."""
    theirs = {each.partition: keys_of(other, each.path) for each in other.latest().shards}
    ours = {each.partition: keys_of(project, each.path) for each in project.latest().shards}
    assert ours == theirs
    assert project.published() == other.published()


def test_one_to_one(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b", shards={"layout": "source"})
    project.build()
    same_layout(project, moving)
    ours, theirs = project.latest().shards, moving.latest().shards
    assert [each.digest for each in ours] == [each.digest for each in theirs]
    # An edit, a broken picture that comes back, deletions, additions, a new layout.
    moving.write("a/0003.txt", "edited")
    assert rebuild(moving) == rebuild(project)
    same_layout(project, moving)
    moving.write("a/0005.png", b"no picture")
    moving.build()
    rebuild(project)
    same_layout(project, moving)
    moving.write("a/0005.png", png(5))
    moving.build()
    rebuild(project)
    same_layout(project, moving)
    for key in keys_of(moving, moving.latest().shards[1].path):  # all of one slot
        for file in moving.source.glob(f"{key}.*"):
            file.unlink()
    moving.build()
    rebuild(project)
    same_layout(project, moving)
    moving.add(100, 9)
    moving.build()
    rebuild(project)
    same_layout(project, moving)
    moving.options["shards"] = {"max_bytes": 30_000}
    moving.build(repack=True)
    project.build()
    same_layout(project, moving)
    assert project.build().status == "unchanged"


@pytest.mark.parametrize("key", ["max_bytes", "max_samples", "seed", "compact_below"])
def test_a_size_does_not_go_with_one_to_one(key: str) -> None:
    values = {"name": "b", "source": {"dataset": "a"}, "destination": {"url": "b"}}
    with pytest.raises(ValidationError, match=f"shards.{key}: with shards.layout: source"):
        DatasetConfig.model_validate({**values, "shards": {"layout": "source", key: 1}})


def test_one_to_one_with_some_samples(moving: Project, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shards": {"layout": "source"}}
    project = derived(moving, tmp_path / "b", {"where": "png.width > 10"}, **options)
    project.build()
    kept = {key for key in moving.published() if 8 + int(key[2:]) % 5 > 10}
    for shard in project.latest().shards:
        other = next(s for s in moving.latest().shards if s.partition == shard.partition)
        wanted = [key for key in keys_of(moving, other.path) if key in kept]
        assert keys_of(project, shard.path) == wanted
    assert set(project.published()) == kept


# What goes wrong meanwhile.


def test_a_version_that_goes_while_it_is_packed(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    work = Build(project.config())
    work.open_destination()
    draft = work.plan(work.scan())
    for number in range(20):
        moving.write(f"a/{number:04d}.txt", "edited")
    moving.build()
    expire(moving)
    with open_pool(work.config.compute) as pool:
        result = work.finish(draft, pool)
    assert result.manifest.made_of["version"] == 2
    assert result.manifest.quarantined == {}
    assert project.published() == moving.published()


def test_a_version_that_goes_before_its_indexes_are_read(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    work = Build(project.config())
    work.open_destination()
    listing = work.scan()
    for number in range(20):
        moving.write(f"a/{number:04d}.txt", "edited")
    moving.build()
    expire(moving)
    with pytest.raises(SourceError, match="version 1 was removed while it was read") as caught:
        work.plan(listing)
    assert caught.value.passing
    project.build()
    assert project.published() == moving.published()


def test_a_damaged_shard_upstream_is_never_taken_in(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    shard = moving.latest().shards[0]
    index = seal.read_member_index(moving.storage, shard.name)
    where = moving.destination / shard.path
    data = bytearray(where.read_bytes())
    data[index["offset"][0].as_py()] ^= 1
    where.unlink()
    where.write_bytes(data)
    manifest = project.build().manifest
    key = index["key"][0].as_py()
    assert manifest.quarantined == {"unstable": 1}
    assert key not in project.published()
    table = version.read_table(project.storage, manifest, version.QUARANTINE)
    assert "its content is not what was scanned" in table["detail"][0].as_py()
    assert shard.path in table["detail"][0].as_py()


def test_a_damaged_shard_is_packed_anew(moving: Project, tmp_path: Path) -> None:
    project = derived(moving, tmp_path / "b")
    project.build()
    whole = {each.name: each.digest for each in project.latest().shards}
    first = project.latest().shards[0]
    (project.destination / first.path).write_bytes(b"gone")
    found = mended(project)
    assert [each.seal.name for each in found.repaired] == [first.name] and not found.failed
    assert {each.name: each.digest for each in project.latest().shards} == whole
    assert project.published() == moving.published()
    # Of a sample that is another one upstream by now, the shard cannot be had again.
    key = keys_of(project, first.path)[0]
    moving.write(f"{key}.txt", "edited")
    moving.build()
    expire(moving)
    (project.destination / first.path).write_bytes(b"gone")
    found = mended(project)
    assert list(found.failed) == [first.partition]
    assert f"{key}.txt is not what it was" in found.failed[first.partition]


def mended(project: Derived) -> Any:
    config, manifest = project.config(), project.latest()
    with open_pool(config.compute) as pool:
        rules = audit_rules(config, manifest, "samples")
        damaged = audit(config, project.storage, manifest, rules, pool).damaged
        return repair(config, project.storage, manifest, damaged, pool)
