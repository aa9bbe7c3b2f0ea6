"""Schedules: which there are, when they come, and that none piles up."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.schedules import cron_string_iterator

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import load_config
from wds_pipeline.defs import keys
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.schedules import build_schedules
from wds_pipeline.defs.upkeep import build_upkeep_jobs
from wds_pipeline.errors import ConfigError

RUNNING, STOPPED = dg.DefaultScheduleStatus.RUNNING, dg.DefaultScheduleStatus.STOPPED
BERLIN = "Europe/Berlin"


def config(name: str = "one", **more: Any) -> DatasetConfig:
    values = {"source": {"url": f"/raw/{name}"}, "destination": {"url": f"/out/{name}"}, **more}
    return DatasetConfig.model_validate({"name": name, **values})


def jobs(dataset: DatasetConfig) -> dict[str, dg.JobDefinition]:
    return {job.name: job for job in (build_job(dataset), *build_upkeep_jobs(dataset))}


def schedules(dataset: DatasetConfig) -> dict[str, dg.ScheduleDefinition]:
    return {each.name: each for each in build_schedules(dataset, jobs(dataset))}


def facts(found: dict[str, dg.ScheduleDefinition]) -> dict[str, tuple[Any, ...]]:
    return {
        name: (each.job_name, each.cron_schedule, each.execution_timezone, each.default_status)
        for name, each in found.items()
    }


def test_without_a_schedule() -> None:
    """Verification and gc are there, to be switched on in the UI; at hours of their own."""
    found = schedules(config())
    assert facts(found) == {
        "one_verify_schedule": ("one_verify", "30 4 * * *", "UTC", STOPPED),
        "one_gc_schedule": ("one_gc", "30 5 * * *", "UTC", STOPPED),
    }
    assert "once it is switched on" in (found["one_gc_schedule"].description or "")


def test_a_bare_expression() -> None:
    found = schedules(config(schedule="0 3 * * *"))
    assert facts(found)["one_build_schedule"] == ("one_build", "0 3 * * *", "UTC", RUNNING)
    assert found["one_verify_schedule"].default_status == STOPPED
    assert all(each.tags[keys.DATASET_TAG] == "one" for each in found.values())


def test_all_of_them_in_their_time_zone() -> None:
    given = {"build": "@hourly", "verify": "0 1 * * 0", "gc": "0 2 1 * *", "timezone": BERLIN}
    assert facts(schedules(config(schedule=given))) == {
        "one_build_schedule": ("one_build", "@hourly", BERLIN, RUNNING),
        "one_verify_schedule": ("one_verify", "0 1 * * 0", BERLIN, RUNNING),
        "one_gc_schedule": ("one_gc", "0 2 1 * *", BERLIN, RUNNING),
    }
    assert facts(schedules(config(schedule={"verify": "0 1 * * 0"}))).keys() == {
        "one_verify_schedule",
        "one_gc_schedule",
    }


@pytest.mark.parametrize("part", ["build", "verify", "gc"])
@pytest.mark.parametrize(
    ("cron", "expected"),
    [("99 3 * * *", "; expected a cron"), ("0 0 31 4 *", ", which never comes")],
)
def test_what_dagster_does_not_take(part: str, cron: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schedules(config(schedule={part: cron}))
    assert str(caught.value).startswith(f"one: schedule.{part}: found {cron!r}{expected}")


def test_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "{name: one, source: {url: raw}, destination: {url: out}, schedule: 99 3 * * *}"
    )
    dataset = load_config(tmp_path / "one.yaml")
    with pytest.raises(ConfigError, match=rf"{tmp_path}/one\.yaml: schedule\.build: found '99 3"):
        schedules(dataset)


def evaluate(
    dataset: DatasetConfig, name: str, instance: dg.DagsterInstance, when: datetime | None = None
) -> Any:
    when = when or datetime(2026, 6, 1, 3, tzinfo=ZoneInfo("UTC"))
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=when) as context:
        return schedules(dataset)[name].evaluate_tick(context)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("one_build_schedule", {}),
        ("one_verify_schedule", {}),
        ("one_gc_schedule", {"dry_run": False}),
    ],
)
def test_a_tick_starts_its_job(
    name: str, wanted: dict[str, object], sqlite: dg.DagsterInstance
) -> None:
    dataset = config(schedule="0 3 * * *")
    (request,) = evaluate(dataset, name, sqlite).run_requests
    assert request.run_config == wanted
    job = jobs(dataset)[name.removesuffix("_schedule")]
    assert dg.validate_run_config(job, request.run_config)
    assert job.tags[keys.DATASET_TAG] == "one"


EVENTS = {
    dg.DagsterRunStatus.QUEUED: dg.DagsterEventType.RUN_ENQUEUED,
    dg.DagsterRunStatus.STARTING: dg.DagsterEventType.RUN_STARTING,
    dg.DagsterRunStatus.STARTED: dg.DagsterEventType.RUN_START,
    dg.DagsterRunStatus.CANCELING: dg.DagsterEventType.RUN_CANCELING,
    dg.DagsterRunStatus.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
    dg.DagsterRunStatus.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    dg.DagsterRunStatus.CANCELED: dg.DagsterEventType.RUN_CANCELED,
}


def start(
    instance: dg.DagsterInstance, dataset: DatasetConfig, job: str, status: dg.DagsterRunStatus
) -> str:
    """Puts a run of a job into the instance, at this point of its life."""
    module = LoadableTargetOrigin(module_name="wds_pipeline.definitions")
    location = ManagedGrpcPythonEnvCodeLocationOrigin(module, location_name="wds_pipeline")
    definition = jobs(dataset)[job]
    run = instance.create_run_for_job(
        definition,
        tags={keys.DATASET_TAG: dataset.name},
        remote_job_origin=RemoteRepositoryOrigin(location, "__repository__").get_job_origin(job),
        job_code_origin=JobPythonOrigin(
            job,
            RepositoryPythonOrigin(
                sys.executable, ModuleCodePointer("wds_pipeline.definitions", "defs")
            ),
        ),
    )
    kind = EVENTS[status]
    event = dg.DagsterEvent(event_type_value=kind.value, job_name=job)
    instance.report_dagster_event(event, run.run_id)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None and found.status == status
    return run.run_id


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (dg.DagsterRunStatus.QUEUED, "queued"),
        (dg.DagsterRunStatus.STARTING, "starting"),
        (dg.DagsterRunStatus.STARTED, "running"),
        (dg.DagsterRunStatus.CANCELING, "being cancelled"),
    ],
)
@pytest.mark.parametrize("job", ["one_build", "one_verify"])
def test_runs_do_not_pile_up(
    status: dg.DagsterRunStatus, word: str, job: str, sqlite: dg.DagsterInstance
) -> None:
    dataset = config(schedule="0 3 * * *")
    run = start(sqlite, dataset, job, status)
    tick = evaluate(dataset, f"{job}_schedule", sqlite)
    assert not tick.run_requests
    assert f"one: run {run} of {job}, of " in tick.skip_message
    assert f" UTC, is {word}; the next tick looks again" in tick.skip_message


@pytest.mark.parametrize(
    ("dataset", "job", "status"),
    [
        ("one", "one_build", dg.DagsterRunStatus.SUCCESS),
        ("one", "one_build", dg.DagsterRunStatus.FAILURE),
        ("one", "one_build", dg.DagsterRunStatus.CANCELED),
        ("one", "one_verify", dg.DagsterRunStatus.STARTED),
        ("two", "two_build", dg.DagsterRunStatus.STARTED),
    ],
)
def test_other_runs_hold_nothing_up(
    dataset: str, job: str, status: dg.DagsterRunStatus, sqlite: dg.DagsterInstance
) -> None:
    start(sqlite, config(dataset), job, status)
    tick = evaluate(config(schedule="0 3 * * *"), "one_build_schedule", sqlite)
    assert len(tick.run_requests) == 1


@pytest.mark.parametrize("day", [datetime(2026, 3, 27), datetime(2026, 10, 23)])
@pytest.mark.parametrize("build", ["0 3 * * *", "30 2 * * *"])
def test_once_a_day_when_the_clocks_change(
    day: datetime, build: str, sqlite: dg.DagsterInstance
) -> None:
    """On 29 March 2026 Berlin has no half past two, on 25 October it has two."""
    dataset = config(schedule={"build": build, "verify": "30 4 * * *", "timezone": BERLIN})
    zone = ZoneInfo(BERLIN)
    first = day.replace(tzinfo=zone)
    for name, schedule in schedules(dataset).items():
        ticks = list(
            islice(
                cron_string_iterator(
                    first.timestamp(), str(schedule.cron_schedule), schedule.execution_timezone
                ),
                5,
            )
        )
        local = [tick.astimezone(zone) for tick in ticks]
        days = [each.date() - first.date() for each in local]
        assert days == [timedelta(days=number) for number in range(5)], name
        assert len({each.utcoffset() for each in local}) == 2, name
        if name != "one_build_schedule":
            assert {each.minute for each in local} == {30}
            assert len({each.hour for each in local}) == 1
        for tick in ticks:
            assert len(evaluate(dataset, name, sqlite, tick).run_requests) == 1


def test_the_definitions_load() -> None:
    """Two datasets side by side, in one code location."""
    both = [config("one", schedule="0 3 * * *"), config("two")]
    known = {dataset.name: jobs(dataset) for dataset in both}
    defs = dg.Definitions(
        jobs=[job for each in known.values() for job in each.values()],
        schedules=[
            each for dataset in both for each in build_schedules(dataset, known[dataset.name])
        ],
    )
    dg.Definitions.validate_loadable(defs)
