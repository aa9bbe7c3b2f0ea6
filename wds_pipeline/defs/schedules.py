"""When a dataset is built, verified and cleaned by itself: `schedule:` of its YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_automation import ScheduleConfig
from wds_pipeline.defs import keys
from wds_pipeline.errors import ConfigError

_UNDER_WAY = {
    dg.DagsterRunStatus.QUEUED: "queued",
    dg.DagsterRunStatus.STARTING: "starting",
    dg.DagsterRunStatus.STARTED: "running",
    dg.DagsterRunStatus.CANCELING: "being cancelled",
}


@dataclass(frozen=True)
class _Upkeep:
    """What is done by itself: `part` of `schedule:`, at `nightly` unless the file says when."""

    part: str
    job: str
    what: str
    nightly: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)


def build_schedules(
    config: DatasetConfig, jobs: Mapping[str, dg.JobDefinition]
) -> list[dg.ScheduleDefinition]:
    """The schedules of one dataset; `jobs` are its jobs by name.

    Those that its file speaks of run from the start: who writes `schedule:` wants it, and one that
    waits to be switched on in the UI is one that nobody misses until the data are old. Switching it
    off in the UI holds, also over restarts. Verification and gc are there also when the file does not
    speak of them, switched off.

    Raises ConfigError for a cron expression that Dagster does not take, or that never comes.
    """
    name = config.name
    found = [
        # A build that finds nothing new costs a scan.
        _schedule(config, jobs, _Upkeep("build", keys.job_name(name), "Builds")),
        # Nightly hours that no change of the clocks skips or repeats.
        _schedule(
            config,
            jobs,
            _Upkeep("verify", keys.verify_job_name(name), "Reads back all of", "30 4 * * *"),
        ),
        _schedule(
            config,
            jobs,
            _Upkeep(
                "gc",
                keys.gc_job_name(name),
                "Removes old versions of",
                "30 5 * * *",
                {"dry_run": False},
            ),
        ),
    ]
    return [each for each in found if each is not None]


def _schedule(
    config: DatasetConfig, jobs: Mapping[str, dg.JobDefinition], upkeep: _Upkeep
) -> dg.ScheduleDefinition | None:
    wanted = config.schedule or ScheduleConfig()
    given: str | None = getattr(wanted, upkeep.part)
    cron = given or upkeep.nightly
    if cron is None:
        return None
    said = (
        "as its file says"
        if given
        else f"once it is switched on, here or by `schedule: {{{upkeep.part}: …}}` in its file"
    )

    def evaluate(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        busy = _under_way(context.instance, upkeep.job, config.name)
        return dg.SkipReason(busy) if busy else dg.RunRequest(run_config=dict(upkeep.config))

    status = dg.DefaultScheduleStatus.RUNNING if given else dg.DefaultScheduleStatus.STOPPED
    try:
        schedule = dg.ScheduleDefinition(
            name=keys.schedule_name(upkeep.job),
            job=jobs[upkeep.job],
            cron_schedule=cron,
            execution_timezone=wanted.timezone,
            execution_fn=evaluate,
            default_status=status,
            description=f"{upkeep.what} {config.name} at `{cron}` ({wanted.timezone}), {said}.",
            tags={keys.DATASET_TAG: config.name},
        )
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(
            f"{config.file or config.name}: schedule.{upkeep.part}: found {cron!r}; expected a cron "
            'expression of five parts, such as "0 3 * * *" for each night at three'
        ) from None
    _check_that_it_comes(config, upkeep.part, cron, wanted.timezone)
    return schedule


def _check_that_it_comes(config: DatasetConfig, part: str, cron: str, timezone: str) -> None:
    """Dagster takes the 31st of April, and its daemon fails on it."""
    try:
        from dagster._utils.schedules import cron_string_iterator

        next(cron_string_iterator(0, cron, timezone))
    except ImportError:  # another release of Dagster
        return
    except ValueError:
        raise ConfigError(
            f"{config.file or config.name}: schedule.{part}: found {cron!r}, which never comes; "
            'expected a cron expression such as "0 3 * * *" for each night at three'
        ) from None


def _under_way(instance: dg.DagsterInstance, job: str, dataset: str) -> str:
    """Which run of this job has not ended, in words; "" if there is none."""
    wanted = dg.RunsFilter(
        job_name=job, tags={keys.DATASET_TAG: dataset}, statuses=list(_UNDER_WAY)
    )
    for record in instance.get_run_records(wanted, limit=1):
        run = record.dagster_run
        since = record.create_timestamp.strftime("%Y-%m-%d %H:%M")
        return (
            f"{dataset}: run {run.run_id} of {job}, of {since} UTC, is {_UNDER_WAY[run.status]}; the "
            "next tick looks again. Terminate that run if it hangs"
        )
    return ""
