"""Datasets → all that Dagster needs to know of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import ENVIRONMENT_VARIABLE, datasets_folder
from wds_pipeline.defs import compute, keys, lineage
from wds_pipeline.defs.alerts import Alert, build_alerts
from wds_pipeline.defs.assets import build_assets
from wds_pipeline.defs.checks import build_checks
from wds_pipeline.defs.combined import combine_job, combine_sensor, combined_asset
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.schedules import build_schedules
from wds_pipeline.defs.session import session_resource
from wds_pipeline.defs.source_sensor import build_source_sensor
from wds_pipeline.defs.upkeep import build_upkeep_jobs
from wds_pipeline.errors import ConfigError


def build_defs(
    configs: Mapping[str, DatasetConfig] | Iterable[DatasetConfig],
    on_failure: Alert | None = None,
    executor: dg.ExecutorDefinition | None = dg.in_process_executor,
    build_executor: dg.ExecutorDefinition = dg.in_process_executor,
) -> dg.Definitions:
    """The assets, checks, jobs, schedules and sensors of these datasets, for a code location of your own:
    `dg.Definitions.merge(build_defs(load_configs()), yours)`.

    `on_failure` is called with a `FailedRun` for datasets whose file names no callable of its own.
    `executor` is for assets that are materialized in the UI: steps are many and short, the work is done
    by the session's workers. None leaves the choice to the definitions that these are merged with.
    `build_executor` is for the steps of `<name>_build`: one that gives each batch a process or a pod of
    its own needs an I/O manager, or `$DAGSTER_HOME/storage`, that all of them see.

    Raises ConfigError, also when there is no dataset.
    """
    datasets = list(configs.values() if isinstance(configs, Mapping) else configs)
    if not datasets:
        raise ConfigError(
            f"{datasets_folder().absolute()}: no dataset; expected YAML files there. Make one with "
            f"`wds-pipeline init SOURCE DESTINATION`, or set {ENVIRONMENT_VARIABLE}"
        )
    parts = [_dataset(config, build_executor) for config in datasets]
    alerts = build_alerts(datasets, on_failure)
    return dg.Definitions.merge(
        *parts,
        dg.Definitions(
            assets=lineage.external_specs(datasets),
            sensors=[alerts] if alerts else [],
            executor=executor,
        ),
    )


def _dataset(config: DatasetConfig, executor: dg.ExecutorDefinition) -> dg.Definitions:
    """One dataset's part."""
    build = build_job(config, executor)
    jobs = [build, *build_upkeep_jobs(config)]
    sensor = build_source_sensor(config, build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # of `backfill_policy`, since years
        assets = build_assets(config)
        combined = combined_asset(config)
    sensors = [sensor]
    if combined:
        jobs.append(combine_job(config))
        sensors.append(combine_sensor(config, jobs[-1]))
    return dg.Definitions(
        assets=[*assets, *([combined] if combined else [])],
        asset_checks=build_checks(config),
        jobs=jobs,
        schedules=build_schedules(config, {job.name: job for job in jobs}),
        sensors=[each for each in sensors if each],
        resources={
            keys.session_key(config.name): session_resource(config),
            compute.KEY: compute.compute,
        },
    )
