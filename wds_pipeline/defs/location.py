"""Datasets → all that Dagster needs to know of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import ENVIRONMENT_VARIABLE, datasets_folder
from wds_pipeline.defs import keys
from wds_pipeline.defs.alerts import Alert, build_alerts
from wds_pipeline.defs.assets import build_assets
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.schedules import build_schedule
from wds_pipeline.defs.session import session_resource
from wds_pipeline.errors import ConfigError


def build_defs(
    configs: Mapping[str, DatasetConfig] | Iterable[DatasetConfig],
    on_failure: Alert | None = None,
) -> dg.Definitions:
    """The assets, jobs, schedules and sensors of these datasets, for a code location of your own:
    `dg.Definitions.merge(build_defs(load_configs()), yours)`.

    `on_failure` is called with a `FailedRun` for datasets whose file names no callable of its own.

    Raises ConfigError, also when there is no dataset.
    """
    datasets = list(configs.values() if isinstance(configs, Mapping) else configs)
    if not datasets:
        raise ConfigError(
            f"{datasets_folder().absolute()}: no dataset; expected YAML files there. Make one with "
            f"`wds-pipeline init SOURCE DESTINATION`, or set {ENVIRONMENT_VARIABLE}"
        )
    jobs = {config.name: build_job(config) for config in datasets}
    assets = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # of `backfill_policy`, since years
        for config in datasets:
            assets += build_assets(config)
    alerts = build_alerts(datasets, on_failure)
    schedules = (build_schedule(config, jobs[config.name]) for config in datasets)
    return dg.Definitions(
        assets=assets,
        jobs=list(jobs.values()),
        schedules=[each for each in schedules if each is not None],
        sensors=[alerts] if alerts else [],
        resources={keys.session_key(each.name): session_resource(each) for each in datasets},
        # Steps are many and short; the work is done by the session's workers.
        executor=dg.in_process_executor,
    )
