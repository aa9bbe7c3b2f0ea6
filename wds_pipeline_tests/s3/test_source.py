"""A bucket as the source: its keys in order and whole, and what changes between the scan and the read."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from wds_pipeline.errors import SourceChanged
from wds_pipeline.storage import Read, Storage
from wds_pipeline_tests.s3 import faults, servers
from wds_pipeline_tests.s3.conftest import MakeProxy
from wds_pipeline_tests.s3.project import open_s3
from wds_pipeline_tests.s3.proxy import PATIENCE
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server
from wds_pipeline_tests.s3.verbs import fingerprints

# Names that a parser of URLs, of XML, or an ordering by characters would get wrong.
ODD = [
    "a b.txt", "a+b.txt", "a%20b.txt", "a&b.txt", "a<b>.txt", "q?x=1#z.txt", "ü/é.txt", "日本/語.txt",
    "a'b\".txt", "a;b=c,d.txt", "~.txt", "a!(b)*.txt", "\U0001f600.txt", "\uffee.txt", "a/b/c/d/e.txt",
    "z" * 200 + ".txt",
]  # fmt: skip


def keys(storage: Storage, after: str = "") -> list[str]:
    return [path for table in storage.list_keys(after) for path in table["path"].to_pylist()]


def get(storage: Storage, path: str, size: int, fingerprint: str) -> bytes:
    view = memoryview(bytearray(size))
    storage.read_into(path, view, fingerprint)
    return bytes(view)


def get_chunks(storage: Storage, path: str, size: int, fingerprint: str) -> bytes:
    return b"".join(bytes(each) for each in storage.read_chunks(path, size, fingerprint))


def look(storage: Storage, path: str, size: int, fingerprint: str) -> None:
    storage.check_source(path, size, fingerprint)


def test_odd_keys(server: S3Server, make_bucket: MakeBucket) -> None:
    bucket = make_bucket(server)
    files = {path: path.encode() for path in ODD}
    servers.put_all(server.client(), bucket, {f"deep/er/{path}": d for path, d in files.items()})
    storage = open_s3(server.endpoint, bucket, "deep/er", part="source")
    assert keys(storage) == sorted(ODD, key=str.encode)
    known = fingerprints(storage)
    for path, data in files.items():
        assert get(storage, path, len(data), known[path]) == data
        assert get_chunks(storage, path, len(data), known[path]) == data
        storage.check_source(path, len(data), known[path])


def test_keys_that_no_folder_could_have(moto_server: S3Server, make_bucket: MakeBucket) -> None:
    """Two slashes in a row, dots, and a key that is also a folder of others."""
    bucket = make_bucket(moto_server)
    files = {path: path.encode() for path in ("a//b.txt", "x", "x/y", "..a/.b")}
    servers.put_all(moto_server.client(), bucket, {f"root/{path}": d for path, d in files.items()})
    storage = open_s3(moto_server.endpoint, bucket, part="source")
    assert keys(storage) == sorted(files)
    known = fingerprints(storage)
    for path, data in files.items():
        assert get(storage, path, len(data), known[path]) == data


def test_in_a_fork_of_a_process_that_has_read(server: S3Server, make_bucket: MakeBucket) -> None:
    """obstore would wait for ever there, and crash its parent."""
    bucket = make_bucket(server)
    files = {f"{number}.txt": b"x" * number for number in range(20)}
    servers.put_all(server.client(), bucket, {f"deep/er/{path}": d for path, d in files.items()})
    program = (
        "import os, sys\n"
        "from wds_pipeline.storage import Read\n"
        "from wds_pipeline_tests.s3.project import open_s3\n"
        "storage = open_s3(sys.argv[1], sys.argv[2], 'deep/er', part='source')\n"
        "rows = [row for table in storage.list_keys() for row in table.to_pylist()]\n"
        "views = [memoryview(bytearray(row['size'])) for row in rows]\n"
        "reads = [Read(r['path'], v, r['fingerprint']) for r, v in zip(rows, views)]\n"
        "storage.start_reads(reads)()\n"
        "child = os.fork()\n"
        "for view in views: view[:] = bytes(len(view))\n"
        "storage.start_reads(reads)()\n"
        "assert all(set(bytes(view)) <= set(b'x') for view in views)\n"
        "sys.exit(os.waitpid(child, 0)[1] if child else 0)\n"
    )
    command = [sys.executable, "-c", program, server.endpoint, bucket]
    subprocess.run(command, check=True, timeout=PATIENCE)


def test_a_prefix_is_a_folder(moto_server: S3Server, make_bucket: MakeBucket) -> None:
    """`raw` is not `raw2`; the marks that consoles leave for folders are no files."""
    bucket = make_bucket(moto_server)
    files = {"raw/a": b"1", "raw2/b": b"2", "raw": b"3", "raw/": b"", "raw/sub/": b""}
    servers.put_all(moto_server.client(), bucket, files)
    for prefix in ("raw", "raw/"):
        assert keys(open_s3(moto_server.endpoint, bucket, prefix, part="source")) == ["a"]
    assert keys(open_s3(moto_server.endpoint, bucket, "", part="source")) == [
        "raw",
        "raw/a",
        "raw2/b",
    ]


def test_long_listings(rclone_server: S3Server, make_bucket: MakeBucket) -> None:
    """So many that they are listed in pieces: each key once, in order; and on from any of them."""
    bucket = make_bucket(rclone_server)
    assert rclone_server.folder is not None
    chance = random.Random(3)
    wanted = sorted(
        {
            f"{chance.choice('abc')}{chance.randrange(40)}/{chance.randrange(10**6)}"
            for _ in range(7000)
        }
    )
    for path in wanted:
        file = rclone_server.folder / bucket / "root" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    storage = open_s3(rclone_server.endpoint, bucket, part="source")
    assert keys(storage) == wanted
    for at in (0, 1, 998, 999, 1000, 3500, 6000, len(wanted) - 1):
        assert keys(storage, wanted[at]) == wanted[at + 1 :]
    assert keys(storage, "b") == [path for path in wanted if path > "b"]


def test_long_listings_on_a_bad_day(
    rclone_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    """Pages that fail, end in the middle, or are lost: asked for again; none is left out."""
    bucket, proxy = make_bucket(rclone_server), make_proxy(rclone_server)
    assert rclone_server.folder is not None
    (rclone_server.folder / bucket / "root").mkdir()
    wanted = [f"{number:05d}" for number in range(6500)]
    for path in wanted:
        (rclone_server.folder / bucket / "root" / path).write_bytes(b"")
    kinds = (faults.SLOW_DOWN, faults.RESET, faults.cut(3000), faults.shorten(30_000))
    rules = [proxy.on(each, "GET", nth=[n + 2]) for n, each in enumerate(kinds)]
    assert keys(open_s3(proxy.endpoint, bucket, part="source")) == wanted
    assert all(rule.hits for rule in rules)


DATA = random.Random(4).randbytes(20_000)
CHANGES: dict[str, tuple[bytes | None, str]] = {
    "grown": (DATA + b"more", "k: "),
    "shrunk": (DATA[:100], "k: "),
    "emptied": (b"", "k: "),
    "other bytes": (DATA[:-1] + bytes([DATA[-1] ^ 1]), "written again"),
    "gone": (None, "gone"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_object_that_changed_after_the_scan(
    server: S3Server, make_bucket: MakeBucket, change: str
) -> None:
    """moto says so by If-Match; rclone ignores that, and its answer's etag says so."""
    bucket, client = make_bucket(server), server.client()
    client.put_object(Bucket=bucket, Key="root/k", Body=DATA)
    known = fingerprints(open_s3(server.endpoint, bucket, part="source"))["k"]
    data, reason = CHANGES[change]
    if data is None:
        client.delete_object(Bucket=bucket, Key="root/k")
    else:
        client.put_object(Bucket=bucket, Key="root/k", Body=data)
    readers: list[Any] = [get, get_chunks, look]
    for read in readers:
        storage = open_s3(server.endpoint, bucket, part="source")
        with pytest.raises(SourceChanged, match=reason) as error:
            read(storage, "k", len(DATA), known)
        assert error.value.path == "k"
        assert storage.usage.retries == 0


def test_the_same_bytes_again_are_no_change(moto_server: S3Server, make_bucket: MakeBucket) -> None:
    bucket, client = make_bucket(moto_server), moto_server.client()
    client.put_object(Bucket=bucket, Key="root/k", Body=DATA)
    storage = open_s3(moto_server.endpoint, bucket, part="source")
    known = fingerprints(storage)["k"]
    client.put_object(Bucket=bucket, Key="root/k", Body=DATA)
    assert get(storage, "k", len(DATA), known) == DATA
    assert get_chunks(storage, "k", len(DATA), known) == DATA
    storage.check_source("k", len(DATA), known)


def test_a_large_object_that_changes_between_two_blocks(
    rclone_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    """A part of one and a part of another is never handed on as one file."""
    bucket, client, proxy = (
        make_bucket(rclone_server),
        rclone_server.client(),
        make_proxy(rclone_server),
    )
    size = 40_000_000
    client.put_object(Bucket=bucket, Key="root/k", Body=bytes(size))
    storage = open_s3(proxy.endpoint, bucket, part="source")
    known = fingerprints(storage)["k"]
    later = proxy.on(faults.LATE, "GET", "/k$", nth=[2, 3])
    chunks = storage.read_chunks("k", size, known)
    assert bytes(next(chunks)) == bytes(8 * 1024 * 1024)
    proxy.wait_for(later)
    client.put_object(Bucket=bucket, Key="root/k", Body=b"1" * size)
    proxy.release()
    with pytest.raises(SourceChanged, match="written again"):
        for chunk in chunks:
            assert bytes(chunk) == bytes(len(chunk))
            proxy.release()


def test_what_may_not_be_read_is_one_file_s_trouble(
    moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    """Of a file with rights of its own, or in an archive: the others can be packed."""
    bucket, proxy = make_bucket(moto_server), make_proxy(moto_server)
    moto_server.client().put_object(Bucket=bucket, Key="root/k", Body=DATA)
    storage = open_s3(proxy.endpoint, bucket, part="source")
    known = fingerprints(storage)["k"]
    for code in ("AccessDenied", "InvalidObjectState"):
        proxy.clear()
        proxy.on(faults.answer(403, code), "GET", "/k$")
        for read in (get, get_chunks):
            with pytest.raises(SourceChanged, match=f"cannot be read: {code}"):
                read(storage, "k", len(DATA), known)


def test_no_error_of_a_read_is_taken_for_its_end(
    rclone_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads take reads from a queue, whose end is an IndexError too."""
    from wds_pipeline.storage.s3.source import S3Source

    source = open_s3(rclone_server.endpoint, make_bucket(rclone_server), part="source")

    def fill(self: S3Source, read: Read) -> None:
        raise IndexError("of something else")

    monkeypatch.setattr(S3Source, "_fill", fill)
    with pytest.raises(IndexError, match="of something else"):
        source.start_reads([Read("a", memoryview(bytearray(1)), "etag:x")])()
