"""What the tests of all stores have in common: awkward names, a listing, reads."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pyarrow as pa

from wds_pipeline.storage import KEYS, Storage
from wds_pipeline_tests.stores.backends import Backend

ODD = [
    "a b.txt",
    " leading and trailing ",
    "ü/é/漢字/🙂.txt",
    "e\u0301",  # not the same as é
    "100%",
    "%41%2F",
    "a+b",
    "a#b",
    "#",
    "a?b=c&d",
    "?",
    "a;b:c@d=e,f",
    "[x]{y}(z)*!$'\"^`|~",
    "..dots..",
    ".hidden",
    "a/.b/..c/...",
    "two..dots.tar.gz",
    "d/" + "n" * 200,
    "/".join(["deep"] * 12),
    "-",
    "a-b",
    "a.txt",
    "a/x",
    "a0",
    "A/x",
]


def odd(backend: Backend) -> list[str]:
    """The names, but those that a test's server does not understand."""
    return [path for path in ODD if not backend.cannot_hold & set(path)]


def content(path: str) -> bytes:
    return f"the content of {path}".encode()


def listing(storage: Storage, after: str = "") -> dict[str, tuple[int, str]]:
    """Size and fingerprint of every file, in the order of the listing."""
    if storage.folders:
        files = sorted(walk(storage, ""), key=str.encode)
        found = {path: os.stat(storage.locate(path)) for path in files if path > after}
        return {path: (each.st_size, str(each.st_mtime_ns)) for path, each in found.items()}
    tables = list(storage.list_keys(after))
    assert all(table.schema == KEYS for table in tables)
    table = pa.concat_tables([KEYS.empty_table(), *tables])
    rows = zip(*(table[name].to_pylist() for name in KEYS.names), strict=True)
    return {path: (size, fingerprint) for path, size, fingerprint in rows}


def walk(storage: Storage, folder: str) -> Iterator[str]:
    for file in storage.list_files(folder):
        yield file.path
    for name in storage.list_folders(folder):
        yield from walk(storage, f"{folder}{name}/")


def read_whole(storage: Storage, path: str, size: int, fingerprint: str) -> bytes:
    view = memoryview(bytearray(size))
    storage.read_into(path, view, fingerprint)
    return bytes(view)


def read_chunks(storage: Storage, path: str, size: int, fingerprint: str) -> bytes:
    return b"".join(map(bytes, storage.read_chunks(path, size, fingerprint)))
