"""Dagster over buckets: the job, one partition, the sensor, and what its catalogue then says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


def metadata(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    event = instance.get_latest_materialization_event(keys.asset_key("small", asset))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: each.value for name, each in event.asset_materialization.metadata.items()}


def test_the_job_a_partition_and_the_sensor(
    moto_server: S3Server, make_bucket: MakeBucket, instance: dg.DagsterInstance
) -> None:
    project = S3Project(
        moto_server,
        make_bucket(moto_server),
        sensor={"settle_seconds": 0},
        compute={"kind": "threads", "workers": 2},
    )
    project.add(0, 8)
    config = project.config()
    defs = build_defs([config])
    job = defs.resolve_job_def("small_build")
    sensor = defs.resolve_sensor_def(keys.source_sensor_name("small"))

    def tick(cursor: str | None) -> tuple[str, int]:
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, definitions=defs, sensor_name=sensor.name
        )
        result = sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result.cursor or "", len(result.run_requests or [])

    cursor, requests = tick(None)
    assert requests == 1, "nothing is published yet"
    assert job.execute_in_process(instance=instance).success
    found = metadata(instance, keys.PUBLISHED_VERSION)
    assert found["dagster/uri"].startswith(f"s3://{project.bucket}/published/versions/00000001/")
    assert found["source: get"] == 24
    assert found["destination: put"] > 10
    assert "gopen_schemes['s3']" in found["how to read it"]
    for _ in range(2):
        cursor, requests = tick(cursor)
        assert requests == 0, "the version was made of what is there"

    project.client.put_object(Bucket=project.bucket, Key="raw/a/0002.txt", Body=b"edited")
    cursor, requests = tick(cursor)
    assert requests == 1, "an object was edited"

    partition = sorted(instance.get_dynamic_partitions(keys.partitions_name("small")))[0]
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        asset_selection=[keys.asset_key("small", keys.SHARDS)],
        partition_key=partition,
        raise_on_error=False,
    )
    assert result.success
    assert metadata(instance, keys.SHARDS)["dagster/uri"].startswith(f"s3://{project.bucket}/")


def test_nothing_secret_is_in_what_dagster_keeps(
    rclone_server: S3Server, make_bucket: MakeBucket, instance: dg.DagsterInstance
) -> None:
    project = S3Project(
        rclone_server,
        make_bucket(rclone_server),
        destination={"commit": "single_writer"},
        compute={"kind": "threads", "workers": 1},
    )
    project.add(0, 3)
    job = build_defs([project.config()]).resolve_job_def("small_build")
    result = job.execute_in_process(instance=instance)
    assert result.success
    events = [each.event_log_entry for each in instance.get_records_for_run(result.run_id).records]
    kept = "\n".join(each.to_json() for each in events)
    kept += json.dumps(result.dagster_run.run_config) + json.dumps(dict(result.dagster_run.tags))
    for data in project.objects().values():
        kept += data.decode("latin-1")
    assert servers.KEY not in kept
    assert servers.SECRET not in kept
    assert "published version" in kept or "version 1 published" in kept
