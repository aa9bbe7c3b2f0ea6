"""`<name>_repair`: damaged shards of the newest version are packed anew, as they were published."""

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.audit import Audit, audit, audit_rules
from wds_pipeline.dataset.repair import repair, unrepaired
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import counted, human_bytes
from wds_pipeline.defs import catalogue, checks, keys
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline.defs.session import Session
from wds_pipeline.defs.upkeep_job import LEVEL, published, session_of, upkeep_job
from wds_pipeline.storage import Storage


def repair_job(config: DatasetConfig) -> dg.JobDefinition:
    """The job that repairs one dataset's newest version."""
    return upkeep_job(
        config,
        repair_shards,
        keys.repair_job_name(config.name),
        f"Reads the newest version of {config.name} back, and packs the shards that are damaged, and "
        "no others, anew from the source: to the bytes that were published, in the same version. "
        f"What changed in the source is not taken in; that is {keys.job_name(config.name)}.",
        {
            "level": dg.Field(
                LEVEL,
                is_required=False,
                default_value="samples",
                description="How deep damage is looked for: `stat`: every shard is there, in its "
                "size; `digest`: and in its bytes; `samples`: and its members are those that were "
                "planned, also in its index; `decode` decodes them as well, which finds no further "
                "damage.",
            ),
        },
    )


def repair_shards(context: dg.OpExecutionContext) -> None:
    """Packs the shards that fail verification anew, and verifies them again."""
    session = session_of(context)
    level = context.op_config["level"]
    with session.step(context):
        storage, manifest = published(session)
        context.log.info(
            f"version {manifest.version}: reading back {counted(len(manifest.shards), 'shard')}, "
            f"{human_bytes(manifest.total_bytes)}, at level {level}"
        )
        rules = audit_rules(session.config, manifest, level)
        found = audit(
            session.config, storage, manifest, rules, session.pool, progress_lines(context)
        )
        _say(context, found)
        # Before the repair: what is packed after it is what was mended.
        checks.log_audit(context, session, manifest, found.report, found.damaged)
        failed = _mend(context, session, storage, manifest, found) if found.damaged else {}
    if failed:
        job = keys.job_name(session.config.name)
        raise dg.Failure(unrepaired(session.config, manifest, failed, job), allow_retries=False)


def _say(context: dg.OpExecutionContext, found: Audit) -> None:
    for name, shard in sorted(found.damaged.items()):
        finding = shard.errors[0]
        context.log.warning(
            f"{seal.partition_of(name)}: damaged: {finding.code}: {finding.message}"
        )
    if not found.damaged:
        context.log.info(f"no shard is damaged ({found.report.level}): nothing to repair")
        for finding in found.report.findings:
            if finding.severity == "error":
                context.log.warning(
                    f"{finding.code}: {finding.message}; that is in the data as they were published, "
                    "and no repair mends it"
                )


def _mend(
    context: dg.OpExecutionContext,
    session: Session,
    storage: Storage,
    manifest: Manifest,
    found: Audit,
) -> dict[str, str]:
    """Repairs and logs what it can; by partition, why it could not repair the others."""
    config = session.config
    result = repair(
        config,
        storage,
        manifest,
        found.damaged,
        session.pool,
        found.report.level,
        progress_lines(context),
    )
    made = [catalogue.Made(each.seal, "repair", each.report) for each in result.repaired]
    if made:
        names = frozenset(each.seal.name for each in made)
        catalogue.log_shards(context, config, storage, made)
        catalogue.log_version(context, config, storage, manifest, logged=names)
        checks.log_newest(context, session, manifest)
        checks.log_fresh(context, session)
        partitions = ", ".join(sorted(each.partition for each in made))
        size = human_bytes(sum(each.seal.bytes for each in made))
        context.log.info(
            f"version {manifest.version}: {counted(len(made), 'shard')} repaired ({size}), to the "
            f"bytes that were published, and verified again: {partitions}"
        )
    return result.failed
