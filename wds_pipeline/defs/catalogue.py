"""The asset catalogue: what a build job tells Dagster of the assets that it made.

Assets that Dagster materializes itself (`assets`) are logged by Dagster. The order counts: an asset
logged before what it is made of has the badge "Unsynced".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, settle
from wds_pipeline.dataset.plan import RECIPE_FORMAT, Plan
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.shard_report import ShardReport, load_report
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.defs import keys, metadata
from wds_pipeline.defs.events import log_materializations
from wds_pipeline.storage import LocalStorage

# To Dagster, the plan's data version is how recipes are made: only when that changes is every shard
# out of date. Were it the plan's digest, one new sample would badge all shards that stay as they are.
PLAN_DATA_VERSION = RECIPE_FORMAT
_EVENTS_AT_ONCE = 300


@dataclass(frozen=True)
class Made:
    """A shard that is whole, and why it was packed."""

    seal: Seal
    cause: str
    report: ShardReport | None

    @property
    def partition(self) -> str:
        return seal.partition_of(self.seal.name)


def register_partitions(
    instance: dg.DagsterInstance, dataset: str, wanted: Collection[str]
) -> tuple[int, int]:
    """Makes these shard slots the dataset's partitions; returns how many came and how many went."""
    name = keys.partitions_name(dataset)
    known = instance.get_dynamic_partitions(name)
    new = sorted(set(wanted).difference(known))
    if new:
        instance.add_dynamic_partitions(name, new)
    gone = sorted(set(known).difference(wanted))
    for partition in gone:
        instance.delete_dynamic_partition(name, partition)
    return len(new), len(gone)


def log_plan(
    context: dg.OpExecutionContext, config: DatasetConfig, listing: Listing, plan: Plan
) -> None:
    """Logs the listing and the plan, unless the catalogue has these very ones."""
    digests = (listing.digest, metadata.plan_digest(plan))
    assets = (keys.SOURCE_FILES, keys.SHARD_PLAN)
    known = [_logged(context.instance, config.name, asset, "digest") for asset in assets]
    if known == list(digests):
        return
    context.log_event(
        dg.AssetMaterialization(
            keys.asset_key(config.name, keys.SOURCE_FILES),
            metadata=metadata.of_listing(config, listing),
            tags={"dagster/data_version": listing.digest},
        )
    )
    context.log_event(
        dg.AssetMaterialization(
            keys.asset_key(config.name, keys.SHARD_PLAN),
            metadata=metadata.of_plan(plan),
            tags={"dagster/data_version": PLAN_DATA_VERSION},
        )
    )


def _logged(instance: dg.DagsterInstance, dataset: str, asset: str, entry: str) -> object:
    """What the catalogue has under this name of an asset."""
    event = instance.get_latest_materialization_event(keys.asset_key(dataset, asset))
    found = event.asset_materialization if event else None
    value = found.metadata.get(entry) if found else None
    return value.value if value else None


def log_shards(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: LocalStorage,
    made: Iterable[Made],
) -> int:
    """Logs shards, their indexes and their reports; returns how many shards there were."""
    waiting: list[dg.AssetMaterialization] = []
    count = 0
    for shard in made:
        waiting += _of_shard(config, storage, shard)
        count += 1
        if len(waiting) >= _EVENTS_AT_ONCE:
            log_materializations(context, waiting)
            waiting = []
    if waiting:
        log_materializations(context, waiting)
    return count


def _of_shard(
    config: DatasetConfig, storage: LocalStorage, shard: Made
) -> Iterator[dg.AssetMaterialization]:
    plan_key = keys.asset_key(config.name, keys.SHARD_PLAN).to_user_string()
    yield dg.AssetMaterialization(
        keys.asset_key(config.name, keys.SHARDS),
        description=f"{shard.partition}: {shard.seal.samples:,} samples ({shard.cause})",
        metadata=metadata.of_shard(
            storage,
            shard.seal,
            shard.cause,
            metadata.verdict(shard.report) if shard.report else "none",
            shard.report.thumbnails if shard.report else [],
        ),
        partition=shard.partition,
        tags={
            "dagster/data_version": shard.seal.digest,
            # Where it comes from, as Dagster writes it for assets that it materializes itself.
            "dagster/code_version": RECIPE_FORMAT,
            f"dagster/input_data_version/{plan_key}": PLAN_DATA_VERSION,
            f"dagster/input_event_pointer/{plan_key}": "NULL",
        },
    )
    yield dg.AssetMaterialization(
        keys.asset_key(config.name, keys.SHARD_INDEX),
        description=f"{shard.partition}: {shard.seal.members:,} members",
        metadata=metadata.of_index(storage, shard.seal),
        partition=shard.partition,
        tags={"dagster/data_version": shard.seal.digest},
    )
    if shard.report is not None:
        yield dg.AssetMaterialization(
            keys.asset_key(config.name, keys.SHARD_REPORT),
            description=f"{shard.partition}: {metadata.verdict(shard.report)}",
            metadata=metadata.of_report(storage, shard.report),
            partition=shard.partition,
            tags={"dagster/data_version": shard.seal.digest},
        )


def log_version(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: LocalStorage,
    manifest: Manifest,
    rebuilt: Collection[str] = (),
    logged: Collection[str] = (),
) -> None:
    """Makes the catalogue tell of this version, unless it does already.

    `rebuilt` are names of shards to log, `logged` those that this run has logged.
    """
    count = log_version_shards(context, config, storage, manifest, rebuilt, logged)
    known = _logged(context.instance, config.name, keys.PUBLISHED_VERSION, "version")
    if count or logged or known != manifest.version or _repaired(context.instance, config.name):
        context.log_event(
            dg.AssetMaterialization(
                keys.asset_key(config.name, keys.PUBLISHED_VERSION),
                description=f"version {manifest.version}: {manifest.total_samples:,} samples",
                metadata=metadata.of_version(config, storage, manifest),
                tags={"dagster/data_version": str(manifest.version)},
            )
        )


def _repaired(instance: dg.DagsterInstance, dataset: str) -> bool:
    """Whether a shard's report is newer than the version, which has the badge "Unsynced" then."""
    times = []
    for asset in (keys.PUBLISHED_VERSION, keys.SHARD_REPORT):
        event = instance.get_latest_materialization_event(keys.asset_key(dataset, asset))
        times.append(event.timestamp if event else 0.0)
    return times[0] < times[1]


def log_version_shards(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: LocalStorage,
    manifest: Manifest,
    rebuilt: Collection[str] = (),
    logged: Collection[str] = (),
) -> int:
    """Makes the version's shards the partitions; logs those that are rebuilt or still blank.

    A blank one is of a version that another program than Dagster built (`wds-pipeline build`).
    """
    instance = context.instance
    register_partitions(instance, config.name, [shard.partition for shard in manifest.shards])
    there = instance.get_materialized_partitions(keys.asset_key(config.name, keys.SHARDS))
    missing = [
        shard
        for shard in manifest.shards
        if shard.name not in logged and (shard.name in rebuilt or shard.partition not in there)
    ]
    return log_shards(context, config, storage, _stored(storage, missing))


def _stored(storage: LocalStorage, shards: Iterable[ShardEntry]) -> Iterator[Made]:
    for shard in shards:
        found = seal.read_seal(storage, shard.name)
        if found is not None:
            yield Made(found, shard.cause, load_report(storage, shard.name))


def final(config: DatasetConfig, plan: Plan, report: ShardReport) -> bool:
    """Whether a verified shard stays as it is: nothing in it goes to the quarantine."""
    return report.passed and not len(settle.reject_content(plan, config, [report]))
