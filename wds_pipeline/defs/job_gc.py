"""`<name>_gc`: old versions, and what no version needs, are removed."""

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.retain import GRACE_SECONDS, Garbage, collect, find_garbage
from wds_pipeline.dataset.retain_summary import describe, kept
from wds_pipeline.dataset.wording import counted, human_bytes
from wds_pipeline.defs import keys
from wds_pipeline.defs.upkeep_job import session_of, upkeep_job

_HOUR = 3600.0


def gc_job(config: DatasetConfig) -> dg.JobDefinition:
    """The job that removes what one dataset's `retention` does not keep."""
    return upkeep_job(
        config,
        remove_garbage,
        keys.gc_job_name(config.name),
        f"Removes versions of {config.name} beyond its `retention`, and shards and unfinished writes "
        "that no version needs. The newest version always stays. Only lists them, unless `dry_run` is "
        "false.",
        {
            "dry_run": dg.Field(
                bool,
                is_required=False,
                default_value=True,
                description="Only say in the run's log what would be removed; false removes it.",
            ),
            "grace_hours": dg.Field(
                float,
                is_required=False,
                default_value=GRACE_SECONDS / _HOUR,
                description="Spare what is younger, in hours: a build under way has shards that no "
                "version holds yet.",
            ),
        },
        workers=False,
    )


def remove_garbage(context: dg.OpExecutionContext) -> None:
    """Lists what the retention does not keep; removes it, unless that is a dry run."""
    session = session_of(context)
    config, dry_run = session.config, context.op_config["dry_run"]
    grace = _grace_seconds(config, context.op_config["grace_hours"])
    with session.step(context):
        storage = session.build.destination
        version.check_marker(storage, config.name)
        garbage = find_garbage(storage, config.retention, grace)
        for line in describe(garbage, "grace_hours"):
            context.log.info(line)
        if not garbage:
            context.log.info(f"nothing to remove; {kept(config)}")
        if dry_run:
            if garbage:
                context.log.info(
                    f"{human_bytes(garbage.bytes)} in shards would be freed; {kept(config)}. Nothing "
                    "was removed: this was a dry run (dry_run: false removes it)"
                )
            return
        freed = collect(storage, garbage, grace)
        context.log.info(f"removed: {human_bytes(freed)} in shards were freed")
        context.log_event(_observation(config, garbage, freed))


def _grace_seconds(config: DatasetConfig, hours: float) -> float:
    if not hours >= 0:
        raise dg.Failure(
            f"{config.name}: grace_hours: found {hours:g}; expected 0 or more, such as 24",
            allow_retries=False,
        )
    return hours * _HOUR


def _observation(config: DatasetConfig, garbage: Garbage, freed: int) -> dg.AssetObservation:
    versions = ", ".join(map(str, garbage.versions))
    return dg.AssetObservation(
        keys.asset_key(config.name, keys.PUBLISHED_VERSION),
        description=f"gc: {counted(len(garbage.versions), 'version')} and "
        f"{counted(len(garbage.shards), 'shard')} removed, {human_bytes(freed)} freed",
        metadata={
            "versions removed": len(garbage.versions),
            "shards removed": len(garbage.shards),
            "bytes freed": freed,
            "shards spared": garbage.young,
            **({"versions": versions} if versions else {}),
        },
    )
