"""A dataset's assets, each of which can be materialized by itself: `source_files`, `shard_plan`,
`shards`, `shard_index`, `shard_report`, `published_version`.

To materialize one shard is to repair it: it is packed anew from the source, by the same recipe and so
to the same name and bytes, whatever is there. The job `<name>_build` is the way to take in changes;
after either, the other finds nothing to do.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import ledger, scan, seal, settle, shard_report
from wds_pipeline.dataset.pack import Packed
from wds_pipeline.dataset.plan import RECIPE_FORMAT, Plan, ShardPlan, check_policies
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.shard_report import ShardReport, Thumbnail
from wds_pipeline.dataset.verify import read_thumbnail
from wds_pipeline.dataset.wording import counted
from wds_pipeline.defs import catalogue, keys, metadata
from wds_pipeline.defs.session import Options, Session
from wds_pipeline.errors import SourceError, VerificationError

_PRESENT = Options()
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
        "required_resource_keys": {session_key},
        "tags": {keys.DATASET_TAG: config.name},
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
        kinds={"file"},
        description=f"The files of the source, `{config.source_url}`: paths, sizes, fingerprints. "
        "Listed, not read.",
        metadata={"dagster/column_schema": metadata.column_schema(scan.LISTING)},
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
        metadata={"dagster/column_schema": metadata.column_schema(ledger.LEDGER)},
        **common,
    )
    def shard_plan(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
        partitions = [shard.partition for shard in plan.shards]
        catalogue.register_partitions(context.instance, config.name, partitions)
        return dg.MaterializeResult(
            metadata=metadata.of_plan(plan),
            data_version=dg.DataVersion(catalogue.PLAN_DATA_VERSION),
        )

    @dg.asset(
        key=key[keys.SHARDS],
        deps=[key[keys.SHARD_PLAN]],
        kinds={"tar"},
        code_version=RECIPE_FORMAT,
        description="The tars, one partition for each slot. To materialize a partition packs its "
        "shard anew from the source, as the present plan says: the same recipe gives the same bytes.",
        **by_shard,
    )
    def shards(context: Context) -> None:
        session = session_of(context)
        with session.step(context):
            session.build.open_destination()
            plan = _present_plan(session)
            chosen = _chosen(config, plan, context.partition_keys)
            packed = session.build.pack(plan, chosen, session.pool)
            sealed = _sealed(config, packed)
        storage = session.build.destination
        for shard in chosen:
            found = metadata.of_shard(
                storage,
                sealed[shard.name],
                shard.cause or "repair",
                f"materialize {keys.SHARD_REPORT}",
                _some_samples(session, shard),
            )
            context.add_asset_metadata(found, partition_key=shard.partition)

    @dg.asset(
        key=key[keys.SHARD_INDEX],
        deps=[key[keys.SHARDS]],
        kinds={"parquet"},
        description="The member index beside each tar: where in it each field of each sample is. "
        "Written in the same pass as the tar; to materialize it compares it with the plan.",
        metadata={"dagster/column_schema": metadata.column_schema(seal.MEMBER_INDEX)},
        **by_shard,
    )
    def shard_index(context: Context) -> None:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
            found = {
                shard.partition: _check_index(session, plan, shard)
                for shard in _chosen(config, plan, context.partition_keys)
            }
        for partition, sealed in found.items():
            context.add_asset_metadata(
                metadata.of_index(session.build.destination, sealed), partition_key=partition
            )

    @dg.asset(
        key=key[keys.SHARD_REPORT],
        deps=[key[keys.SHARD_INDEX]],
        kinds={"parquet"},
        description="What verification found in each shard, read back by another program than the "
        f"one that wrote it (level `{config.verify.level}`).",
        metadata={"dagster/column_schema": metadata.column_schema(shard_report.MEMBERS)},
        **by_shard,
    )
    def shard_report_(context: Context) -> None:
        session = session_of(context)
        with session.step(context):
            plan = _present_plan(session)
            chosen = _chosen(config, plan, context.partition_keys)
            session.build.verify(plan, chosen, session.pool)
            reports = _sound(session, chosen)
        for shard in chosen:
            context.add_asset_metadata(
                metadata.of_report(session.build.destination, reports[shard.name]),
                partition_key=shard.partition,
            )

    @dg.asset(
        key=key[keys.PUBLISHED_VERSION],
        deps=[dg.AssetDep(key[keys.SHARD_REPORT], partition_mapping=dg.AllPartitionMapping())],
        kinds={"webdataset"},
        description="The newest immutable version: what training reads. To materialize it publishes "
        "the present plan: what is sealed is taken as it is, what is missing is packed.",
        **common,
    )
    def published_version(context: Context) -> dg.MaterializeResult:
        session = session_of(context)
        with session.step(context):
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


def _present_plan(session: Session) -> Plan:
    plan = session.draft(_PRESENT).plan
    check_policies(plan, session.config)
    return plan


def _chosen(config: DatasetConfig, plan: Plan, partitions: Sequence[str]) -> list[ShardPlan]:
    """The plan's shards of these partitions. Raises VerificationError for one that it lacks."""
    by_partition = {shard.partition: shard for shard in plan.shards}
    for partition in partitions:
        if partition not in by_partition:
            raise VerificationError(
                f"{config.name}: {partition}: the present plan has no such shard; its samples are "
                f"gone from the source. Materialize {config.name}/{keys.SHARD_PLAN}, or run "
                f"{keys.job_name(config.name)}"
            )
    return [by_partition[partition] for partition in partitions]


def _sealed(config: DatasetConfig, packed: Sequence[Packed]) -> dict[str, Seal]:
    """The seals by name. Raises SourceError when a file changed since it was listed."""
    for each in packed:
        for path, reason in each.changed:
            raise SourceError(f"{config.name}: {each.name}: {path}: {reason}; materialize it again")
    return {each.name: each.seal for each in packed if each.seal is not None}


def _some_samples(session: Session, shard: ShardPlan) -> list[Thumbnail]:
    """Samples from all over the shard, to show."""
    storage, wanted = session.build.destination, settle.rules(session.config)
    found = list(dict.fromkeys(seal.read_member_index(storage, shard.name)["key"].to_pylist()))
    count = min(len(found), metadata.SHEET_THUMBNAILS)
    chosen = [found[number * len(found) // count] for number in range(count)]
    shown = (read_thumbnail(storage, wanted, shard.name, key) for key in chosen)
    return [each for each in shown if each is not None]


def _check_index(session: Session, plan: Plan, shard: ShardPlan) -> Seal:
    """The seal of a shard whose member index is that of the plan. Raises VerificationError."""
    storage, name = session.build.destination, session.config.name
    sealed = seal.read_seal(storage, shard.name)
    try:
        index = seal.read_member_index(storage, shard.name)
    except FileNotFoundError:
        sealed = None
    if sealed is None:
        raise VerificationError(
            f"{name}: {shard.partition}: its shard is not packed as the present plan says; "
            f"materialize {name}/{keys.SHARDS} for this partition first"
        )
    sizes = plan.recipe(shard).members["size"].cast(pa.int64())
    if not index["size"].combine_chunks().equals(sizes.combine_chunks()):
        raise VerificationError(
            f"{name}: {shard.partition}: the member index has {index.num_rows:,} members, and not "
            f"those of the plan; materialize {name}/{keys.SHARDS} for this partition"
        )
    return sealed


def _sound(session: Session, shards: Sequence[ShardPlan]) -> dict[str, ShardReport]:
    """The shards' reports. Raises VerificationError, naming every shard that is damaged."""
    reports = settle.load_reports(session.build.destination, shards)
    sound = {name: report for name, report in reports.items() if report and report.passed}
    damaged = [
        f"{shard.partition}: {metadata.verdict(report) if report else 'not packed'}"
        for shard in shards
        if shard.name not in sound
        for report in (reports[shard.name],)
    ]
    if damaged:
        shown = "\n  ".join(damaged[:20])
        name = session.config.name
        raise VerificationError(
            f"{name}: not sound: {counted(len(damaged), 'shard')}:\n  {shown}\nMaterialize "
            f"{name}/{keys.SHARDS} for that, or run {keys.job_name(name)}"
        )
    return sound
