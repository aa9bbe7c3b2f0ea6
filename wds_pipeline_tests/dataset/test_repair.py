"""Damaged shards are packed anew as they were published; what cannot be had again is left as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.audit import Audit, audit, audit_rules
from wds_pipeline.dataset.repair import Repair, repair, unrepaired
from wds_pipeline.dataset.shard_report import load_report
from wds_pipeline.dataset.version import ShardEntry
from wds_pipeline.errors import ConfigError, DestinationError, SourceError
from wds_pipeline_tests.conftest import Project


@pytest.fixture
def published(project: Project) -> Project:
    """Two versions, which share all shards but one."""
    project.add(0, 30)
    project.build()
    project.write("a/0001.txt", "edited")
    project.build()
    return project


def look(project: Project, level: str = "samples") -> Audit:
    config, manifest = project.config(), project.latest()
    with open_pool(config.compute) as pool:
        return audit(config, project.storage, manifest, audit_rules(config, manifest, level), pool)


def mend(project: Project, found: Audit | None = None, level: str | None = None) -> Repair:
    config = project.config()
    damaged = (found or look(project)).damaged
    with open_pool(config.compute) as pool:
        return repair(config, project.storage, project.latest(), damaged, pool, level)


def names(found: Repair) -> set[str]:
    return {each.seal.name for each in found.repaired}


def path_of(project: Project, shard: ShardEntry, ending: str = seal.TAR) -> Path:
    return project.destination / seal.path(shard.name, ending)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 512)


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a bit": (seal.TAR, flip),
    "tar truncated": (seal.TAR, cut),
    "tar deleted": (seal.TAR, Path.unlink),
    "index damaged": (seal.MEMBERS, flip),
    "index deleted": (seal.MEMBERS, Path.unlink),
    "seal deleted": (seal.SEAL, Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_gets_its_bytes_back(published: Project, damage: str) -> None:
    shard = published.latest().shards[2]
    ends = (seal.TAR, seal.MEMBERS, seal.SEAL)
    whole = {end: path_of(published, shard, end).read_bytes() for end in ends}
    others = published.shard_files()
    ending, harm = DAMAGE[damage]
    harm(path_of(published, shard, ending))
    result = mend(published)
    assert names(result) == {shard.name} and not result.failed
    assert {end: path_of(published, shard, end).read_bytes() for end in ends} == whole
    after = published.shard_files()
    assert after.keys() == others.keys()
    assert all(shard.name in name for name in others if others[name] != after[name])
    for number in (1, 2):  # the brace-able names of all versions lead to the new file
        view = published.destination / f"views/{number:08d}/train-000002.tar"
        assert os.path.samefile(view, path_of(published, shard))
    assert look(published, "decode").report.passed
    assert published.build().status == "unchanged"
    assert published.latest().version == 2


def test_nothing_is_damaged(published: Project) -> None:
    files = published.shard_files()
    assert mend(published) == Repair()
    assert published.shard_files() == files


def test_a_repaired_shard_has_a_report_that_a_build_relies_on(published: Project) -> None:
    shard = published.latest().shards[2]
    flip(path_of(published, shard))
    (done,) = mend(published, level="samples").repaired
    stored = load_report(published.storage, shard.name)
    assert stored is not None and stored.level == done.report.level == "decode"
    assert stored.thumbnails


def test_changes_of_the_source_are_not_taken_in(published: Project) -> None:
    """Of other shards: the damaged one is packed anew all the same."""
    shard = published.latest().shards[2]
    flip(path_of(published, shard))
    held = set(seal.read_member_index(published.storage, shard.name)["key"].to_pylist())
    edited = next(key for key in published.raw() if key not in held)
    published.write(f"{edited}.txt", "edited once more")
    published.add(100, 5)
    result = mend(published)
    assert names(result) == {shard.name} and not result.failed
    assert published.latest().version == 2
    assert look(published).report.passed
    assert published.build().manifest.version == 3


def change(project: Project, key: str) -> None:
    project.write(f"{key}.txt", "another caption")


def remove(project: Project, key: str) -> None:
    (project.source / f"{key}.txt").unlink()


@pytest.mark.parametrize("what", [change, remove])
def test_a_shard_whose_source_changed_is_left_as_it_is(
    published: Project, what: Callable[[Project, str], None]
) -> None:
    lost, other = published.latest().shards[1:3]
    for shard in (lost, other):
        flip(path_of(published, shard))
    key = seal.read_member_index(published.storage, lost.name)["key"].to_pylist()[-1]
    what(published, key)
    before = {n: f for n, f in published.shard_files().items() if lost.name in n}
    result = mend(published)
    assert names(result) == {other.name}
    assert result.failed.keys() == {lost.partition}
    assert f"{key}.txt" in result.failed[lost.partition]
    after = {n: f for n, f in published.shard_files().items() if lost.name in n}
    assert after == before  # its seal too: what can be read of it still can
    assert not published.stray()
    message = unrepaired(published.config(), published.latest(), result.failed, "small_build")
    assert message.startswith("small: 1 damaged shard of version 2 cannot be had again:\n")
    assert f"{lost.partition}: its source file {key}.txt is not what it was" in message
    assert "run small_build: it makes a new version" in message
    # which is true
    config = {"samples": {"max_quarantined": 1}}
    assert published.build(**config).manifest.version == 3
    assert look(published).report.passed
    assert key not in published.published() or what is change


def test_other_bytes_of_the_same_size_and_time_are_refused(published: Project) -> None:
    shard = published.latest().shards[2]
    key = seal.read_member_index(published.storage, shard.name)["key"].to_pylist()[0]
    path = published.source / f"{key}.txt"
    found = path.stat()
    path.write_text(path.read_text().upper())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    flip(path_of(published, shard))
    before = published.shard_files()
    result = mend(published)
    assert not result.repaired
    assert "other bytes but its old size and time" in result.failed[shard.partition]
    assert published.shard_files() == before


def test_several_files_that_changed(published: Project) -> None:
    shard = published.latest().shards[2]
    flip(path_of(published, shard))
    for path in published.source.rglob("*.txt"):
        path.write_text("all edited")
    (reason,) = mend(published).failed.values()
    assert reason.startswith(f"{shard.samples} of its source files are not what they were, such as")


@pytest.mark.parametrize("gone", ["the folder", "what is in it"])
def test_a_source_that_is_gone(published: Project, gone: str) -> None:
    """A disk that is not mounted: no reason to say of a million files that they are gone."""
    flip(path_of(published, published.latest().shards[0]))
    before = published.shard_files()
    shutil.rmtree(published.source)
    if gone == "what is in it":
        published.source.mkdir()
    with pytest.raises(
        SourceError, match=r"small: source\.url: .*: found no files; expected those"
    ):
        mend(published)
    assert published.shard_files() == before


def test_a_full_disk(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(path_of(published, published.latest().shards[0]))
    monkeypatch.setattr("wds_pipeline.storage.LocalStorage.free_bytes", lambda _: 10)
    with pytest.raises(DestinationError, match="10 bytes are free"):
        mend(published)


def test_damaged_again(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a disk that is broken: packed as it was published, and read back in another way."""
    shard = published.latest().shards[2]
    flip(path_of(published, shard))
    found = look(published)
    with monkeypatch.context() as patch:
        patch.setattr(
            "wds_pipeline.dataset.publish.relink_views", lambda *_: cut(path_of(published, shard))
        )
        result = mend(published, found)
    assert not result.repaired
    assert "packed anew, and damaged again: " in result.failed[shard.partition]
    assert "Check the disk and the memory" in result.failed[shard.partition]


def test_rules_that_are_none(published: Project) -> None:
    config, manifest = published.config(), published.latest()
    with pytest.raises(ConfigError, match="small: level: found 'deep'; expected one of stat, dig"):
        audit_rules(config, manifest, "deep")
    with pytest.raises(ConfigError, match=r"small: sample: found 1\.5; expected a share"):
        audit_rules(config, manifest, None, 1.5)
    usual = audit_rules(config, manifest)
    assert (usual.level, usual.sample) == (config.verify.level, config.verify.sample)
    assert audit_rules(config, manifest, "digest", 0.0).sample == 0.0


def test_the_members_that_changed_are_named(published: Project) -> None:
    shard = published.latest().shards[2]
    member = seal.read_member_index(published.storage, shard.name).to_pylist()[4]
    path = path_of(published, shard)
    data = bytearray(path.read_bytes())
    data[member["offset"]] ^= 1
    path.write_bytes(data)
    (found,) = look(published).damaged.values()
    (named,) = [each for each in found.errors if each.code == "wrong_content"]
    assert (named.key, named.field) == (member["key"], member["field"])
    # Without the report of when it was published, nobody can tell which; that it is damaged, yes.
    path_of(published, shard, seal.REPORT).unlink()
    (found,) = look(published).damaged.values()
    assert [each.code for each in found.errors] == ["wrong_digest"]
