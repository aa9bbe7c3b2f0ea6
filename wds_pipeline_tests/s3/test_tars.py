"""The verbs on tars, from a bucket into a bucket; and a version that is copied to another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset import version
from wds_pipeline.dataset.tars import read
from wds_pipeline.dataset.tars.cat import cat
from wds_pipeline.dataset.tars.copy import copy_tars, copy_version
from wds_pipeline.dataset.tars.diff import diff_tars
from wds_pipeline.dataset.tars.inputs import find_inputs
from wds_pipeline.dataset.tars.shuffle import shuffle
from wds_pipeline.dataset.tars.sort import sort
from wds_pipeline.dataset.tars.split import split
from wds_pipeline.errors import DataError, DestinationError
from wds_pipeline.training import open_dataset
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.s3.project import S3Project, open_s3
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

MEMBERS = [(f"{n:02d}.{field}", bytes([n]) * 3000) for n in range(12) for field in ("jpg", "txt")]


def test_from_a_bucket_into_a_bucket(
    moto_server: S3Server, make_bucket: MakeBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_server.endpoint)
    monkeypatch.setattr(read, "LARGE", 4000)
    bucket = f"s3://{make_bucket(moto_server)}"
    client, name = moto_server.client(), bucket[5:]
    for number in range(2):
        data = make(MEMBERS[12 * number :][:12])
        client.put_object(Bucket=name, Key=f"in/{number}.tar", Body=data)
    (tmp_path / "whole.tar").write_bytes(make(MEMBERS))
    cat([f"{bucket}/in/{{0..1}}.tar"], f"{bucket}/all.tar")
    shuffle([f"{bucket}/all.tar"], f"{bucket}/mixed.tar")
    sort([f"{bucket}/mixed.tar"], f"{bucket}/sorted.tar")
    _, parts = split([f"{bucket}/sorted.tar"], f"{bucket}/parts/x-%02d.tar", max_samples=5)
    assert parts == [f"{bucket}/parts/x-{n:02d}.tar" for n in range(3)]
    for found in (f"{bucket}/all.tar", f"{bucket}/parts/", f"{bucket}/mixed.tar"):
        assert diff_tars([found], [str(tmp_path / "whole.tar")]).changes == []
    with pytest.raises(DestinationError, match="--force"):
        cat([f"{bucket}/all.tar"], f"{bucket}/sorted.tar")
    with pytest.raises(DestinationError, match="one of the inputs"):
        split([f"{bucket}/parts/"], f"{bucket}/parts/x-%02d.tar", max_samples=5, force=True)
    client.put_object(Bucket=name, Key="in/1.tar", Body=make(MEMBERS)[:9000])
    with pytest.raises(DataError, match="ends within"):
        cat([f"{bucket}/in/"], f"{bucket}/none.tar")
    keys = {each["Key"] for each in client.list_objects_v2(Bucket=name)["Contents"]}
    assert "none.tar" not in keys
    assert not client.list_multipart_uploads(Bucket=name).get("Uploads")
    folder = open_s3(moto_server.endpoint, name, "copies")
    assert copy_tars(find_inputs([f"{bucket}/parts/*.tar"]), folder).tars == 3
    assert copy_tars(find_inputs([f"{bucket}/parts/*.tar"]), folder).there == 3


def test_a_version_goes_to_another_bucket(
    moto_server: S3Server, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    project = S3Project(moto_server, make_bucket(moto_server))
    project.add(0, 12)
    manifest = project.build().manifest
    other = make_bucket(moto_server)
    target = open_s3(moto_server.endpoint, other, "copy")
    assert copy_version(project.storage, manifest, target).tars == len(manifest.shards)
    assert copy_version(project.storage, manifest, target).there == len(manifest.shards)
    assert version.read(target, None, "small").dump() == manifest.dump()
    settings = {"endpoint_url": moto_server.endpoint}
    dataset = open_dataset(f"s3://{other}/copy", split="train", storage=settings)
    assert len(dataset) == 12
    assert dataset[3]["txt"]
