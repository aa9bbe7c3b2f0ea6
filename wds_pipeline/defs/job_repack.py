"""`<name>_repack`: all shards are laid out anew, as a new version."""

from typing import Any

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs import compute, console, keys
from wds_pipeline.defs.job import build_graph
from wds_pipeline.defs.session import session_resources
from wds_pipeline.defs.upkeep_job import choice

# Without a default, so that no single click starts it: what is not filled in cannot be launched.
_CONFIRM = choice(
    {
        "repack": "Lay all shards out anew, as a new version; each sample keeps its split.",
        "resplit": "Divide the samples into splits anew as well. Samples move between train and val: "
        "models that saw the old train must not be judged by the new val.",
    }
)


def repack_job(config: DatasetConfig) -> dg.JobDefinition:
    """The job that lays one dataset's shards out anew."""

    @dg.config_mapping(
        config_schema={
            "confirm": dg.Field(
                _CONFIRM,
                description="What is to be written anew, all of it. `repack`: the shards; each sample "
                "keeps its split. `resplit`: the splits as well; samples move between train and val, "
                "and models that saw the old train must not be judged by the new val.",
            ),
            **compute.OPTION,
        }
    )
    def options(values: dict[str, Any]) -> dict[str, object]:
        resplit = values["confirm"] == "resplit"
        plan = {"config": {"repack": True, "resplit": resplit}}
        return {
            "ops": {"plan": plan},
            "resources": compute.resources(values.get(compute.KEY, {})),
            "loggers": {console.NAME: {}},
        }

    name = keys.repack_job_name(config.name)
    return build_graph(config, name).to_job(
        name=name,
        description=f"Lays all shards of {config.name} out anew and publishes them as a new version: "
        "after `shards.max_bytes` was changed, or when edits and deletions have left shards of unlike "
        f"sizes. Writes everything; older versions stay until {keys.gc_job_name(config.name)}.",
        resource_defs=session_resources(config),
        config=options,
        executor_def=dg.in_process_executor,
        logger_defs={console.NAME: console.console},
        tags={
            keys.DATASET_TAG: config.name,
            "dagster/retry_strategy": "ALL_STEPS",  # as for the build, whose steps these are
        },
        metadata={
            "source": config.shown_url("source"),
            "destination": config.shown_url("destination"),
        },
    )
