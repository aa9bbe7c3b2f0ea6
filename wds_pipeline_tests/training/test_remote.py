"""Samples out of a bucket: the same as from a folder, whatever the servers and the network do."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wds_pipeline.errors import DestinationError, VerificationError, VersionError, WdsPipelineError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline.training.reading import in_turn
from wds_pipeline.training.remote import RemoteReader
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.conftest import (
    MakeProxy,
    aws,
    make_bucket,
    make_proxy,
    moto_server,
    rclone_server,
    server,
)
from wds_pipeline_tests.s3.faults import Fault
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server, put_all
from wds_pipeline_tests.training.conftest import plain, stored

__all__ = ["aws", "make_bucket", "make_proxy", "moto_server", "rclone_server", "server"]

PREFIX = "sets/large"
Stored = list[tuple[str, dict[str, bytes]]]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """60 samples of fields from 0 bytes to 3 MB, in shards of 2 MB and more."""
    folder = tmp_path_factory.mktemp("large")
    fields = ["bin", "txt", "json"]
    project = Project(
        folder,
        {
            "samples": {
                "required": [],
                "fields": {name: [name] for name in fields},
                "on_invalid": "keep",
            },
            "shards": {"max_bytes": 2_000_000},
            "verify": {"level": "samples"},
        },
    )
    chance = random.Random(5)
    sizes = [0, 10, 511, 5000, 40_000, 100_000, 300_000]
    for number in range(60):
        for name in chance.sample(fields, chance.randint(1, 3)):
            size = chance.choice(sizes) if number != 30 else 3_000_000
            project.write(f"{number:03d}.{name}", chance.randbytes(size))
    project.build()
    return project


def upload(project: Project, server: S3Server, bucket: str) -> str:
    """The published version, in a bucket; its URL."""
    root = project.destination
    files = {
        f"{PREFIX}/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "views" not in path.parts
    }
    put_all(server.client(), bucket, files)
    return f"s3://{bucket}/{PREFIX}"


@pytest.fixture
def url(large: Project, moto_server: S3Server, make_bucket: MakeBucket) -> str:
    return upload(large, moto_server, make_bucket(moto_server))


@pytest.fixture
def expected(large: Project) -> Stored:
    return stored(large)


def reader_of(dataset: Dataset) -> RemoteReader:
    assert isinstance(dataset.reader, RemoteReader)
    return dataset.reader


def options(endpoint: str, **more: Any) -> dict[str, Any]:
    return {"storage": {"endpoint_url": endpoint, **more}}


def test_every_sample(
    large: Project, server: S3Server, make_bucket: MakeBucket, expected: Stored
) -> None:
    dataset = open_dataset(upload(large, server, make_bucket(server)), **options(server.endpoint))
    reader, count = reader_of(dataset), len(expected)
    assert [plain(each) for each in dataset] == expected
    assert [plain(dataset[number]) for number in range(count)] == expected
    chance = np.random.default_rng(1)
    for ahead in (1, 300_000, 64 << 20):
        for fields in (None, ["txt"], ["json", "bin"]):
            numbers = chance.integers(0, count, 90)
            wanted = [
                (key, {n: d for n, d in each.items() if fields is None or n in fields})
                for key, each in (expected[number] for number in numbers)
            ]
            groups = np.array_split(numbers, 7)
            found = list(reader.read_ahead(groups, fields, ahead_bytes=ahead))
            assert [plain(each) for each in found] == wanted
            assert [each["__index__"] for each in found] == numbers.tolist()
            assert [plain(each) for each in reader.read(numbers.tolist(), fields)] == wanted


def test_how_many_requests(url: str, moto_server: S3Server, expected: Stored) -> None:
    dataset = open_dataset(url, **options(moto_server.endpoint))
    usage = dataset.catalog.storage.usage
    shards = len(dataset.catalog.shards)
    for number in range(shards):
        dataset.catalog.members(number)
    before = usage.requests
    dataset[7]
    dataset[7]
    assert usage.requests - before == 2, "one for a sample"
    before, read = usage.requests, usage.bytes_read
    assert len(list(dataset)) == len(expected)
    # Pieces of 4 MB; the reading is cut into parts of what may be held.
    total = sum(each.bytes for each in dataset.catalog.shards)
    assert usage.requests - before <= shards + total // 4_000_000 + 8
    assert usage.bytes_read - read <= total
    wanted = sum(len(each.get("txt", b"")) for _, each in expected)
    read = usage.bytes_read
    assert len(list(in_turn(reader_of(dataset), range(len(expected)), ["txt"]))) == len(expected)
    assert usage.bytes_read - read <= wanted + len(expected) * (2 * 32 * 1024 + 512)
    assert usage.retries == 0


def test_what_is_asked_for_and_not_given_out(
    url: str, moto_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded, also with a sample that is larger than the bound."""
    dataset = open_dataset(url, **options(moto_server.endpoint))
    storage, reader = dataset.catalog.storage, reader_of(dataset)
    asked = 0
    read_range = storage.read_range

    def counted(path: str, offset: int, size: int, known: Any = None) -> Any:
        nonlocal asked
        if path.endswith(".tar"):
            asked += size
        return read_range(path, offset, size, known)

    monkeypatch.setattr(storage, "read_range", counted)
    order = np.random.default_rng(0).permutation(len(dataset))
    for ahead in (200_000, 1_000_000, 5_000_000):
        asked = given = 0
        for sample in reader.read_ahead([[number] for number in order], ahead_bytes=ahead):
            # One by one, what is given out was not read along for others.
            assert asked - given <= ahead + sizes(sample) + 2 * len(order) * 512
            given += sizes(sample)
        assert asked >= given > 0


def sizes(sample: dict[str, Any]) -> int:
    return sum(len(value) for value in sample.values() if isinstance(value, bytes))


@pytest.fixture
def proxied(url: str, moto_server: S3Server, make_proxy: MakeProxy) -> Iterator[tuple[Proxy, str]]:
    yield make_proxy(moto_server), url


TAR = r"\.tar$"


@pytest.mark.parametrize(
    "fault",
    [
        faults.SLOW_DOWN,
        faults.INTERNAL_ERROR,
        faults.RESET,
        faults.LOST_REPLY,
        faults.cut(100),
        faults.shorten(300),
        faults.page("<html>log in</html>"),
    ],
    ids=lambda fault: fault.name,
)
def test_what_passes(proxied: tuple[Proxy, str], expected: Stored, fault: Fault) -> None:
    """A third of the reads fails; the epoch is whole."""
    proxy, url = proxied
    dataset = open_dataset(url, **options(proxy.endpoint))
    rule = proxy.on(fault, "GET", TAR, probability=0.3, seed=4)
    order = np.random.default_rng(0).permutation(len(expected))
    found = dataset.reader.read_ahead(np.array_split(order, 5), ahead_bytes=2_000_000)
    assert [plain(each) for each in found] == [expected[number] for number in order]
    assert rule.hits
    if fault.name != "page":  # for which another client is tried at once
        assert dataset.catalog.storage.usage.retries >= len(rule.hits)


def test_a_stall(proxied: tuple[Proxy, str], expected: Stored) -> None:
    proxy, url = proxied
    dataset = open_dataset(url, **options(proxy.endpoint, timeout_seconds=0.5))
    rules = [
        proxy.on(fault, "GET", TAR, nth=[nth])
        for nth, fault in ((1, faults.STALL), (4, faults.stall_at(50)))
    ]
    assert [plain(each) for each in dataset] == expected
    assert all(rule.hits for rule in rules)


@pytest.mark.parametrize(
    "fault", [faults.SLOW_DOWN, faults.RESET, faults.DENIED], ids=lambda fault: fault.name
)
def test_what_does_not_pass(proxied: tuple[Proxy, str], expected: Stored, fault: Fault) -> None:
    """A clear error with the shard's name, after all the samples before it."""
    proxy, url = proxied
    dataset = open_dataset(url, **options(proxy.endpoint, retry_seconds=0.4))
    bad = dataset.catalog.shards[2]
    proxy.on(fault, "GET", bad.path)
    found: list[Any] = []
    with pytest.raises(DestinationError) as error:
        for sample in dataset:
            found.append(plain(sample))
    assert found == expected[: dataset.catalog.starts[2]]
    assert str(error.value).startswith("small: version 1: ")
    assert bad.url in str(error.value)
    assert "build" not in str(error.value) and "destination" not in str(error.value)


def test_an_index_that_does_not_come(proxied: tuple[Proxy, str]) -> None:
    """The error is of the dataset, and says what a reader can do."""
    proxy, url = proxied
    dataset = open_dataset(url, **options(proxy.endpoint, retry_seconds=0.4))
    proxy.on(faults.SLOW_DOWN, "GET", "members")
    with pytest.raises(DestinationError, match=r"^small: version 1: .*\(storage.retry_seconds"):
        dataset[0]


def test_many_under_way(proxied: tuple[Proxy, str], expected: Stored) -> None:
    """As many as `concurrency` says, over several shards."""
    proxy, url = proxied
    dataset = open_dataset(url, **options(proxy.endpoint, concurrency=24))
    for number in range(len(dataset.catalog.shards)):
        dataset.catalog.members(number)
    order = list(range(0, len(expected), 2))
    first = next(iter(in_turn(dataset.reader, order)))  # a slow begin, once
    assert plain(first) == expected[0]
    held = proxy.on(faults.LATE, "GET", TAR)
    found = in_turn(dataset.reader, order, ["txt", "json"])
    samples: list[Any] = []
    thread = threading.Thread(target=lambda: samples.extend(found))
    thread.start()
    proxy.wait_held(4)
    proxy.remove(held)
    proxy.release()
    thread.join()
    assert [each["__key__"] for each in samples] == [expected[number][0] for number in order]
    assert 4 <= proxy.highest <= 24


# Shards that are not what the version says.


def key_of(dataset: Dataset, shard: int) -> tuple[str, str]:
    bucket, _, prefix = dataset.catalog.storage.url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix}/{dataset.catalog.shards[shard].path}"


def replace(server: S3Server, dataset: Dataset, shard: int, data: bytes) -> None:
    bucket, key = key_of(dataset, shard)
    server.client().put_object(Bucket=bucket, Key=key, Body=data)


def content(large: Project, dataset: Dataset, shard: int) -> bytes:
    return (large.destination / dataset.catalog.shards[shard].path).read_bytes()


def test_replaced_while_it_is_read(
    large: Project, server: S3Server, make_bucket: MakeBucket
) -> None:
    """By the etag, though one of the servers ignores If-Match."""
    dataset = open_dataset(upload(large, server, make_bucket(server)), **options(server.endpoint))
    dataset[0]
    data = bytearray(content(large, dataset, 0))
    data[-2000] ^= 1
    replace(server, dataset, 0, bytes(data))
    with pytest.raises(
        VerificationError, match=r"small: version 1: s3://.*\.tar: it was replaced"
    ) as e:
        dataset[0]
    assert "--repair" in str(e.value)


@pytest.mark.parametrize("what", ["shorter", "longer", "another", "gone"])
def test_what_is_not_the_shard(
    large: Project, url: str, moto_server: S3Server, expected: Stored, what: str
) -> None:
    dataset = open_dataset(url, **options(moto_server.endpoint))
    data = content(large, dataset, 1)
    if what == "gone":
        bucket, key = key_of(dataset, 1)
        moto_server.client().delete_object(Bucket=bucket, Key=key)
        message = "the shard is gone"
    elif what == "another":
        replace(moto_server, dataset, 1, os.urandom(len(data)))
        message = "found no tar header"
    else:
        replace(moto_server, dataset, 1, data[:-512] if what == "shorter" else data + bytes(512))
        message = "expected"
    found = []
    with pytest.raises(VerificationError, match=message) as error:
        for sample in dataset:
            found.append(plain(sample))
    assert dataset.catalog.shards[1].url in str(error.value)
    assert found == expected[: len(found)]
    assert len(found) <= dataset.catalog.starts[1]
    with pytest.raises(VerificationError, match=message):
        dataset[int(dataset.catalog.starts[1])]


def test_a_version_that_was_removed(url: str, moto_server: S3Server) -> None:
    dataset = open_dataset(url, **options(moto_server.endpoint))
    bucket, key = key_of(dataset, 0)
    dataset.catalog.members(0)
    client = moto_server.client()
    client.delete_object(Bucket=bucket, Key=key)
    client.delete_object(Bucket=bucket, Key=f"{PREFIX}/versions/00000001/manifest.json")
    with pytest.raises(VersionError, match=r"small: version 1: .*the version was removed"):
        dataset[0]


def test_verified(large: Project, url: str, moto_server: S3Server, expected: Stored) -> None:
    """One changed byte: no sample of that shard is given out."""
    dataset = open_dataset(url, verify=True, **options(moto_server.endpoint))
    assert [plain(each) for each in dataset] == expected
    data = bytearray(content(large, dataset, 1))
    data[-1500] ^= 1
    replace(moto_server, dataset, 1, bytes(data))
    again = open_dataset(url, verify=True, **options(moto_server.endpoint))
    start = int(again.catalog.starts[1])
    assert plain(again[start - 1]) == expected[start - 1]
    for number in (start, start + 1):
        with pytest.raises(VerificationError, match=r"found the digest .*; expected") as error:
            again[number]
        assert again.catalog.shards[1].url in str(error.value)


# Processes and threads.


def test_after_a_fork(url: str, moto_server: S3Server, expected: Stored, tmp_path: Path) -> None:
    """Without being pickled, as a DataLoader's workers get it; while other threads read."""
    dataset = open_dataset(url, **options(moto_server.endpoint))
    running = iter(dataset)
    next(running)
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            try:
                assert [plain(each) for each in dataset] == expected
                assert plain(dataset[3]) == expected[3]
                (tmp_path / str(number)).touch()
            finally:
                os._exit(0)
        children.append(child)
    assert len([plain(each) for each in running]) == len(expected) - 1
    for child in children:
        os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 3


def test_numbers_that_are_not(url: str, moto_server: S3Server, expected: Stored) -> None:
    dataset = open_dataset(url, **options(moto_server.endpoint))
    for wrong in (len(expected), -1):
        with pytest.raises(IndexError, match="there is no sample"):
            dataset.reader.read([0, wrong])
    found = []
    with pytest.raises(IndexError):
        for sample in dataset.reader.read_ahead([[0, 1], [2], [len(expected)]]):
            found.append(plain(sample))
    assert found == expected[:3]
    assert dataset.reader.read([]) == []

    def broken() -> Iterator[list[int]]:
        yield [4]
        raise WdsPipelineError("no more")

    running = dataset.reader.read_ahead(broken())
    assert plain(next(running)) == expected[4]
    with pytest.raises(WdsPipelineError, match="no more"):
        next(running)
