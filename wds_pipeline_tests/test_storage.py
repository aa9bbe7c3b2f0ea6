"""The door to bytes: whole or absent, whatever happens; and messages that say what to do."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from wds_pipeline.errors import DestinationError, SourceChanged
from wds_pipeline.storage import CONTENT, TEMPORARY, LocalStorage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


def names(storage: LocalStorage) -> list[str]:
    """Every file and folder below the root."""
    return sorted(str(path.relative_to(storage.root)) for path in storage.root.rglob("*"))


def test_open_storage(tmp_path: Path) -> None:
    found = open_storage(f"file://{tmp_path}/x")
    assert isinstance(found, LocalStorage)
    assert found.root == tmp_path / "x"
    assert open_storage("/a/b").locate("c/d") == "/a/b/c/d"


def test_put_read_list_delete(storage: LocalStorage) -> None:
    assert storage.is_empty()
    assert list(storage.list_files("no/such")) == []
    assert list(storage.list_names("no/such")) == []
    assert storage.list_folders("no/such") == []
    assert storage.stat("a/b/c.bin") is None
    storage.put("a/b/c.bin", b"one")
    storage.put("a/b/c.bin", b"three")
    storage.put("top.txt", b"")
    assert not storage.is_empty()
    assert storage.read("a/b/c.bin") == b"three"
    found = storage.stat("a/b/c.bin")
    assert found is not None
    assert (found.path, found.size) == ("a/b/c.bin", 5)
    assert [file.path for file in storage.list_files("a/b/")] == ["a/b/c.bin"]
    assert [file.path for file in storage.list_files("a/b")] == ["a/b/c.bin"]
    assert [file.path for file in storage.list_files()] == ["top.txt"]
    assert list(storage.list_names("a/b")) == ["c.bin"]
    assert list(storage.list_names("a")) == []
    assert storage.list_folders("") == ["a"]
    assert storage.stat("top.txt/below") is None
    storage.delete("a/b/c.bin")
    storage.delete("a/b/c.bin")
    assert names(storage) == ["top.txt"], "folders that became empty are gone"
    with pytest.raises(FileNotFoundError):
        storage.read("a/b/c.bin")


def test_a_folder_with_unfinished_writes_alone_is_empty(storage: LocalStorage) -> None:
    storage.root.mkdir()
    (storage.root / f"{TEMPORARY}0123-wds_pipeline.json").write_bytes(b"half")
    assert storage.is_empty()


def test_create_appears_whole_or_not_at_all(storage: LocalStorage) -> None:
    storage.put("x/file", b"old")
    with storage.create("x/file") as file:
        file.write(b"new")
        assert storage.read("x/file") == b"old"
    assert storage.read("x/file") == b"new"
    for error in (ValueError("stop"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)), storage.create("x/file") as file:
            file.write(b"half")
            raise error
    assert storage.read("x/file") == b"new"
    assert names(storage) == ["x", "x/file"]


def test_put_if_absent_lets_exactly_one_win(storage: LocalStorage) -> None:
    for turn in range(20):
        barrier = threading.Barrier(8)
        won: list[int] = []

        def write(number: int, turn: int = turn, barrier: Any = barrier, won: Any = won) -> None:
            barrier.wait()
            if storage.put_if_absent(f"v/{turn}", str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"v/{turn}") == str(won[0]).encode()
    assert not [name for name in names(storage) if TEMPORARY in name]


def test_a_folder_that_vanishes_between_two_steps_is_made_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`delete` removes folders that it leaves empty, also while another process writes there."""
    real = os.open
    left = [3]

    def racing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT and left[0]:
            left[0] -= 1
            os.rmdir(os.path.dirname(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", racing)
    storage.put("a/b/one", b"1")
    left[0] = 3
    assert storage.put_if_absent("c/d/two", b"2")
    assert storage.read("a/b/one") + storage.read("c/d/two") == b"12"


def test_writers_and_deleters_in_one_folder(storage: LocalStorage) -> None:
    stop = time.monotonic() + 0.5
    failed: list[BaseException] = []

    def churn(name: str) -> None:
        try:
            while time.monotonic() < stop:
                storage.put(f"deep/er/{name}", b"x")
                storage.link(f"deep/linked/{name}", f"deep/er/{name}")
                storage.delete(f"deep/er/{name}")
                storage.delete(f"deep/linked/{name}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=churn, args=(str(each),)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert names(storage) == []


def test_link(storage: LocalStorage) -> None:
    storage.put("a", b"1")
    storage.link("views/b", "a")
    storage.link("views/b", "a")  # rename(2) of two names of one file does nothing
    assert os.path.samefile(storage.locate("a"), storage.locate("views/b"))
    storage.put("c", b"2")
    storage.link("views/b", "c")
    assert storage.read("views/b") == b"2"
    assert names(storage) == ["a", "c", "views", "views/b"]
    with pytest.raises(DestinationError, match="views/d"):
        storage.link("views/d", "gone")
    assert "views/d" not in names(storage)


def test_touch(storage: LocalStorage) -> None:
    assert not storage.touch("a")
    storage.put("a", b"")
    os.utime(storage.locate("a"), (1, 1))
    assert storage.touch("a")
    assert abs(os.stat(storage.locate("a")).st_mtime - time.time()) < 60


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "the disk is full.*free some space.*build again: the shards sealed so far"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "not writable.*change its permissions or destination.url"),
        (errno.EACCES, "not writable"),
        (errno.EIO, "cannot be written: Input/output error"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link", "mkdir"])
def test_what_the_system_refuses_is_explained(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str, code: int, message: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refuse)
    if call != "link":
        with pytest.raises(DestinationError, match=f"{storage.root}/sub/file.*{message}"):
            storage.put("sub/file", b"data")
    if call != "replace":
        with pytest.raises(DestinationError, match=f"{storage.root}/sub/file.*{message}"):
            storage.put_if_absent("sub/file", b"data")
    monkeypatch.undo()
    assert names(storage) in ([], ["sub"]), "nothing half written stays"


def test_a_file_where_a_folder_is_needed(storage: LocalStorage) -> None:
    storage.put("a", b"")
    for write in (storage.put, storage.put_if_absent):
        with pytest.raises(DestinationError, match="a file stands where a folder is needed"):
            write("a/b/c", b"")


def test_short_writes_are_continued(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    data = bytes(range(256)) * 3
    storage.put("a", data)
    assert storage.put_if_absent("b", data)
    monkeypatch.undo()
    assert storage.read("a") == storage.read("b") == data


def test_without_rights(tmp_path: Path, unprivileged: Callable[[Callable[[], Any]], str]) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    (root / "file").write_bytes(b"x")
    storage = open_storage(str(root))
    os.chmod(root, 0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o711)
    for work in (
        lambda: storage.put("a", b""),
        lambda: storage.put_if_absent("a", b""),
        lambda: storage.put("b/c", b""),
        lambda: storage.delete("file"),
        lambda: storage.touch("file"),
        lambda: storage.link("b", "file"),
    ):
        assert "not writable (Permission denied)" in unprivileged(work).replace(
            "Operation not permitted", "Permission denied"
        )
    os.chmod(root, 0o000)
    for listing in (
        lambda: list(storage.list_files()),
        lambda: list(storage.list_names("")),
        lambda: storage.list_folders(),
        lambda: storage.is_empty(),
        lambda: storage.stat("file"),
    ):
        assert unprivileged(listing).startswith(f"DestinationError: {root}"), listing
    os.chmod(root, 0o755)


# -------------------------------------------------------------------------------- reading a source


def stamp(path: Path) -> str:
    return str(path.stat().st_mtime_ns)


def content_stamp(path: Path) -> str:
    return CONTENT + xxhash.xxh3_128_hexdigest(path.read_bytes())


def read_whole(storage: LocalStorage, path: str, size: int, fingerprint: str) -> bytes:
    view = memoryview(bytearray(size))
    storage.read_into(path, view, fingerprint)
    return bytes(view)


def read_chunks(storage: LocalStorage, path: str, size: int, fingerprint: str) -> bytes:
    return b"".join(map(bytes, storage.read_chunks(path, size, fingerprint)))


readers = pytest.mark.parametrize("read", [read_whole, read_chunks])
fingerprints = pytest.mark.parametrize("fingerprint", [stamp, content_stamp])
SIZES = [0, 1, 511, 4 * 1024 * 1024, 4 * 1024 * 1024 + 1, 9_000_001]


@readers
@fingerprints
@pytest.mark.parametrize("size", SIZES)
def test_reading_a_source_file(tmp_path: Path, read: Any, fingerprint: Any, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(size))
    storage = LocalStorage(tmp_path)
    assert read(storage, "f", size, fingerprint(path)) == path.read_bytes()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def edit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def swap_for(kind: Callable[[Path], None]) -> Callable[[Path], None]:
    def swap(path: Path) -> None:
        path.unlink()
        kind(path)

    return swap


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "grown": (grow, "1,004 bytes now, 1,000 were scanned"),
    "shrunk": (lambda p: os.truncate(p, 10), "10 bytes could be read, 1,000 were scanned"),
    "emptied": (lambda p: os.truncate(p, 0), "0 bytes could be read, 1,000 were scanned"),
    "edited": (edit, "it was modified after the scan"),
    "touched": (lambda p: os.utime(p), "it was modified after the scan"),
    "vanished": (lambda p: p.unlink(), "cannot be read: No such file or directory"),
    "now a folder": (swap_for(lambda p: p.mkdir()), "cannot be read: Is a directory"),
    # opening a pipe for reading waits for a writer, for ever
    "now a pipe": (swap_for(lambda p: os.mkfifo(p)), "0 bytes could be read"),
}


@readers
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.timeout(20)
def test_a_source_file_that_changed(tmp_path: Path, read: Any, change: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(1000))
    before = stamp(path)
    time.sleep(0.02)
    act, reason = CHANGES[change]
    act(path)
    with pytest.raises(SourceChanged) as caught:
        read(LocalStorage(tmp_path), "f", 1000, before)
    assert caught.value.path == "f"
    assert reason in caught.value.reason


@readers
def test_content_that_changed_within_the_same_size_and_time(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(1000))
    before = content_stamp(path)
    os.utime(path, ns=(1, 1))
    assert read(LocalStorage(tmp_path), "f", 1000, before) == bytes(1000)
    edit(path)
    with pytest.raises(SourceChanged, match="its content changed after the scan"):
        read(LocalStorage(tmp_path), "f", 1000, before)


def test_a_file_that_changes_between_two_chunks(tmp_path: Path) -> None:
    path = tmp_path / "f"
    size = 9_000_000
    for change in (grow, lambda p: os.truncate(p, 5_000_000), lambda p: os.utime(p)):
        path.write_bytes(bytes(size))
        before = stamp(path)
        time.sleep(0.02)
        chunks = LocalStorage(tmp_path).read_chunks("f", size, before)
        next(chunks)
        change(path)
        with pytest.raises(SourceChanged):
            list(chunks)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "f").write_bytes(bytes(5_000_000))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        with pytest.raises(SourceChanged):
            read_whole(storage, "f", 100, "0")
        chunks = storage.read_chunks("f", 5_000_000, "0")
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError), storage.create("g"):
            raise ZeroDivisionError
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
