"""The commit: one winner, whatever happens to the replies; and bringing an old version back."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.dataset import publish, seal, version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import DestinationError, VersionError
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.conftest import Project

FILES = {version.LEDGER: b"ledger", version.REPORT_JSON: b"{}"}


@pytest.fixture
def built(project: Project) -> Project:
    project.add(0, 10)
    project.build()
    return project


def next_of(manifest: Manifest) -> Manifest:
    after = {**publish.stamp(), "version": manifest.version + 1, "parent": manifest.version}
    return manifest.model_copy(update=after)


def test_stamps_differ() -> None:
    one, two = publish.stamp(), publish.stamp()
    assert one["write_id"] != two["write_id"]
    assert one["created"].endswith("+00:00")
    assert one["writer"].startswith("wds_pipeline ")


def test_one_of_many_commits(built: Project) -> None:
    candidates = [next_of(built.latest()) for _ in range(8)]
    barrier, won = threading.Barrier(8), []

    def commit(manifest: Manifest) -> None:
        barrier.wait()
        if publish.commit(built.storage, manifest, FILES):
            won.append(manifest)

    threads = [threading.Thread(target=commit, args=(each,)) for each in candidates]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert built.latest() == won[0]
    folder = built.destination / "versions/00000002"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", version.SHARDS, *FILES
    }  # fmt: skip
    assert version.read_file(built.storage, won[0], version.LEDGER) == b"ledger"


def test_nothing_is_visible_before_the_commit(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = LocalStorage.put

    def put(self: LocalStorage, path: str, data: bytes) -> None:
        real(self, path, data)
        seen.append(built.latest().version)

    monkeypatch.setattr(LocalStorage, "put", put)
    assert publish.commit(built.storage, next_of(built.latest()), FILES)
    assert seen == [1, 1, 1]
    assert built.latest().version == 2


def test_a_committed_manifest_is_never_replaced(built: Project) -> None:
    path = built.destination / "versions/00000001/manifest.json"
    data, inode = path.read_bytes(), path.stat().st_ino
    first = built.latest()
    assert not publish.commit(built.storage, first.model_copy(update=publish.stamp()), FILES)
    assert (path.read_bytes(), path.stat().st_ino) == (data, inode)
    assert not list(path.parent.glob("build-*")), "a lost race leaves nothing"


@pytest.mark.parametrize("error", ["before", "after", "sync"])
def test_a_lost_reply(built: Project, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    import wds_pipeline.storage.local as module

    manifest = next_of(built.latest())
    real = LocalStorage.put_if_absent

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        if error == "after":
            real(self, path, data)
        raise DestinationError("timed out")

    def sync(folder: str) -> None:
        if os.path.exists(f"{folder}/manifest.json"):
            raise OSError(5, "Input/output error")

    if error == "sync":
        monkeypatch.setattr(module, "_sync_folder", sync)
    else:
        monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)
    if error == "before":
        with pytest.raises(
            DestinationError, match=r"version 2: timed out \(nothing was removed; build"
        ):
            publish.commit(built.storage, manifest, FILES)
        assert built.latest().version == 1
        assert len(list(built.destination.glob("versions/00000002/build-*/*"))) == 3
    else:
        assert publish.commit(built.storage, manifest, FILES)
        assert built.latest() == manifest


def test_tidying_up_is_done_once_and_by_anyone(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = next_of(built.latest())
    with monkeypatch.context() as patch:
        patch.setattr(publish, "finish", lambda *_: None)
        assert publish.commit(built.storage, manifest, FILES)
    failed: list[BaseException] = []

    def tidy() -> None:
        try:
            publish.finish(built.storage, manifest)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=tidy) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        assert version.read_file(built.storage, manifest, version.LEDGER) == b"ledger"
    for thread in threads:
        thread.join()
    assert not failed
    folder = built.destination / "versions/00000002"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", version.SHARDS, *FILES
    }  # fmt: skip
    assert built.stray() == []


# ------------------------------------------------------------------------------------ restore


def test_restore(built: Project) -> None:
    first = built.published()
    built.add(10, 5)
    built.build()
    before = {p.name: p.stat().st_ino for p in (built.destination / "shards").glob("*.tar")}
    manifest = publish.restore(built.storage, 1, "small")
    assert manifest == built.latest()
    assert (manifest.version, manifest.parent, manifest.restored_from) == (3, 2, 1)
    assert built.published() == first
    for name in (version.LEDGER, version.INVENTORY, version.QUARANTINE, version.REPORT_HTML):
        one = Path(built.destination, "versions/00000001", name).read_bytes()
        assert Path(built.destination, "versions/00000003", name).read_bytes() == one
    assert before == {p.name: p.stat().st_ino for p in (built.destination / "shards").glob("*.tar")}
    assert len(list((built.destination / "views/00000003").iterdir())) == len(manifest.shards)


def test_restore_what_is_gone(built: Project) -> None:
    shard = built.latest().shards[0]
    built.add(10, 5)
    built.build()
    with pytest.raises(VersionError, match=r"small: .*version 9 is not published; there are 1, 2"):
        publish.restore(built.storage, 9, "small")
    for ending in (seal.TAR, seal.SEAL):
        path = built.destination / seal.path(shard.name, ending)
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(
            VersionError, match=f"version 1 cannot be restored: 1 of its.*{shard.name}"
        ):
            publish.restore(built.storage, 1, "small")
        path.write_bytes(data)
    assert built.latest().version == 2


def test_restore_in_conflict(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    built.add(10, 5)
    built.build()
    real, struck = publish.commit, list[bool]()

    def commit(storage: LocalStorage, manifest: Manifest, files: Any) -> bool:
        if not struck:
            struck.append(True)
            built.add(20, 5)
            built.build()
        return real(storage, manifest, files)

    monkeypatch.setattr(publish, "commit", commit)
    manifest = publish.restore(built.storage, 1, "small")
    assert (manifest.version, manifest.parent) == (4, 3)
    assert version.list_versions(built.storage) == [1, 2, 3, 4]


def test_a_reply_so_late_that_others_have_built_on_it(
    built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version stays: the one after it names it as its parent, by its write id."""
    manifest = next_of(built.latest())
    real = LocalStorage.put_if_absent

    def put_if_absent(self: LocalStorage, path: str, data: bytes) -> bool:
        done = real(self, path, data)
        if path.endswith(f"{manifest.version:08d}/manifest.json"):
            monkeypatch.setattr(LocalStorage, "put_if_absent", real)
            after = next_of(built.latest())
            after = after.model_copy(update={"parent_write_id": manifest.write_id})
            assert publish.commit(built.storage, after, FILES)
        return done

    monkeypatch.setattr(LocalStorage, "put_if_absent", put_if_absent)
    assert publish.commit(built.storage, manifest, FILES)
    assert version.list_versions(built.storage)[-2:] == [manifest.version, manifest.version + 1]
    kept = version.try_read(built.storage, manifest.version)
    assert kept is not None
    assert kept.write_id == manifest.write_id


def test_every_version_names_its_parent_s_write_id(built: Project) -> None:
    first = built.latest()
    built.add(40, 2)
    second = built.build().manifest
    assert (second.parent, second.parent_write_id) == (first.version, first.write_id)
    back = publish.restore(built.storage, first.version, "small")
    assert (back.parent, back.parent_write_id) == (second.version, second.write_id)


def test_two_that_make_a_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker comes between the look for it and the look at what else is there."""
    storage = LocalStorage(tmp_path)
    real = LocalStorage.is_empty

    def is_empty(self: LocalStorage) -> bool:
        monkeypatch.setattr(LocalStorage, "is_empty", real)
        version.write_marker(storage, "small")
        return self.is_empty()

    monkeypatch.setattr(LocalStorage, "is_empty", is_empty)
    assert version.check_marker(storage, "small")
