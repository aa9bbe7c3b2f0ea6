"""When datasets are built by themselves: `schedule:` of their YAML."""

from __future__ import annotations

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs import keys
from wds_pipeline.errors import ConfigError


def build_schedule(config: DatasetConfig, job: dg.JobDefinition) -> dg.ScheduleDefinition | None:
    """The schedule of one dataset, if its file has one. Raises ConfigError.

    It runs from the start: who writes `schedule:` into the file wants it, and one that waits to be
    switched on in the UI is one that nobody misses until the data are old. Switching it off in the UI
    holds, also over restarts. A build that finds nothing new costs a scan.
    """
    if config.schedule is None or config.schedule.build is None:
        return None
    try:
        return dg.ScheduleDefinition(
            name=f"{keys.job_name(config.name)}_schedule",
            job=job,
            cron_schedule=config.schedule.build,
            execution_timezone=config.schedule.timezone,
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description=f"Builds {config.name} at `{config.schedule.build}` "
            f"({config.schedule.timezone}), as its file says.",
            tags={keys.DATASET_TAG: config.name},
        )
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(
            f"{config.file or config.name}: schedule: found {config.schedule.build!r}; expected a cron "
            'expression of five parts, such as "0 3 * * *" for each night at three'
        ) from None
