"""A seal says that a shard is whole; one that cannot be read says what to do."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline_tests.conftest import Project

SEAL = Seal("train-000001-" + "a" * 32, "train", 1, "a" * 32, 5, 15, 10240, "xxh3-128:00")


def test_names() -> None:
    name = seal.shard_name("train", 42, "ab" * 16)
    assert name == "train-000042-" + "ab" * 16
    assert seal.partition_of(name) == "train-000042"
    assert seal.partition_of(seal.shard_name("my_split", 1234567, "c")) == "my_split-1234567"
    assert seal.path(name, seal.TAR) == f"shards/{name}.tar"


def test_a_seal_is_read_back(project: Project) -> None:
    assert seal.read_seal(project.storage, SEAL.name) is None
    project.storage.put(seal.path(SEAL.name, seal.SEAL), seal.dump_seal(SEAL))
    assert seal.read_seal(project.storage, SEAL.name) == SEAL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"null",
        b'{"format_version": 1}',
        b'{"format_version": "x"}',
    ],
)
def test_a_damaged_seal(project: Project, data: bytes) -> None:
    project.storage.put(seal.path(SEAL.name, seal.SEAL), data)
    with pytest.raises(VerificationError, match=f"{SEAL.name}.*not a seal.*remove it to have the"):
        seal.read_seal(project.storage, SEAL.name)


def test_a_newer_seal(project: Project) -> None:
    values = json.loads(seal.dump_seal(SEAL)) | {"format_version": 2, "and": "more"}
    project.storage.put(seal.path(SEAL.name, seal.SEAL), json.dumps(values).encode())
    with pytest.raises(VersionError, match=r"format version 2; this release reads up to 1. Update"):
        seal.read_seal(project.storage, SEAL.name)


def test_a_damaged_seal_is_written_anew_by_the_next_build(project: Project) -> None:
    project.add(0, 10)
    project.build()
    shard = project.latest().shards[0]
    (project.destination / seal.path(shard.name, seal.SEAL)).write_bytes(b"{")
    project.add(10, 5)
    assert project.build().status == "published"
    assert seal.read_seal(project.storage, shard.name)
    assert project.published() == project.raw()


def test_parquet(project: Project) -> None:
    table = pa.table({"key": ["a", "b"], "size": [1, 2]})
    data = seal.parquet_bytes(table)
    assert data == seal.parquet_bytes(table)
    assert seal.parse_parquet(data, "x").equals(table)
    for bad in (b"", b"PAR1", data[:-5], data[:40] + data[60:]):
        with pytest.raises(VerificationError, match=r"some/where: damaged"):
            seal.parse_parquet(bad, "some/where")
