"""gc: what it says is what it removes, and never what a version or a build under way needs."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from wds_pipeline.config import RetentionConfig
from wds_pipeline.dataset import publish, retain, seal, version
from wds_pipeline.dataset.retain import Garbage
from wds_pipeline.errors import VersionError
from wds_pipeline_tests.conftest import Project

ONE = RetentionConfig(versions=1, days=0)
DAY = 24 * 3600.0


def age(project: Project, days: float) -> None:
    """Makes every stored file older; manifests keep the time that they state."""
    then = time.time() - days * DAY
    for path in project.destination.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def files(project: Project) -> set[str]:
    found = (path for path in project.destination.rglob("*") if path.is_file())
    return {str(path.relative_to(project.destination)) for path in found}


@pytest.fixture
def history(project: Project) -> Project:
    """Three versions that share shards, all old."""
    project.add(0, 20)
    project.build()
    for number in (1, 2):
        time.sleep(0.02)
        project.write(f"a/000{number}.txt", "edited")
        project.add(100 * number, 1)
        project.build()
    age(project, 3)
    return project


def collect(project: Project, config: RetentionConfig, grace: float = DAY) -> Garbage:
    """Finds, checks that finding changed nothing, removes, checks that just that is gone."""
    before = files(project)
    found = retain.find_garbage(project.storage, config, grace)
    assert files(project) == before
    sizes = {p: (project.destination / p).stat().st_size for p in before}
    freed = retain.collect(project.storage, found, grace)
    gone = before - files(project)
    folders = tuple(f"{v}/{n:08d}/" for n in found.versions for v in ("versions", "views"))
    assert {f.path for f in found.files} == {p for p in gone if not p.startswith(folders or "-")}
    assert freed == found.bytes == sum(sizes[file.path] for file in found.files)
    again = retain.find_garbage(project.storage, config, grace)
    assert (again.versions, again.shards, again.files) == ([], [], [])
    return found


def test_nothing_to_do(history: Project) -> None:
    found = collect(history, RetentionConfig(versions=10, days=0))
    assert (found.versions, found.shards, found.files, found.bytes) == ([], [], [], 0)


def test_the_newest_stays_whole(history: Project) -> None:
    newest = history.latest()
    shared = {s.name for s in newest.shards}
    found = collect(history, ONE)
    assert found.versions == [1, 2]
    assert found.shards
    assert not shared & set(found.shards)
    assert version.list_versions(history.storage) == [3]
    assert history.published() == history.raw()
    assert {p.name for p in (history.destination / "versions").iterdir()} == {"00000003"}
    assert {p.name for p in (history.destination / "views").iterdir()} == {"00000003"}
    names = {p.name.partition(".")[0] for p in (history.destination / "shards").iterdir()}
    assert names == shared
    assert history.build().status == "unchanged"


def test_versions_that_are_kept_keep_their_shards(history: Project) -> None:
    found = collect(history, RetentionConfig(versions=2, days=0))
    assert found.versions == [1]
    for number in (2, 3):
        assert history.published(version.read(history.storage, number, "small"))
        for path in (history.destination / f"views/{number:08d}").iterdir():
            assert path.stat().st_nlink >= 2


def test_young_versions_are_kept(history: Project) -> None:
    """By the time in the manifest, which no copy or touch changes."""
    assert collect(history, RetentionConfig(versions=1, days=1)).versions == []


def test_young_shards_are_kept(history: Project) -> None:
    """A build that was killed may be taken up; a build may be under way right now."""
    history.add(500, 4)
    manifest = history.build().manifest
    shutil.rmtree(history.destination / "versions/00000004")
    new = {shard.name for shard in manifest.shards if shard.since == 4}
    found = retain.find_garbage(history.storage, ONE)
    assert found.young == len(new) > 0
    assert not new & set(found.shards)
    collect(history, ONE)
    assert history.build().packed == 0


def test_a_build_makes_what_it_takes_up_young_again(history: Project) -> None:
    """Restoring the source of version 1 wants its shards, while gc is about to remove them."""
    found = retain.find_garbage(history.storage, ONE)
    wanted = [s.name for s in version.read(history.storage, 1, "small").shards]
    assert set(wanted) & set(found.shards)
    publish.restore(history.storage, 1, "small")
    retain.collect(history.storage, found)
    assert history.latest().restored_from == 1
    history.published()
    for name in wanted:
        for ending in (seal.TAR, seal.MEMBERS, seal.SEAL, seal.REPORT):
            assert (history.destination / seal.path(name, ending)).exists(), (name, ending)


def test_a_shard_that_is_packed_while_gc_removes_it_stays(history: Project) -> None:
    """Left without a seal by a kill, found as garbage, then packed by a build, uncommitted as yet."""
    manifest = version.read(history.storage, 1, "small")
    name = next(
        s.name for s in manifest.shards if s.name not in {t.name for t in history.latest().shards}
    )
    (history.destination / seal.path(name, seal.SEAL)).unlink()
    found = retain.find_garbage(history.storage, ONE)
    assert name in found.shards
    for ending in (seal.TAR, seal.MEMBERS, seal.SEAL):
        history.storage.put(seal.path(name, ending), b"packed anew")
    retain.collect(history.storage, found)
    for ending in (seal.TAR, seal.MEMBERS, seal.SEAL):
        assert (history.destination / seal.path(name, ending)).exists()


def test_unfinished_writes(history: Project) -> None:
    places = [
        "",
        "shards/",
        "versions/00000003/",
        "versions/00000004/build-abc/",
        "views/00000003/",
    ]
    for place in places:
        history.storage.put(f"{place}.tmp-0123456789ab-train-000000-{'a' * 32}.tar", b"half")
    keep = RetentionConfig(versions=10, days=0)
    found = retain.find_garbage(history.storage, keep)
    assert (found.files, found.shards, found.young) == ([], [], 0), "younger than the grace period"
    age(history, 2)
    found = collect(history, keep)
    assert len(found.files) == len(places)
    assert found.shards == []
    assert history.stray() == []
    history.published()


def test_half_written_builds(history: Project) -> None:
    history.storage.put("versions/00000004/build-abc/ledger.parquet", b"lost")
    history.storage.put("versions/00000002/build-def/ledger.parquet", b"lost a race")
    age(history, 2)
    assert len(collect(history, RetentionConfig(versions=10, days=0)).files) == 2
    assert history.published()


def test_a_version_that_is_not_tidied_up_yet_is_no_half_written_build(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 5)
    monkeypatch.setattr(publish, "finish", lambda *_: None)
    project.build()
    monkeypatch.undo()
    age(project, 3)
    assert collect(project, ONE).files == []
    assert version.read_file(project.storage, project.latest(), version.LEDGER)


@pytest.mark.parametrize("point", range(0, 48, 6))
def test_interrupted_and_run_again(
    history: Project, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    """Killed after any removal: the next run removes the rest, and no version is ever half there."""
    real, left = os.unlink, [point]

    def unlink(path: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with suppress(KeyboardInterrupt):
        retain.collect(history.storage, retain.find_garbage(history.storage, ONE))
    monkeypatch.undo()
    for number in version.list_versions(history.storage):
        manifest = version.read(history.storage, number, "small")
        assert history.published(manifest)
        assert version.read_file(history.storage, manifest, version.LEDGER)
    retain.collect(history.storage, retain.find_garbage(history.storage, ONE))
    names = {shard.name for shard in history.latest().shards}
    assert {p.name.partition(".")[0] for p in (history.destination / "shards").iterdir()} == names
    assert {p.name for p in (history.destination / "versions").iterdir()} == {"00000003"}
    assert {p.name for p in (history.destination / "views").iterdir()} == {"00000003"}
    assert history.published() == history.raw()


def test_a_manifest_that_cannot_be_read_stops_it(history: Project) -> None:
    path = Path(history.destination, "versions/00000002/manifest.json")
    path.write_bytes(b"{")
    before = files(history)
    with pytest.raises(VersionError, match=r"00000002/manifest.json: not a readable manifest"):
        retain.find_garbage(history.storage, ONE)
    assert files(history) == before


def test_files_of_others_are_left_alone(history: Project) -> None:
    for path in ("notes.txt", "shards/README", "versions/keep/me.txt", "quarantine/x.jpg"):
        history.storage.put(path, b"mine")
    age(history, 100)
    before = files(history)
    collect(history, RetentionConfig(versions=10, days=0))
    assert files(history) == before


def test_what_is_published_while_it_is_removed_gets_its_seal_back(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build took the shards up after they were found, and committed when the seals were gone."""
    project.add(0, 4)
    manifest = project.build().manifest
    names = {shard.name for shard in manifest.shards}
    files = list(project.storage.list_files(seal.FOLDER))
    garbage = retain.Garbage(shards=sorted(names), files=files)
    answers = iter([set(), names])
    monkeypatch.setattr(retain, "_needed", lambda _: next(answers))
    before = {each.path: project.storage.read(each.path) for each in files}
    assert retain.collect(project.storage, garbage, grace=0) == 0
    assert {each.path for each in project.storage.list_files(seal.FOLDER)} == set(before)
    assert project.published(manifest) == project.raw()
