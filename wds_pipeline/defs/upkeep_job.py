"""What the jobs that look after a published version have in common: one op each, and the session."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.defs import compute, console, keys
from wds_pipeline.defs.session import Session, session_resources
from wds_pipeline.storage import Storage


def choice(values: Mapping[str, str]) -> dg.Enum:
    """A config value that is one of these, each with its description. What Dagster says of another
    one has the type's name and no more, so that is all of them."""
    return dg.Enum(
        f"({', '.join(values)})",
        [dg.EnumValue(value, description=text) for value, text in values.items()],
    )


LEVEL = choice(
    {
        "stat": "Every shard is there, in its size.",
        "digest": "And in its bytes.",
        "samples": "And its members are those that were planned.",
        "decode": "And images, json, text and arrays decode.",
    }
)


def upkeep_job(
    config: DatasetConfig,
    work: Callable[[dg.OpExecutionContext], None],
    name: str,
    description: str,
    schema: Mapping[str, dg.Field],
    *,
    workers: bool = True,
) -> dg.JobDefinition:
    """The job of one op, whose config is all that a user fills in; with that of its workers, if it
    has any."""
    step = work.__name__
    op = dg.op(
        name=f"{config.name}_{step}",  # of each dataset its own, for the sake of the pool
        required_resource_keys={"session"},
        config_schema=dict,  # is what `values` hands on, checked
        pool=keys.pool(config.name),
    )(work)

    @dg.config_mapping(config_schema={**schema, **(compute.OPTION if workers else {})})
    def values(given: dict[str, Any]) -> dict[str, object]:
        return {
            "ops": {step: {"config": {name: given[name] for name in schema}}},
            "resources": compute.resources(given.get(compute.KEY, {})),
            "loggers": {console.NAME: {}},
        }

    graph = dg.GraphDefinition(
        name=name,
        node_defs=[op],
        dependencies={dg.NodeInvocation(op.name, alias=step): {}},
    )
    return graph.to_job(
        name=name,
        description=description,
        resource_defs=session_resources(config),
        config=values,
        executor_def=dg.in_process_executor,
        logger_defs={console.NAME: console.console},
        tags={keys.DATASET_TAG: config.name},
        metadata={"destination": config.shown_url("destination")},
    )


def session_of(context: dg.OpExecutionContext) -> Session:
    """The run's session."""
    found: Session = context.resources.session
    return found


def published(session: Session, number: int | None = None) -> tuple[Storage, Manifest]:
    """A published version, or the newest. Raises DestinationError, VersionError."""
    storage, name = session.build.destination, session.config.name
    version.check_marker(storage, name)
    return storage, version.read(storage, number, name)
