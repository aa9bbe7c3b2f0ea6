"""A dataset from a bucket into a bucket, and storages at hand: as wds_pipeline_tests.conftest has them
for folders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_storage import Place, StorageConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.build import BuildResult, build
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import Storage, open_storage
from wds_pipeline_tests.conftest import TINY_SHARD, Sample, digest_of, group_members, png
from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.servers import S3Server

# Tests need not wait long for what will not come; what will come does so within that on a busy machine.
PATIENT: Mapping[str, Any] = {"timeout_seconds": 20, "retry_seconds": 30}


def place(
    endpoint: str, bucket: str, prefix: str = "root", *, part: Any = "destination", **config: Any
) -> Place:
    """`s3://bucket/prefix`, of the dataset `small`."""
    single_writer = config.pop("single_writer", False)
    return Place(
        url=f"s3://{bucket}/{prefix}".rstrip("/"),
        storage=StorageConfig(endpoint_url=endpoint, **{**PATIENT, **config}),
        dataset="small",
        part=part,
        single_writer=single_writer,
    )


def open_s3(endpoint: str, bucket: str, prefix: str = "root", **config: Any) -> Storage:
    """The storage behind such a place."""
    return open_storage(place(endpoint, bucket, prefix, **config))


class S3Project:
    """The folder `raw` of a bucket, built into its folder `published`.

    `endpoints` are the URLs at which the build reaches the source and the destination: proxies, say.
    """

    def __init__(self, server: S3Server, bucket: str, *endpoints: str, **options: Any) -> None:
        self.server = server
        self.bucket = bucket
        self.client = server.client()
        self.source, self.destination = endpoints or (server.endpoint, server.endpoint)
        self.options = options

    def config(self, **storage: Any) -> DatasetConfig:
        settings = {**PATIENT, **storage}
        values: dict[str, Any] = {
            "name": "small",
            "source": {
                "url": f"s3://{self.bucket}/raw/",
                "storage": {"endpoint_url": self.source, **settings},
            },
            "destination": {
                "url": f"s3://{self.bucket}/published/",
                "storage": {"endpoint_url": self.destination, **settings},
            },
            "samples": {"required": ["png", "txt"]},
            "shards": {"max_bytes": TINY_SHARD},
            "compute": {"kind": "threads", "workers": 2},
        }
        for key, value in self.options.items():
            merge = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if merge else value
        return DatasetConfig.model_validate(values)

    def build(self, **storage: Any) -> BuildResult:
        return build(self.config(**storage))

    def add(self, first: int, count: int) -> None:
        """Puts samples of a picture, a caption and json."""
        files: dict[str, bytes] = {}
        for number in range(first, first + count):
            key = f"raw/a/{number:04d}"
            files[f"{key}.png"] = png(number)
            files[f"{key}.txt"] = f"caption of {key}".encode()
            files[f"{key}.json"] = json.dumps({"number": number}).encode()
        with ThreadPoolExecutor(8) as threads:
            for key, data in files.items():
                threads.submit(self.client.put_object, Bucket=self.bucket, Key=key, Body=data)

    @property
    def storage(self) -> Storage:
        """The destination, straight from the server."""
        return open_s3(self.server.endpoint, self.bucket, "published", single_writer=True)

    def latest(self) -> Manifest | None:
        return version.latest(self.storage)

    def objects(self, folder: str = "published/") -> dict[str, bytes]:
        """What a folder holds, by path in it."""
        found = servers.get_all(self.client, self.bucket, folder)
        return {key.removeprefix(folder): data for key, data in found.items()}

    def sealed(self) -> set[str]:
        """The names of the sealed shards; each is whole."""
        files = self.objects(f"published/{seal.FOLDER}")
        names = {name.removesuffix(seal.SEAL) for name in files if name.endswith(seal.SEAL)}
        for name in names:
            assert len(files[name + seal.TAR]) == json.loads(files[name + seal.SEAL])["bytes"]
            assert name + seal.MEMBERS in files
        return names

    def raw(self) -> Sample:
        """The raw files as samples."""
        return group_members(sorted(self.objects("raw/").items()))

    def published(self) -> Sample:
        """The newest version's samples, by tarfile; each shard is checked against its digest."""
        manifest = self.latest()
        assert manifest is not None
        files = self.objects()
        found: Sample = {}
        for shard in manifest.shards:
            data = files[shard.path]
            assert len(data) == shard.bytes
            assert digest_of(data, shard.digest) == shard.digest
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                samples = group_members(
                    (member.name, tar.extractfile(member).read())  # type: ignore[union-attr]
                    for member in tar
                )
            assert len(samples) == shard.samples
            assert not samples.keys() & found.keys()
            found |= samples
        return found
