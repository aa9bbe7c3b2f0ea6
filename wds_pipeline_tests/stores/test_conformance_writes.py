"""One set of tests for every store that can be written: what `storage.base` promises of writing."""

from __future__ import annotations

import gc
import os
import threading
import time
from typing import Any

import pytest

from wds_pipeline.errors import DestinationError
from wds_pipeline.storage import TEMPORARY
from wds_pipeline_tests.stores.backends import Backend
from wds_pipeline_tests.stores.verbs import content, listing, odd

# A word to asyncio's users: aiohttp is handed a part of an upload at a time.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


def test_put_read_delete(writable: Backend) -> None:
    storage = writable.open()
    storage.check()
    assert storage.is_empty()
    storage.put("a/b/c.bin", b"one")
    storage.put("a/b/c.bin", b"three")
    storage.put("empty", b"")
    assert not storage.is_empty()
    assert storage.read("a/b/c.bin") == b"three"
    assert storage.read("empty") == b""
    for _ in range(2):
        storage.delete("a/b/c.bin")
        storage.delete("never/was")
    assert storage.stat("a/b/c.bin") is None
    assert storage.list_folders() == [], "folders that became empty are gone"
    storage.delete("empty")
    assert storage.is_empty()


def test_odd_keys_are_written(writable: Backend) -> None:
    storage = writable.open()
    names = odd(writable)
    for path in names:
        storage.put(path, b"old")
        with storage.create(path) as file:
            file.write(content(path)[:3])
            file.write(memoryview(content(path))[3:])
    assert sorted(listing(writable.open("source"))) == sorted(names)
    for path in names:
        assert storage.read(path) == content(path)
        storage.link(f"linked/{path}", path)
        assert storage.touch(path)
        assert storage.put_if_absent(f"new/{path}", b"new")
        assert not storage.put_if_absent(path, b"new")
        assert storage.read(f"linked/{path}") == content(path)
        for each in (path, f"linked/{path}", f"new/{path}"):
            storage.delete(each)
    assert storage.is_empty()


@pytest.mark.parametrize("size", [0, 1, 300_000, 40_000_001])
def test_what_is_streamed_is_whole(writable: Backend, size: int) -> None:
    data = os.urandom(size)
    storage = writable.open()
    with storage.create("x/f") as file:
        for start in range(0, size, 3_000_000):
            file.write(memoryview(data)[start : start + 3_000_000])
        assert storage.stat("x/f") is None
    assert storage.read("x/f") == data
    assert listing(writable.open("source"))["x/f"][0] == size


@pytest.mark.parametrize(
    ("error", "size"),
    [(ValueError("stop"), 3), (KeyboardInterrupt(), 30_000_000), (SystemExit(1), 0)],
)
def test_whole_or_absent(writable: Backend, error: BaseException, size: int) -> None:
    """A block that raises leaves what was there, or nothing; also when garbage is collected."""
    storage = writable.open()
    storage.put("old", b"old")
    for path in ("old", "new"):
        with pytest.raises(type(error)), storage.create(path) as file:
            file.write(bytes(size))
            raise error
    gc.collect()
    assert storage.read("old") == b"old"
    assert list(listing(writable.open("source"))) == ["old"]


def test_put_if_absent(writable: Backend) -> None:
    storage = writable.open()
    storage.check_put_if_absent()
    assert storage.put_if_absent("v/1", b"one")
    assert not storage.put_if_absent("v/1", b"two")
    assert not writable.open().put_if_absent("v/1", b"three")
    assert storage.read("v/1") == b"one"
    storage.delete("v/1")
    assert storage.put_if_absent("v/1", b"")
    assert not storage.put_if_absent("v/1", b"x")
    assert list(listing(writable.open("source"))) == ["v/1"], "nothing else stays"


def test_put_if_absent_lets_exactly_one_win(writable: Backend) -> None:
    if not writable.conditional:
        pytest.skip(f"{writable.name} has no conditional create: one writer only")
    storages = [writable.open() for _ in range(8)]
    storages[0].check_put_if_absent()
    for turn in range(5):
        barrier = threading.Barrier(8)
        won: list[int] = []
        failed: list[BaseException] = []

        def write(number: int, turn: int = turn, sync: Any = (barrier, won, failed)) -> None:
            barrier, won, failed = sync
            barrier.wait()
            try:
                if storages[number].put_if_absent(f"v/{turn}", str(number).encode()):
                    won.append(number)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert len(won) == 1
        assert storages[0].read(f"v/{turn}") == str(won[0]).encode()
    assert not [path for path in listing(writable.open("source")) if TEMPORARY in path]


def test_link(writable: Backend) -> None:
    storage = writable.open()
    data = os.urandom(9_000_000)
    storage.put("a", data)
    storage.put("c", b"2")
    storage.put("views/b", b"old")
    for _ in range(2):
        storage.link("views/b", "a")
        assert storage.read("views/b") == data
        assert storage.same_file("a", "views/b")
    storage.link("views/b", "c")
    assert storage.read("views/b") == b"2"
    assert storage.read("a") == data
    with pytest.raises(DestinationError, match=r"views/d|gone"):
        storage.link("views/d", "gone")
    assert list(listing(writable.open("source"))) == ["a", "c", "views/b"]


def test_touch(writable: Backend) -> None:
    storage = writable.open()
    assert not storage.touch("a")
    assert storage.stat("a") is None
    storage.put("a", b"kept")
    first = storage.stat("a")
    assert first is not None
    deadline = time.monotonic() + 10
    while True:
        assert storage.touch("a")
        now = storage.stat("a")
        assert now is not None
        if now.modified > first.modified:
            break
        assert time.monotonic() < deadline, "the time never changes"
        time.sleep(0.05)
    assert storage.read("a") == b"kept"


def test_writers_and_deleters_in_one_folder(writable: Backend) -> None:
    failed: list[BaseException] = []

    def churn(name: str) -> None:
        storage = writable.open()
        try:
            for _ in range(6):
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
    left = writable.open()
    assert not [*left.list_files("deep/er"), *left.list_files("deep/linked")]
    # rclone now and then forgets a temporary file of its own, in a folder that then stays.
    assert left.is_empty() or writable.name == "s3-rclone"


def test_unfinished_writes_do_not_count(writable: Backend) -> None:
    storage = writable.open()
    storage.put(f"{TEMPORARY}0123-wds_pipeline.json", b"half")
    assert storage.is_empty()
