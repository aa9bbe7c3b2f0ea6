"""Transforms whose shards are sealed under another name than planned: where nothing can be renamed, by a copy
that the server makes."""

from __future__ import annotations

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.build import build
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

MIXED = "wds_pipeline_tests.dataset.some_transforms:mixed"


def test_rejected_samples_in_a_bucket(moto_server: S3Server, make_bucket: MakeBucket) -> None:
    project = S3Project(moto_server, make_bucket(moto_server))
    project.add(0, 14)
    values = project.config().model_dump()
    values["samples"]["max_quarantined"] = 1
    config = DatasetConfig.model_validate({**values, "transforms": [MIXED]})
    manifest = build(config).manifest
    assert manifest.quarantined == {"transform_failed": 2}
    assert sum(each.of_source for each in manifest.splits.values()) == 12
    names = {shard.name for shard in manifest.shards}
    storage = project.storage
    stored = [path.removesuffix(seal.TAR) for path in storage.list_names(seal.FOLDER)]
    assert {name for name in stored if "." not in name} == names, "no planned tar is left"
    assert build(config).status == "unchanged"
