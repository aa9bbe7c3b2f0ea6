"""Exports of a version in a bucket: what they name is there, and streaming-wds's index has the keys."""

from __future__ import annotations

import gzip
import json
import posixpath

import pytest

from wds_pipeline.config_storage import StorageConfig
from wds_pipeline.dataset import export
from wds_pipeline.dataset.tar_indexing import index_tars
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server


@pytest.fixture
def project(moto_server: S3Server, make_bucket: MakeBucket) -> S3Project:
    names = [name for name in export.names() if name != "energon"]
    project = S3Project(moto_server, make_bucket(moto_server), exports=[*names, "energon"])
    project.add(0, 12)
    return project


def test_a_build_publishes_them(project: S3Project) -> None:
    manifest = project.build().manifest
    storage = project.storage
    folder = export.folder(1)
    assert {f"{folder}{name}/{export.DONE}" for name in export.names()} <= set(
        export.files(storage, folder)
    )
    assert storage.list_folders("versions/00000001") == ["exports"]
    shards = [shard.path for shard in manifest.shards]
    index = json.loads(storage.read(f"{folder}wids/train.json"))
    urls = [posixpath.normpath(f"{folder}wids/{each['url']}") for each in index["shardlist"]]
    assert urls == shards
    keys = json.loads(gzip.decompress(storage.read(f"{folder}streaming_wds/train/index.wds")))
    for each in keys["shards"]:
        project.client.head_object(Bucket=project.bucket, Key=each["key"])
    assert keys["num_items"] == 12
    pipes = storage.read(f"{folder}urls/train.pipe.txt").decode().splitlines()
    assert pipes == [f"pipe:aws s3 cp {storage.locate(path)} -" for path in shards]
    for path in shards:
        assert storage.stat(path.removesuffix(".tar") + ".tar.idx") is not None
    assert project.build().status == "unchanged"


def test_tars_in_a_bucket_are_indexed(project: S3Project, moto_server: S3Server) -> None:
    manifest = project.build().manifest
    config = StorageConfig(endpoint_url=moto_server.endpoint)
    url = f"s3://{project.bucket}/published/shards/"
    done = index_tars([url], config=config)
    assert done.index.samples == 12
    facts = {row.path: (row.bytes, row.digest) for row in done.index.rows}
    assert facts == {
        shard.path.removeprefix("shards/"): (shard.bytes, shard.digest) for shard in manifest.shards
    }
    assert not any(row.findings for row in done.index.rows)
    again = index_tars([f"{url}*.tar"], config=config)
    assert (again.read, again.kept) == ([], len(manifest.shards))
