"""Materializations written at once are what Dagster would have written one by one."""

import json
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.defs import events
from wds_pipeline.defs.events import log_materializations

KEYS = [dg.AssetKey(["x", "shards"]), dg.AssetKey(["x", "report"])]


def materializations(count: int) -> list[dg.AssetMaterialization]:
    return [
        dg.AssetMaterialization(
            key,
            description=f"shard {number}",
            metadata={"samples": number, "sheet": dg.MetadataValue.md(f"| {number} |")},
            partition=f"train-{number:06d}",
            tags={"dagster/data_version": f"digest {number}"},
        )
        for number in range(count)
        for key in KEYS
    ]


@dg.op
def one_by_one(context: dg.OpExecutionContext) -> None:
    for each in materializations(60):
        context.log_event(each)


@dg.op
def at_once(context: dg.OpExecutionContext) -> None:
    log_materializations(context, materializations(60))


@dg.job(executor_def=dg.in_process_executor)
def written_one_by_one() -> None:
    one_by_one()


@dg.job(executor_def=dg.in_process_executor)
def written_at_once() -> None:
    at_once()


def rows(instance: dg.DagsterInstance, job: dg.JobDefinition) -> tuple[Any, Any]:
    """What the run's log and the catalogue hold of a run of the job."""
    run = job.execute_in_process(instance=instance).run_id
    log = [
        entry
        for entry in instance.all_logs(run)
        if entry.dagster_event_type == dg.DagsterEventType.ASSET_MATERIALIZATION
    ]
    catalogue = [
        record.event_log_entry
        for key in KEYS
        for record in instance.fetch_materializations(key, limit=1000, ascending=True).records
        if record.run_id == run
    ]
    return [plain(each) for each in log], [plain(each) for each in catalogue]


def plain(entry: dg.EventLogEntry) -> Any:
    """An event without what differs from run to run."""
    values = json.loads(entry.to_json())
    found = json.dumps(values, sort_keys=True)
    for what in (entry.run_id, "at_once", "one_by_one", str(entry.timestamp)):
        found = found.replace(what, "…")
    return found


@pytest.mark.parametrize("storage", ["sqlite", "memory"])
def test_rows_are_the_same(storage: str, sqlite: dg.DagsterInstance) -> None:
    instance = sqlite if storage == "sqlite" else dg.DagsterInstance.ephemeral()
    expected, found = rows(instance, written_one_by_one), rows(instance, written_at_once)
    assert len(found[0]) == len(found[1]) == 120
    assert found == expected


def test_the_catalogue_knows_the_latest(sqlite: dg.DagsterInstance) -> None:
    written_at_once.execute_in_process(instance=sqlite)
    for key in KEYS:
        assert len(sqlite.get_materialized_partitions(key)) == 60
        latest = sqlite.get_latest_materialization_event(key)
        assert latest is not None and latest.asset_materialization is not None
        assert latest.asset_materialization.partition == "train-000059"
        (record,) = sqlite.get_asset_records([key])
        assert record.asset_entry.last_materialization_storage_id is not None
        version = sqlite.get_latest_data_version_record(key, partition_key="train-000007")
        assert version is not None
        assert (version.event_log_entry.tags or {})["dagster/data_version"] == "digest 7"


def test_another_release_of_dagster_gets_them_one_by_one(
    sqlite: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PARTS", ("a part that Dagster lacks",))
    assert rows(sqlite, written_at_once) == rows(sqlite, written_one_by_one)
