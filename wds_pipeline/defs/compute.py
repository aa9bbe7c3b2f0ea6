"""Who does the work, as a Dagster resource: one run's own choice, instead of the dataset's file's."""

from typing import Any

import dagster as dg

from wds_pipeline.config import ComputeConfig, DatasetConfig

KEY = "compute"

_KIND = dg.Enum(
    "(processes, threads, dask)",
    [
        dg.EnumValue(
            "processes", description="Worker processes of the machine that the run is on."
        ),
        dg.EnumValue("threads", description="Threads of the run's own process."),
        dg.EnumValue("dask", description="A Dask cluster."),
    ],
)
_SCHEMA = dg.Shape(
    {
        "kind": dg.Field(
            _KIND, is_required=False, description="By default as the dataset's file says."
        ),
        "workers": dg.Field(
            int, is_required=False, description="How many workers this run starts for itself."
        ),
        "address": dg.Field(
            str,
            is_required=False,
            description="With `kind: dask`: the scheduler, such as tcp://host:8786.",
        ),
    }
)

# Of a job's config, beside the job's own options.
OPTION = {
    KEY: dg.Field(
        _SCHEMA,
        is_required=False,
        description="Who does the work in this run, instead of what the dataset's file says.",
    )
}


@dg.resource(config_schema=_SCHEMA, description="Who does the work in this run, if not the file's.")
def compute(context: dg.InitResourceContext) -> dict[str, Any]:
    """What a run's config says of its workers; empty where it leaves that to the dataset's file."""
    return dict(context.resource_config)


def resources(given: dict[str, Any]) -> dict[str, Any]:
    """The `resources` of a run config that hands on a job's option."""
    return {KEY: {"config": given}}


def with_compute(config: DatasetConfig, given: dict[str, Any]) -> DatasetConfig:
    """The dataset's configuration with a run's choice of workers.

    Raises ConfigError when it makes no sense.
    """
    chosen: ComputeConfig = config.compute.instead(given, config.name)
    return config.model_copy(update={"compute": chosen})
