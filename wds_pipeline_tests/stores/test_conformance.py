"""One set of tests for every kind of store: what `storage.base` promises of reading."""

from __future__ import annotations

import os
import pickle
import time
from functools import partial
from typing import Any

import pytest
import xxhash

from wds_pipeline.errors import DestinationError, SourceChanged
from wds_pipeline.storage import CONTENT, Read, open_storage
from wds_pipeline_tests.stores.backends import Backend
from wds_pipeline_tests.stores.verbs import ODD, content, listing, odd, read_chunks, read_whole

# A word to asyncio's users: aiohttp is handed a part of an upload at a time.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

readers = pytest.mark.parametrize("read", [read_whole, read_chunks])


# ------------------------------------------------------------------------------------ looking, reading


def test_odd_keys(backend: Backend) -> None:
    """Every name comes back as it was given, in every verb."""
    names = odd(backend)
    backend.fill({path: content(path) for path in names})
    storage = backend.open()
    source = backend.open("source")
    source.check()
    found = listing(source)
    assert list(found) == sorted(names, key=str.encode)
    for path in names:
        assert storage.read(path) == content(path), path
        info = storage.stat(path)
        assert info is not None, path
        assert (info.path, info.size) == (path, len(content(path)))
        size, fingerprint = found[path]
        assert size == len(content(path))
        assert read_whole(source, path, size, fingerprint) == content(path)
        assert read_chunks(source, path, size, fingerprint) == content(path)
        source.check_source(path, size, fingerprint)
        with storage.open(path) as file:
            assert file.read() == content(path)


def test_a_listing_from_any_file_on(backend: Backend) -> None:
    """A scan that was interrupted goes on behind the last file that it saw."""
    backend.fill(dict.fromkeys(ODD, b"x"))
    source = backend.open("source")
    whole = listing(source)
    paths = list(whole)
    for after in [*paths[::3], "a", "a/", "b", "d/", "zzz", "\U0010ffff"]:
        wanted = [path for path in paths if path.encode() > after.encode()]
        assert list(listing(source, after)) == wanted, after
    assert listing(backend.open("source")) == whole, "the same, as long as nothing changes"


def test_folders(backend: Backend) -> None:
    files = {"top": b"1", "a/x": b"22", "a/y": b"", "a/b/c/z": b"333", "ab/q": b"4"}
    backend.fill(files)
    storage = backend.open()
    for folder in ("a", "a/"):
        found = {file.path: file.size for file in storage.list_files(folder)}
        assert found == {"a/x": 2, "a/y": 0}
        assert sorted(storage.list_names(folder)) == ["x", "y"]
        assert storage.list_folders(folder) == ["b"]
    assert storage.list_folders() == ["a", "ab"]
    assert [file.path for file in storage.list_files()] == ["top"]
    assert storage.list_folders("a/b") == ["c"]
    if not storage.folders:
        assert storage.stat("a") is None
    assert not storage.is_empty()


def test_what_is_not_there(backend: Backend) -> None:
    backend.fill({"there/is": b"one"})
    storage = backend.open()
    for path in ("not", "there/not", "there/is/not", "not/there"):
        assert storage.stat(path) is None, path
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            storage.read(path)
        with pytest.raises((FileNotFoundError, NotADirectoryError)), storage.open(path) as file:
            file.read()
    for folder in ("not", "there/not/"):
        assert list(storage.list_files(folder)) == []
        assert list(storage.list_names(folder)) == []
        assert storage.list_folders(folder) == []


def test_the_time_of_modification(writable: Backend) -> None:
    storage = writable.open()
    before = time.time()
    storage.put("a", b"x")
    info = storage.stat("a")
    assert info is not None
    assert before - 60 < info.modified < time.time() + 60
    (listed,) = storage.list_files()
    assert abs(listed.modified - info.modified) < 2


@pytest.mark.parametrize("size", [0, 1, 100_000, 20_000_001])
def test_a_seekable_stream(backend: Backend, size: int) -> None:
    data = os.urandom(size)
    backend.fill({"f": data})
    with backend.open().open("f") as file:
        assert file.seek(0, 2) == size
        assert file.seek(0) == 0
        buffer = bytearray(size + 10)
        got = 0
        while count := file.readinto(memoryview(buffer)[got : got + 300_000]):  # type: ignore[attr-defined]
            got += count
        assert (got, bytes(buffer[:got])) == (size, data)
        for start in (size // 2, 3, max(0, size - 5), size, size + 5, 0):
            assert file.seek(start) == start
            assert file.read(1000) == data[start : start + 1000]
        file.seek(size // 3)
        assert file.read() == data[size // 3 :]


def test_ranges(backend: Backend) -> None:
    """Any bytes of a file, many at a time, all of one state of it; also where a name is odd."""
    data = os.urandom(300_000)
    files = {"f": data, "d/a b#?ü": data[:1000], "x//y": data[:100]}
    if backend.name != "s3-moto":
        del files["x//y"]  # one slash in folders; others refuse it
    backend.fill(files)
    storage = backend.open()
    for path, whole in files.items():
        known = None
        for begin, size in ((0, len(whole)), (0, 1), (len(whole) - 1, 1), (37, 60)):
            found, known = storage.read_range(path, begin, size, known)
            assert bytes(found) == whole[begin : begin + size], path
            assert known.size == len(whole)
        with pytest.raises(SourceChanged):
            storage.read_range(path, len(whole) - 1, 2)
        with pytest.raises(SourceChanged):
            storage.read_range(path, len(whole) + 5, 2, known)
    _, known = storage.read_range("f", 0, 1)
    work = [storage.start(partial(storage.read_range, "f", at, 100, known)) for at in range(500)]
    assert [bytes(each.result()[0]) for each in work] == [data[at : at + 100] for at in range(500)]
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        storage.read_range("not/there", 0, 1)
    if not storage.folders:
        # What lies beyond the end costs no bytes, or one.
        least = sum(len(whole) + 62 for whole in files.values()) + 1 + 500 * 100
        assert least <= storage.usage.bytes_read <= least + 2 * len(files)


def test_a_range_of_a_file_that_was_replaced(writable: Backend) -> None:
    """It is noticed where the store tells one state from another."""
    storage = writable.open()
    storage.put("f", b"a" * 1000)
    data, known = storage.read_range("f", 0, 10)
    assert data == b"a" * 10
    storage.put("f", b"b" * 999)
    with pytest.raises(SourceChanged):
        storage.read_range("f", 990, 10, known)
    storage.put("f", b"c" * 1000)
    if writable.name.startswith(("s3", "az")):  # the emulator of gs tells nothing with the bytes
        with pytest.raises(SourceChanged, match="it was replaced while it was read"):
            storage.read_range("f", 0, 10, known)


def test_many_small_files(backend: Backend) -> None:
    """Many at a time; each fills its own place."""
    files = {f"d{number % 7}/{number:04d}": os.urandom(number % 50) for number in range(200)}
    backend.fill(files)
    source = backend.open("source")
    found = listing(source)
    assert list(found) == sorted(files)
    whole = memoryview(bytearray(sum(map(len, files.values()))))
    reads = []
    at = 0
    for path, data in files.items():
        reads.append(Read(path, whole[at : at + len(data)], found[path][1]))
        at += len(data)
    waits = [source.start_reads(reads[:100]), source.start_reads(reads[100:])]
    for wait in waits:
        wait()
    assert bytes(whole) == b"".join(files.values())


def test_nothing_to_read(backend: Backend) -> None:
    backend.fill({"f": b"x"})
    backend.open("source").start_reads([])()


@pytest.mark.parametrize("size", [0, 1, 8 * 1024 * 1024, 20_000_001])
def test_a_large_file_in_chunks(backend: Backend, size: int) -> None:
    data = os.urandom(size)
    backend.fill({"f": data})
    source = backend.open("source")
    ((path, (listed, fingerprint)),) = listing(source).items()
    assert (path, listed) == ("f", size)
    assert read_chunks(source, "f", size, fingerprint) == data
    assert read_whole(source, "f", size, fingerprint) == data
    by_content = CONTENT + xxhash.xxh3_128_hexdigest(data)
    assert read_chunks(source, "f", size, by_content) == data
    assert read_whole(source, "f", size, by_content) == data
    source.check_source("f", size, by_content)


@pytest.mark.timeout(60)
def test_one_request_at_a_time(backend: Backend) -> None:
    """Listing folders ahead takes requests of their own: nothing waits for itself."""
    files = {f"{a}/{b}/{c}/{d}": b"x" for a in "pq" for b in "rs" for c in "tu" for d in "vw"}
    backend.fill(files)
    source = backend.open("source", concurrency=1)
    found = listing(source)
    assert list(found) == sorted(files)
    views = {path: memoryview(bytearray(1)) for path in files}
    source.start_reads([Read(path, views[path], found[path][1]) for path in files])()
    assert {bytes(view) for view in views.values()} == {b"x"}
    assert read_chunks(source, "p/r/t/v", *found["p/r/t/v"]) == b"x"


# ------------------------------------------------------------------------------------ changed sources


def change(backend: Backend, path: str, data: bytes, before: tuple[int, str]) -> None:
    """Writes a file anew. Times are of a second's grain in some stores: later than what was listed."""
    backend.fill({path: data})
    deadline = time.monotonic() + 10
    while listing(backend.open("source"))[path] == before and data:
        assert time.monotonic() < deadline, "the listing never shows it"
        backend.fill({path: data})


@readers
@pytest.mark.parametrize("data", [b"other", b"longer than it was", b"x", b""])
def test_a_source_file_that_changed(backend: Backend, read: Any, data: bytes) -> None:
    backend.fill({"f": b"first", "g": b"same"})
    source = backend.open("source")
    before = listing(source)
    change(backend, "f", data, before["f"])
    for again in (source, backend.open("source")):
        with pytest.raises(SourceChanged) as caught:
            read(again, "f", *before["f"])
        assert caught.value.path == "f"
        with pytest.raises(SourceChanged):
            again.check_source("f", *before["f"])
        assert read(again, "g", *before["g"]) == b"same"


@readers
def test_content_that_changed(backend: Backend, read: Any) -> None:
    backend.fill({"f": b"first"})
    fingerprint = CONTENT + xxhash.xxh3_128_hexdigest(b"first")
    source = backend.open("source")
    assert read(source, "f", 5, fingerprint) == b"first"
    backend.fill({"f": b"other"})
    with pytest.raises(SourceChanged, match="f: "):
        read(source, "f", 5, fingerprint)


@readers
def test_a_source_file_that_is_gone(backend: Backend, read: Any) -> None:
    backend.fill({"f": b"first", "keep": b"x", "empty": b""})
    source = backend.open("source")
    before = listing(source)
    backend.remove("f")
    backend.remove("empty")
    for path in ("f", "empty"):
        if path == "f" or read is read_whole:  # nobody reads an empty file in chunks
            with pytest.raises(SourceChanged, match=r"cannot be read|is gone") as caught:
                read(source, path, *before[path])
            assert caught.value.path == path
        with pytest.raises(SourceChanged, match=r"cannot be read|is gone"):
            source.check_source(path, *before[path])


def test_a_file_that_changes_between_two_chunks(backend: Backend) -> None:
    size = 70_000_000
    backend.fill({"f": bytes(size)})
    source = backend.open("source")
    before = listing(source)["f"]
    chunks = source.read_chunks("f", *before)
    next(chunks)
    change(backend, "f", b"\1" * size, before)
    with pytest.raises(SourceChanged):
        for _ in chunks:
            pass


def test_one_of_many_changed(backend: Backend) -> None:
    """The wait says which; the others are not written to any more when it returns."""
    files = {f"{number:03d}": b"first" for number in range(40)}
    backend.fill(files)
    source = backend.open("source")
    found = listing(source)
    change(backend, "017", b"other", found["017"])
    views = {path: memoryview(bytearray(5)) for path in files}
    wait = source.start_reads([Read(path, views[path], found[path][1]) for path in files])
    with pytest.raises(SourceChanged) as caught:
        wait()
    assert caught.value.path == "017"


# --------------------------------------------------------------------------------------- all the rest


def test_a_place_goes_to_another_process(backend: Backend) -> None:
    backend.fill({"f": b"x"})
    place = pickle.loads(pickle.dumps(backend.place()))
    assert place == backend.place()
    assert open_storage(place).read("f") == b"x"


def test_what_is_asked_is_counted(backend: Backend) -> None:
    backend.fill({"f": bytes(1000), "g/h": bytes(10)})
    source = backend.open("source")
    found = listing(source)
    if source.folders:
        assert source.usage.requests == 0
        return
    assert source.usage.list >= 1
    before = source.usage.get
    read_whole(source, "f", *found["f"])
    assert source.usage.get == before + 1
    assert source.usage.bytes_read == 1000
    if backend.writable:
        storage = backend.open()
        storage.put("new", bytes(500))
        assert (storage.usage.put, storage.usage.bytes_written) == (1, 500)


def test_what_is_read_only(backend: Backend) -> None:
    if backend.writable:
        pytest.skip("it can be written")
    storage = backend.open()
    backend.fill({"f": b"x"})
    for write in (
        lambda: storage.put("f", b""),
        lambda: storage.put_if_absent("f", b""),
        lambda: storage.check_put_if_absent(),
        lambda: storage.link("g", "f"),
        lambda: storage.touch("f"),
        lambda: storage.delete("f"),
    ):
        with pytest.raises(
            DestinationError, match=r"can be a source, not a destination|is no destination"
        ):
            write()
