"""Every verb of a storage, with what it should do to the same few files, whatever happens on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wds_pipeline.storage import Read, Storage
from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.project import open_s3
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import S3Server

DATA = random.Random(1).randbytes(30_000)
FILES = {"k": DATA, "folder/a": b"a", "folder/b": b"bb", "folder/deeper/c": b"ccc"}


@dataclass
class Trial:
    """A storage on FILES, what a scan would know of them, and another way to look at them."""

    storage: Storage
    known: dict[str, str]
    stored: Callable[[], dict[str, bytes]]


class World:
    """A bucket with FILES under any number of prefixes, and a proxy before it."""

    def __init__(self, server: S3Server, bucket: str, proxy: Proxy) -> None:
        self.server = server
        self.bucket = bucket
        self.proxy = proxy
        self.client = server.client()
        self._made = 0

    def trial(self, part: str = "destination", **config: Any) -> Trial:
        """One more of the prefixes; the proxy has forgotten what was before."""
        self._made += 1
        prefix = f"p{self._made}/"
        files = {prefix + path: data for path, data in FILES.items()}
        servers.put_all(self.client, self.bucket, files)
        straight = open_s3(self.server.endpoint, self.bucket, prefix, part="source")
        known = fingerprints(straight)
        self.proxy.clear()

        def stored() -> dict[str, bytes]:
            found = servers.get_all(self.client, self.bucket, prefix)
            return {key.removeprefix(prefix): data for key, data in found.items()}

        storage = open_s3(self.proxy.endpoint, self.bucket, prefix, part=part, **config)
        return Trial(storage, known, stored)


def fingerprints(storage: Storage) -> dict[str, str]:
    """Of all files, by path."""
    tables = list(storage.list_keys())
    columns = ([x for t in tables for x in t[name].to_pylist()] for name in ("path", "fingerprint"))
    return dict(zip(*columns, strict=True))


def read(trial: Trial) -> None:
    assert trial.storage.read("k") == DATA


def open_(trial: Trial) -> None:
    with trial.storage.open("k") as file:
        assert file.read(10) == DATA[:10]
        file.seek(-10, 2)
        assert file.read() == DATA[-10:]
        file.seek(0)
        assert file.read() == DATA


def stat(trial: Trial) -> None:
    found = trial.storage.stat("k")
    assert found is not None
    assert found.size == len(DATA)


def stat_of_none(trial: Trial) -> None:
    assert trial.storage.stat("none") is None


def list_files(trial: Trial) -> None:
    found = {file.path: file.size for file in trial.storage.list_files("folder")}
    assert found == {"folder/a": 1, "folder/b": 2}


def list_folders(trial: Trial) -> None:
    assert trial.storage.list_folders() == ["folder"]


def is_empty(trial: Trial) -> None:
    assert not trial.storage.is_empty()


def list_keys(trial: Trial) -> None:
    rows = [row for table in trial.storage.list_keys() for row in table.to_pylist()]
    assert [row["path"] for row in rows] == sorted(FILES)
    assert [row["size"] for row in rows] == [len(FILES[path]) for path in sorted(FILES)]
    assert [row["fingerprint"] for row in rows] == [trial.known[path] for path in sorted(FILES)]


def start_reads(trial: Trial) -> None:
    views = {path: memoryview(bytearray(len(data))) for path, data in FILES.items()}
    reads = [Read(path, view, trial.known[path]) for path, view in views.items()]
    trial.storage.start_reads(reads)()
    assert {path: bytes(view) for path, view in views.items()} == FILES


def read_chunks(trial: Trial) -> None:
    chunks = trial.storage.read_chunks("k", len(DATA), trial.known["k"])
    assert b"".join(bytes(each) for each in chunks) == DATA


def check_source(trial: Trial) -> None:
    trial.storage.check_source("k", len(DATA), trial.known["k"])


def put(trial: Trial) -> None:
    trial.storage.put("k", b"new")
    assert trial.stored() == {**FILES, "k": b"new"}


def create(trial: Trial) -> None:
    with trial.storage.create("new") as file:
        file.write(DATA)
        file.write(memoryview(b"more"))
    assert trial.stored() == {**FILES, "new": DATA + b"more"}


def link(trial: Trial) -> None:
    trial.storage.link("copy", "k")
    assert trial.stored() == {**FILES, "copy": DATA}


def touch(trial: Trial) -> None:
    assert trial.storage.touch("k")
    assert trial.stored() == FILES


def touch_of_none(trial: Trial) -> None:
    assert not trial.storage.touch("none")
    assert trial.stored() == FILES


def delete(trial: Trial) -> None:
    trial.storage.delete("k")
    assert trial.stored() == {path: data for path, data in FILES.items() if path != "k"}


Verb = Callable[[Trial], None]
OF_A_SOURCE: list[Verb] = [list_keys, start_reads, read_chunks, check_source]
READS: list[Verb] = [read, open_, list_files, list_keys, start_reads, read_chunks]
LOOKS: list[Verb] = [*READS, stat, stat_of_none, list_folders, is_empty, check_source]
WRITES: list[Verb] = [put, create, link, touch, touch_of_none, delete]
