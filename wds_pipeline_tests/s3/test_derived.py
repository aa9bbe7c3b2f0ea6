"""A dataset of a dataset, and of tars, in a bucket."""

from __future__ import annotations

from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.build import Build, build
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.s3.project import PATIENT, S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server


def derived(project: S3Project, name: str, source: dict[str, Any], **options: Any) -> DatasetConfig:
    storage = {"endpoint_url": project.server.endpoint, **PATIENT}
    for part in source.get("merge", {"parts": [source]})["parts"]:
        for kind in ("dataset", "shards"):
            if kind in part:
                part[kind]["storage"] = storage
    values: dict[str, Any] = {
        "name": name,
        "source": source,
        "destination": {"url": f"s3://{project.bucket}/{name}/", "storage": storage},
        "samples": {"max_quarantined": 1},
        "shards": {"max_samples": 4},
        "compute": {"kind": "threads", "workers": 1},
    }
    return DatasetConfig.model_validate({**values, **options})


def contents(config: DatasetConfig) -> dict[str, bytes]:
    """The newest version's members, by the member indexes."""

    storage = open_storage(config.destination_place)
    found = {}
    for shard in version.read(storage, None, config.name).shards:
        data = storage.read(shard.path)
        for row in seal.read_member_index(storage, shard.name).to_pylist():
            at = row["offset"]
            found[f"{row['key']}.{row['field']}"] = data[at : at + row["size"]]
    return found


def test_a_chain_in_a_bucket(moto_server: S3Server, make_bucket: MakeBucket) -> None:
    project = S3Project(moto_server, make_bucket(moto_server))
    project.add(0, 12)
    project.build()
    upstream = {"dataset": {"url": project.config().destination_url}}
    one = derived(project, "one", upstream, shards={"max_samples": 5, "seed": 3})
    build(one)
    found = contents(one)
    assert found == contents(project.config()) and len(found) == 36
    assert build(one).status == "unchanged"
    put = project.client.put_object
    members = [(f"t/{n}.txt", f"text {n}".encode()) for n in range(6)]
    for n in range(2):
        put(Bucket=project.bucket, Key=f"tars/x-{n}.tar", Body=make(members[3 * n : 3 * n + 3]))
    parts = [
        {"label": "a", "dataset": {"url": one.destination_url}},
        {"label": "b", "shards": {"urls": [f"s3://{project.bucket}/tars/x-{{0..1}}.tar"]}},
    ]
    both = derived(project, "both", {"merge": {"parts": parts}})
    build(both)
    wanted = {f"a/{name}": data for name, data in found.items()}
    assert contents(both) == wanted | {f"b/{name}": data for name, data in members}
    assert Build(both).source.look(5).digest == Build(both).scan().digest
    members[4] = ("t/4.txt", b"edited")
    put(Bucket=project.bucket, Key="tars/x-1.tar", Body=make(members[3:]))
    assert build(both).packed == 1
    assert contents(both)["b/t/4.txt"] == b"edited"
