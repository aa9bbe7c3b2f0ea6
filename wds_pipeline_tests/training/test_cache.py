"""The local cache: fetched once, shared, bounded, and never wrong, whenever a process dies."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from wds_pipeline.errors import ConfigError, VerificationError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline.training import cache as caching
from wds_pipeline.training.bounded import Shares
from wds_pipeline.training.cache import Cache, CacheConfig
from wds_pipeline.training.cached_shard import BLOCK, SHARD, TABLE, WHOLE, CachedShard
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.s3.conftest import aws, make_bucket, moto_server
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server
from wds_pipeline_tests.training.conftest import plain, stored
from wds_pipeline_tests.training.test_remote import (
    PREFIX,
    Stored,
    content,
    expected,
    large,
    replace,
    upload,
    url,
)

__all__ = ["aws", "expected", "large", "make_bucket", "moto_server", "url"]


@pytest.fixture
def where(url: str, moto_server: S3Server) -> dict[str, Any]:
    """How the version in the bucket is opened."""
    return {"url": url, "storage": {"endpoint_url": moto_server.endpoint}}


def tars(dataset: Dataset) -> tuple[int, int]:
    """How many requests there were, and bytes, beside those for the version's own files."""
    for number in range(len(dataset.catalog.shards)):
        dataset.catalog.members(number)
    usage = dataset.catalog.storage.usage
    return usage.requests, usage.bytes_read


def test_fetched_once(where: dict[str, Any], expected: Stored, tmp_path: Path) -> None:
    dataset = open_dataset(**where, cache=tmp_path / "cache")
    requests, read = tars(dataset)
    total = sum(each.bytes for each in dataset.catalog.shards)
    order = np.random.default_rng(0).permutation(len(expected))
    shuffled = [expected[number] for number in order]
    found = dataset.reader.read_ahead(np.array_split(order, 6), ahead_bytes=3_000_000)
    assert [plain(each) for each in found] == shuffled
    assert dataset.catalog.storage.usage.bytes_read - read <= 1.5 * total
    assert [plain(each) for each in dataset] == expected
    assert all((folder / WHOLE).exists() for folder in folders(tmp_path / "cache"))
    requests, read = tars(dataset)
    assert [plain(each) for each in dataset] == expected
    assert [plain(dataset[number]) for number in order] == shuffled
    found = dataset.reader.read_ahead(np.array_split(order, 6), ["txt"])
    assert [each.get("txt") for each in found] == [each[1].get("txt") for each in shuffled]
    assert tars(dataset) == (requests, read), "all of it was there"
    again = open_dataset(**where, cache={"folder": tmp_path / "cache", "max_bytes": "1GB"})
    before = tars(again)
    for _ in range(2):
        assert [plain(each) for each in again] == expected
    assert tars(again) == before, "for another process too"
    for shard in dataset.catalog.shards:
        (folder,) = (tmp_path / "cache").glob(f"*/{shard.digest.replace(':', '-')}")
        assert (folder / SHARD).stat().st_size == shard.bytes


def folders(cache: Path) -> list[Path]:
    return [path.parent for path in cache.glob(f"*/*/{TABLE}")]


def test_only_what_is_wanted(where: dict[str, Any], expected: Stored, tmp_path: Path) -> None:
    """One field alone brings its blocks, and not all of the others'."""
    dataset = open_dataset(**where, cache=tmp_path, fields=["txt"])
    before = tars(dataset)[1]
    assert [each.get("txt") for each in dataset] == [each[1].get("txt") for each in expected]
    wanted = sum(len(each[1].get("txt", b"")) for each in expected)
    count = sum("txt" in each[1] for each in expected)
    assert tars(dataset)[1] - before <= wanted + count * 3 * BLOCK


def test_shared_by_digest(
    large: Project, where: dict[str, Any], moto_server: S3Server, expected: Stored,
    make_bucket: MakeBucket, tmp_path: Path,
) -> None:  # fmt: skip
    """A copy of the dataset elsewhere is read from the cache; another of the same name is not."""
    assert [plain(each) for each in open_dataset(**where, cache=tmp_path)] == expected
    copy = {**where, "url": upload(large, moto_server, make_bucket(moto_server))}
    dataset = open_dataset(**copy, cache=tmp_path)
    before = tars(dataset)
    assert [plain(each) for each in dataset] == expected
    assert tars(dataset) == before
    other = Project(tmp_path / "other", {**large.options, "shards": {"max_bytes": 1_900_000}})
    for number in range(60):
        other.write(f"{number:03d}.bin", random.Random(number).randbytes(9_000))
    other.build()
    theirs = {**where, "url": upload(other, moto_server, make_bucket(moto_server))}
    dataset = open_dataset(**theirs, cache=tmp_path)
    assert [plain(each) for each in dataset] == stored(other)


@pytest.mark.parametrize("what", ["bytes", "table", "cut", "zeros"])
def test_damaged(where: dict[str, Any], expected: Stored, tmp_path: Path, what: str) -> None:
    """It is noticed, and fetched again."""
    assert [plain(each) for each in open_dataset(**where, cache=tmp_path)] == expected
    for folder in folders(tmp_path):
        shard, table = folder / SHARD, folder / TABLE
        size = shard.stat().st_size
        if what == "bytes":
            damaged = bytearray(shard.read_bytes())
            for at in range(600, size, 70_000):
                damaged[at] ^= 255
            shard.write_bytes(damaged)
        elif what == "table":
            table.write_bytes(os.urandom(table.stat().st_size))
        elif what == "cut":
            os.truncate(shard, size // 2)
        else:
            os.truncate(shard, size // 2)
            os.truncate(shard, size)
    for _ in range(2):
        dataset = open_dataset(**where, cache=tmp_path)
        before = tars(dataset)
        assert [plain(each) for each in dataset] == expected
        assert [plain(each) for each in dataset] == expected
    assert tars(dataset) == before, "it was mended by the first"


def test_what_is_wrong_in_the_store_is_not_kept(
    large: Project, where: dict[str, Any], moto_server: S3Server, tmp_path: Path, expected: Stored
) -> None:
    """The digest of a shard tells it, once all of it is there; with `verify`, before a sample is given."""
    dataset = open_dataset(**where, cache=tmp_path)
    good = content(large, dataset, 0)
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    replace(moto_server, dataset, 0, bytes(bad))
    dataset = open_dataset(**where, cache=tmp_path)
    with pytest.raises(VerificationError, match=r"found the digest .*; expected"):
        list(dataset)
    verified = open_dataset(**where, cache=tmp_path, verify=True)
    with pytest.raises(VerificationError, match="found the digest"):
        verified[0]
    replace(moto_server, dataset, 0, good)
    verified = open_dataset(**where, cache=tmp_path, verify=True)
    assert plain(verified[0]) == expected[0]
    before = tars(verified)
    assert [plain(verified[n]) for n in range(3)] == expected[:3]
    assert tars(verified) == before, "the whole shard is there"
    assert [plain(each) for each in verified] == expected


def test_the_limit(where: dict[str, Any], expected: Stored, tmp_path: Path) -> None:
    """What was not used for longest goes; what is open stays readable."""
    limit = 6_500_000
    dataset = open_dataset(**where, cache={"folder": tmp_path, "max_bytes": limit})
    running = iter(dataset)
    assert plain(next(running)) == expected[0]
    for _ in range(2):
        assert [plain(each) for each in dataset] == expected
    assert [plain(each) for each in running] == expected[1:]
    cache = Cache(CacheConfig.of({"folder": tmp_path, "max_bytes": limit}))
    cache.trim()
    assert 0 < taken(tmp_path) <= limit
    assert 0 < len(folders(tmp_path)) < len(dataset.catalog.shards)


def taken(cache: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in cache.rglob("*") if path.is_file())


def test_least_recently_used(tmp_path: Path) -> None:
    cache = Cache(CacheConfig.of({"folder": tmp_path, "max_bytes": 10 * 200_000}))
    data = memoryview(os.urandom(200_000 // BLOCK * BLOCK))
    digests = [f"xxh3-128:{number:032x}" for number in range(12)]
    for age, digest in enumerate(digests):
        shard = cache.shard(digest, len(data))
        assert shard is not None
        shard.write(0, data)
        os.utime(shard.folder / TABLE, (1000 + age, 1000 + age))
    used = cache.shard(digests[0], len(data))
    assert used is not None
    os.utime(used.folder / TABLE, (5000, 5000))
    held = cache.shard(digests[1], len(data))
    assert held is not None
    cache.trim()
    there = {each.name for each in map(Path, folders(tmp_path))}
    assert digests[0].replace(":", "-") in there
    assert digests[1].replace(":", "-") not in there
    assert held.removed
    assert bytes(held.read(0, len(data))[0]) == bytes(data), "open, it stays readable"
    assert cache.shard(digests[1], len(data)) is not held


def test_only_so_many_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all caches of a process together, or there would be none left for connections."""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    monkeypatch.setattr(caching, "_shares", Shares())
    gc.collect()  # what other tests let go of
    before = len(os.listdir("/dev/fd"))
    caches = [Cache(CacheConfig(folder=tmp_path / str(number))) for number in range(3)]
    for cache in caches:
        for number in range(12):
            assert cache.shard(f"xxh3-128:{number:032x}", 1000) is not None
    assert 0 < len(os.listdir("/dev/fd")) - before <= 16
    held = [cache.shard(f"xxh3-128:{number:032x}", 1000) for number in range(5)]

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with warnings.catch_warnings(), monkeypatch.context() as patched:
        warnings.simplefilter("error")
        patched.setattr(CachedShard, "_open", none_left)
        assert cache.shard(f"xxh3-128:{99:032x}", 1000) is None
    assert cache.shard(f"xxh3-128:{99:032x}", 1000) is not None and all(held)


def test_a_full_disk(
    where: dict[str, Any], expected: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once; the epoch goes on, now and again."""
    left = [3]

    def full(shard: CachedShard, begin: int, data: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(shard, begin, data)

    write = CachedShard.write
    monkeypatch.setattr(CachedShard, "write", full)
    dataset = open_dataset(**where, cache=tmp_path, verify=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            assert [plain(each) for each in dataset] == expected
    messages = [str(each.message) for each in told if "cache" in str(each.message)]
    assert len(messages) == 1
    assert f"cache: {tmp_path}: No space left on device" in messages[0]


def test_what_is_written_wrong(where: dict[str, Any], tmp_path: Path) -> None:
    for given, message in (
        ({"folder": tmp_path, "max_bytes": "lots"}, "cache.max_bytes: found 'lots'"),
        ({"folder": tmp_path, "size": 3}, "cache.size: .*expected a folder"),
        ({"max_bytes": 3}, "cache.folder: "),
        (5, "cache.folder: "),
        ({"folder": tmp_path, "max_bytes": 0}, "cache.max_bytes: "),
    ):
        with pytest.raises(ConfigError, match=message):
            open_dataset(**where, cache=given)[0]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache.folder: .*/file: .*expected a folder"):
        open_dataset(**where, cache=tmp_path / "file")[0]


# Processes.

READ = """
import json, random, sys
from wds_pipeline.training import open_dataset
url, endpoint, cache, seed = sys.argv[1:]
dataset = open_dataset(
    url, storage={"endpoint_url": endpoint}, cache={"folder": cache, "max_bytes": 9_000_000}
)
expected = {each["__index__"]: each for each in map(json.loads, sys.stdin)}
order = list(range(len(dataset)))
print("begun", flush=True)
while True:
    random.Random(seed).shuffle(order)
    groups = [order[at:at + 7] for at in range(0, len(order), 7)]
    for sample in dataset.reader.read_ahead(groups, ahead_bytes=2_000_000):
        wanted = expected[sample["__index__"]]
        assert sample["__key__"] == wanted["__key__"]
        found = {n: hash_of(v) for n, v in sample.items() if n[:2] != "__"}
        assert found == wanted["fields"], sample["__key__"]
    print("epoch", flush=True)
"""
HASH = "import xxhash\nhash_of = xxhash.xxh3_64_hexdigest\n"


def start(where: dict[str, Any], cache: Path, seed: int, facts: Path) -> subprocess.Popen[str]:
    with facts.open() as file:
        return subprocess.Popen(
            [sys.executable, "-c", HASH + READ, where["url"], where["storage"]["endpoint_url"],
             str(cache), str(seed)],
            stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def facts(expected: Stored, tmp_path: Path) -> Path:
    """What the processes should read."""
    lines = [
        json.dumps(
            {
                "__index__": number,
                "__key__": key,
                "fields": {name: xxhash.xxh3_64_hexdigest(data) for name, data in fields.items()},
            }
        )
        for number, (key, fields) in enumerate(expected)
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(lines))
    return path


def ended(processes: list[subprocess.Popen[str]]) -> Iterator[str]:
    for each in processes:
        each.send_signal(signal.SIGKILL)
        yield each.communicate()[1]


def test_killed_at_any_moment(
    where: dict[str, Any], expected: Stored, facts: Path, tmp_path: Path
) -> None:
    """Processes that share a cache which is too small are killed, one round after the other; none ever
    reads a wrong byte, nor does who comes after them."""
    cache = tmp_path / "cache"
    chance = random.Random(0)
    for round_ in range(5):
        processes = [start(where, cache, 10 * round_ + number, facts) for number in range(2)]
        for each in processes:
            assert each.stdout is not None
            assert each.stdout.readline() == "begun\n", each.stderr and each.stderr.read()
        time.sleep(chance.random())  # to wait for nothing: any moment will do
        for errors in ended(processes):
            assert errors == ""
    for _ in range(2):
        dataset = open_dataset(**where, cache=cache)
        assert [plain(each) for each in dataset] == expected


def test_processes_at_once(
    where: dict[str, Any], expected: Stored, facts: Path, tmp_path: Path
) -> None:
    """Readers of one cache which is too small for them remove what the others read."""
    cache = tmp_path / "cache"
    processes = [start(where, cache, number, facts) for number in range(3)]
    for each in processes:
        assert each.stdout is not None
        for _ in range(4):  # begun, and three epochs
            line = each.stdout.readline()
            assert line in ("begun\n", "epoch\n"), each.stderr and each.stderr.read()
    assert list(ended(processes)) == [""] * 3
    assert taken(cache) <= 1.1 * 9_000_000
    assert PREFIX in where["url"]
