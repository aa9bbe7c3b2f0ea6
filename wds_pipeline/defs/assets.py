"""A dataset's assets, each of which can be materialized by itself: `source_files`, `shard_plan`,
`shards`, `shard_index`, `shard_report`, `published_version`.

To materialize one shard is to repair it: it is packed anew from the source, by the same recipe and so
to the same name and bytes, whatever is there. The job `<name>_build` is the way to take in changes;
after either, the other finds nothing to do.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pyarrow as pa
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import (
    ledger,
    publish,
    rebuild,
    scan,
    seal,
    settle,
    shard_report,
    upstream,
    verify,
)
from wds_pipeline.dataset import plan as plan_module
from wds_pipeline.dataset.plan import RECIPE_FORMAT, Plan, ShardPlan, check_policies
from wds_pipeline.dataset.rebuild import Rebuilt
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import counted
from wds_pipeline.defs import catalogue, checks, keys, lineage, metadata, transforms
from wds_pipeline.defs.session import Options, Session
from wds_pipeline.errors import VerificationError

_PRESENT = Options()
_BY_SHARD = (keys.SHARDS, keys.SHARD_INDEX, keys.SHARD_REPORT)
_KINDS = {
    "url": "file",
    "dataset": "webdataset",
    "shards": "tar",
    "table": "table",
    "recipe": "text",
    "merge": "webdataset",
}
Context = dg.AssetExecutionContext


def build_assets(config: DatasetConfig) -> list[dg.AssetsDefinition]:
    """The assets of one dataset, grouped under its name."""
    key = {
        name: keys.asset_key(config.name, name)
        for name in (
            keys.SOURCE_FILES,
            keys.SHARD_PLAN,
            keys.SHARDS,
            keys.SHARD_INDEX,
            keys.SHARD_REPORT,
            keys.PUBLISHED_VERSION,
        )
    }
    session_key = keys.session_key(config.name)
    common: dict[str, Any] = {
        "group_name": config.name,
        "owners": config.owners,
        "required_resource_keys": {session_key},
        "tags": {keys.DATASET_TAG: config.name},
        "pool": keys.pool(config.name),
    }
    by_shard: dict[str, Any] = {
        "partitions_def": keys.partitions(config.name),
        "backfill_policy": dg.BackfillPolicy.single_run(),
        **common,
    }

    def session_of(context: Context) -> Session:
        found: Session = getattr(context.resources, session_key)
        return found

    @dg.asset(
        key=key[keys.SOURCE_FILES],
        deps=lineage.source_deps(config),
        kinds={_KINDS[config.source.kind]},
        description=f"The files of the source, {_source(config)}: paths, sizes, fingerprints. "
        "Listed, not read.",
        metadata=metadata.of_definition(config, scan, metadata.column_schema(scan.LISTING)),
        **common,
    )
    def source_files(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
            listing = session.listing
        return dg.MaterializeResult(
            metadata=metadata.of_listing(config, listing),
            data_version=dg.DataVersion(listing.digest),
        )

    @dg.asset(
        key=key[keys.SHARD_PLAN],
        deps=[key[keys.SOURCE_FILES]],
        kinds={"python"},
        description="Which sample is in which shard, and which shards are to be built, and why. "
        "Registers the shard slots as partitions; writes nothing at the destination.",
        metadata=metadata.of_definition(config, plan_module, metadata.column_schema(ledger.LEDGER)),
        **common,
    )
    def shard_plan(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
            newest = session.build.newest()
        # Those of the newest version stay until another one is published: they can be repaired.
        partitions = {shard.partition for shard in plan.shards}
        partitions |= {shard.partition for shard in newest.shards} if newest else set()
        catalogue.register_partitions(context.instance, config.name, partitions)
        return dg.MaterializeResult(
            metadata=metadata.of_plan(plan),
            data_version=dg.DataVersion(catalogue.PLAN_DATA_VERSION),
        )

    @dg.asset(
        key=key[keys.SHARDS],
        deps=[key[keys.SHARD_PLAN], *lineage.shard_deps(config)],
        kinds=transforms.kinds(config, "tar"),
        code_version=transforms.code_version(config),
        description="The tars, one partition for each slot. Materializing a partition packs its "
        "shard anew from the source, as the present plan says, and reads it back: the same recipe "
        f"gives the same bytes.{transforms.sentence(config)}",
        metadata=metadata.of_definition(config, rebuild, metadata.sample_schema(config)),
        **by_shard,
    )
    def shards(context: Context) -> Iterator[dg.MaterializeResult]:
        session = session_of(context)
        with session.step(context):
            session.build.open_destination()
            plan = _present_plan(session)
            done = rebuild.rebuild(session.build, plan, context.partition_keys, session.pool)
            storage = session.build.destination
            made = _made(done, session.build.newest(), plan)
            failed = {each.partition: each.problem for each in done if each.problem}
            in_this_run = context.op_execution_context.job_def.asset_layer.selected_asset_keys
            others = [
                each
                for each in (keys.SHARD_INDEX, keys.SHARD_REPORT)
                if key[each] not in in_this_run
            ]
            # All three, for the steps behind one that fails are not run.
            _refuse(session, context, made, failed, _BY_SHARD)
        for each in made:
            found = metadata.of_shard(
                storage, each.seal, each.cause, each.report, rejected=each.rejected
            )
            context.add_asset_metadata(found, partition_key=each.partition)
        yield dg.MaterializeResult(data_version=_data_version(each.seal for each in made))
        # What was written and read back in the same pass; a step of its own will do it for the rest.
        catalogue.log_shards(context.op_execution_context, config, storage, made, others)
        newest = session.build.newest()
        if newest is not None:  # damage that was found before is mended now
            checks.log_newest(context, session, newest)

    @dg.asset(
        key=key[keys.SHARD_INDEX],
        deps=[key[keys.SHARDS]],
        kinds={"parquet"},
        code_version=RECIPE_FORMAT,
        description="The member index beside each tar: where in it each field of each sample is. "
        "Written in the same pass as the tar; materializing it compares it with the plan.",
        metadata=metadata.of_definition(config, seal, metadata.column_schema(seal.MEMBER_INDEX)),
        **by_shard,
    )
    def shard_index(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
            chosen, failed = _chosen(config, plan, context.partition_keys)
            made = []
            for shard in chosen:
                found = _check_index(session, plan, shard)
                if isinstance(found, str):
                    failed[shard.partition] = found
                else:
                    made.append(catalogue.Made(found, shard.cause, None))
            _refuse(session, context, made, failed, [keys.SHARD_INDEX])
        for each in made:
            values = metadata.of_index(session.build.destination, each.seal)
            context.add_asset_metadata(values, partition_key=each.partition)
        return dg.MaterializeResult(data_version=_data_version(each.seal for each in made))

    @dg.asset(
        key=key[keys.SHARD_REPORT],
        deps=[key[keys.SHARD_INDEX]],
        kinds={"parquet"},
        code_version=RECIPE_FORMAT,
        description="What verification found in each shard, read back by another program than the "
        f"one that wrote it (level `{config.verify.level}`).",
        metadata=metadata.of_definition(
            config, verify, metadata.column_schema(shard_report.MEMBERS)
        ),
        **by_shard,
    )
    def shard_report_(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
            chosen, failed = _chosen(config, plan, context.partition_keys)
            session.build.verify(plan, chosen, session.pool)
            storage = session.build.destination
            reports = settle.load_reports(storage, chosen)
            made = []
            for shard in chosen:
                report, sealed = reports[shard.name], seal.read_seal(storage, shard.name)
                if report and sealed and report.passed:
                    made.append(catalogue.Made(sealed, shard.cause, report))
                else:
                    failed[shard.partition] = metadata.verdict(report) if report else "not packed"
            _refuse(session, context, made, failed, [keys.SHARD_REPORT])
        for each in made:
            if each.report is not None:
                found = metadata.of_report(storage, each.report)
                context.add_asset_metadata(found, partition_key=each.partition)
        return dg.MaterializeResult(data_version=_data_version(each.seal for each in made))

    @dg.asset(
        key=key[keys.PUBLISHED_VERSION],
        deps=[dg.AssetDep(key[keys.SHARD_REPORT], partition_mapping=dg.AllPartitionMapping())],
        kinds={"webdataset"},
        description="The newest immutable version: what training reads. Materializing it publishes "
        "the present plan: what is sealed is taken as it is, what is missing is packed.",
        metadata=metadata.of_definition(config, publish, metadata.sample_schema(config)),
        **common,
    )
    def published_version(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context), checks.watching(context, session):
            build = session.build
            build.open_destination()
            draft = session.draft(_PRESENT)
            missing = {shard.name for shard in build.unsealed(draft.plan)}
            there = {shard.name for shard in draft.plan.shards} - missing
            result = build.finish(draft, session.pool)
            manifest = result.manifest
            catalogue.log_version_shards(
                context.op_execution_context,
                config,
                build.destination,
                manifest,
                rebuilt={shard.name for shard in manifest.shards} - there,
            )
        for warning in result.warnings:
            context.log.warning(warning)
        context.log.info(f"version {manifest.version}: {result.status}")
        return dg.MaterializeResult(
            metadata=metadata.of_version(config, build.destination, manifest),
            data_version=dg.DataVersion(str(manifest.version)),
        )

    return [source_files, shard_plan, shards, shard_index, shard_report_, published_version]


def _source(config: DatasetConfig) -> str:
    """What the source is, in words."""
    shown = f"`{config.shown_url('source')}`"
    return {
        "url": shown,
        "dataset": f"{shown}, a published version of another dataset",
        "shards": f"{shown}, tars that others made",
        "table": f"{shown}, a table",
        "recipe": f"{shown}, a list of members",
        "merge": f"{shown}, merged",
    }[config.source.kind]


def _present_plan(session: Session) -> Plan:
    plan = session.draft(_PRESENT).plan
    check_policies(plan, session.config)
    return plan


def _chosen(
    config: DatasetConfig, plan: Plan, partitions: Sequence[str]
) -> tuple[list[ShardPlan], dict[str, str]]:
    """The plan's shards of these partitions; and by partition, why there is none."""
    by_partition = {shard.partition: shard for shard in plan.shards}
    gone = f"{rebuild.GONE}; run {keys.job_name(config.name)}"
    failed = {each: gone for each in partitions if each not in by_partition}
    return [by_partition[each] for each in partitions if each in by_partition], failed


def _refuse(
    session: Session,
    context: Context,
    made: Sequence[catalogue.Made],
    failed: Mapping[str, str],
    assets: Sequence[str],
) -> None:
    """Fails a run of partitions of which some failed. The others are logged here, or Dagster would
    take them for failed too. Raises VerificationError."""
    if failed:
        config, storage = session.config, session.build.destination
        made_of = upstream.origin(session.listing)
        catalogue.log_shards(context.op_execution_context, config, storage, made, assets, made_of)
        raise VerificationError(_failure(config, failed, len(made)))


def _made(done: Sequence[Rebuilt], newest: Manifest | None, plan: Plan) -> list[catalogue.Made]:
    """The shards that are whole again, and why."""
    entries = {shard.name: shard for shard in newest.shards} if newest else {}
    rejected = catalogue.rejected_in(plan.quarantine)
    made = []
    for each in done:
        if each.seal is not None:
            cause = each.cause
            if each.as_published:
                entry = entries[each.seal.name]
                cause = f"repair: the bytes of version {entry.since} ({entry.cause})"
            count = rejected[each.partition]
            made.append(catalogue.Made(each.seal, cause, each.report, count))
    return made


def _failure(config: DatasetConfig, failed: Mapping[str, str], whole: int) -> str:
    """What a run of partitions says when some of them fail."""
    shown = "\n  ".join(f"{partition}: {why}" for partition, why in list(failed.items())[:20])
    more = f"\n  … and {len(failed) - 20:,} more" if len(failed) > 20 else ""
    others = f"; {counted(whole, 'other shard')} of this run are whole" if whole else ""
    return (
        f"{config.name}: {counted(len(failed), 'shard')} failed{others}:\n  {shown}{more}\n"
        f"If a source file changed, {keys.job_name(config.name)} takes the change in. Materialize "
        f"the failed partitions of {config.name}/{keys.SHARDS} again for damage that has passed"
    )


def _data_version(seals: Iterable[Seal]) -> dg.DataVersion:
    """Of one shard its digest. Dagster gives all partitions of a run the same one."""
    digests = [each.digest for each in seals]
    if len(digests) == 1:
        return dg.DataVersion(digests[0])
    return dg.DataVersion(xxhash.xxh3_128_hexdigest("\0".join(digests).encode()))


def _check_index(session: Session, plan: Plan, shard: ShardPlan) -> Seal | str:
    """The seal of a shard whose member index is that of the plan, or, where only its transforms know what is
    in it, of the seal; else what is wrong with it."""
    storage = session.build.destination
    sealed = seal.read_seal(storage, shard.name)
    try:
        index = seal.read_member_index(storage, shard.name)
    except FileNotFoundError:
        sealed = None
    if sealed is None:
        return "its shard is not packed as the present plan says"
    if plan.steps:
        if index.num_rows != sealed.members:
            return f"its member index has {index.num_rows:,} members, its seal {sealed.members:,}"
        return sealed
    sizes = plan.recipe(shard).members["size"].cast(pa.int64())
    if not index["size"].combine_chunks().equals(sizes.combine_chunks()):
        return f"its member index has {index.num_rows:,} members, and not those of the plan"
    return sealed
