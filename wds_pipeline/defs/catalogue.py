"""The asset catalogue: what a build job tells Dagster of the assets that it made.

Assets that Dagster materializes itself (`assets`) are logged by Dagster. The order counts: an asset
logged before what it is made of has the badge "Unsynced".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dagster as dg
import pyarrow as pa

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, settle, upstream, version
from wds_pipeline.dataset.costs import Costs
from wds_pipeline.dataset.plan import RECIPE_FORMAT, Plan
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.shard_report import ShardReport, load_report
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.defs import keys, lineage, metadata, transforms
from wds_pipeline.defs.events import log_materializations
from wds_pipeline.storage import Storage

# To Dagster, the plan's data version is how recipes are made: only when that changes is every shard
# out of date. Were it the plan's digest, one new sample would badge all shards that stay as they are.
PLAN_DATA_VERSION = RECIPE_FORMAT
_SHARDS_AT_ONCE = 100
_DATA_VERSION = "dagster/data_version"
_CODE_VERSION = "dagster/code_version"


@dataclass(frozen=True)
class Made:
    """A shard that is whole, and why it was packed; `rejected` counts the samples of its slot that a
    transform could not use."""

    seal: Seal
    cause: str
    report: ShardReport | None
    rejected: int = 0

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
    if known == list(digests) and knows_a_plan(context.instance, config):
        return
    log_listing(context, config, listing)
    context.log_event(
        dg.AssetMaterialization(
            keys.asset_key(config.name, keys.SHARD_PLAN),
            metadata=metadata.of_plan(plan),
            tags={_DATA_VERSION: PLAN_DATA_VERSION},
        )
    )


def log_listing(context: dg.OpExecutionContext, config: DatasetConfig, listing: Listing) -> None:
    """Logs the listing, and which versions of other datasets it is of."""
    tags = lineage.listing_tags(config, upstream.origin(listing))
    context.log_event(
        dg.AssetMaterialization(
            keys.asset_key(config.name, keys.SOURCE_FILES),
            metadata=metadata.of_listing(config, listing),
            tags={
                _DATA_VERSION: listing.digest,
                **({_CODE_VERSION: RECIPE_FORMAT, **tags} if tags else {}),
            },
        )
    )


def knows_a_plan(instance: dg.DagsterInstance, config: DatasetConfig) -> bool:
    """Whether the catalogue has a plan, and none of a listing before the one that it has, nor of one that is
    of an older version of another dataset than the catalogue knows."""
    listed, planned = (
        instance.get_latest_materialization_event(keys.asset_key(config.name, asset))
        for asset in (keys.SOURCE_FILES, keys.SHARD_PLAN)
    )
    if not listed or not planned or listed.timestamp > planned.timestamp:
        return False
    event = listed.asset_materialization
    return not lineage.behind(instance, config, (event.tags if event else None) or {})


def _logged(instance: dg.DagsterInstance, dataset: str, asset: str, entry: str) -> object:
    """What the catalogue has under this name of an asset."""
    event = instance.get_latest_materialization_event(keys.asset_key(dataset, asset))
    found = event.asset_materialization if event else None
    value = found.metadata.get(entry) if found else None
    return value.value if value else None


def log_shards(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: Storage,
    made: Iterable[Made],
    assets: Collection[str] = (keys.SHARDS, keys.SHARD_INDEX, keys.SHARD_REPORT),
    made_of: Mapping[str, Any] | None = None,
) -> int:
    """Logs shards, their indexes and their reports, or some of these; returns how many shards there
    were. `made_of` is the listing's `upstream.origin`: which versions of other datasets they are made of."""
    count = 0
    waiting = iter(made)
    while some := list(islice(waiting, _SHARDS_AT_ONCE)):
        count += len(some)
        for asset in assets:
            before = context.instance.event_log_storage.get_maximum_record_id() or 0
            more = {}
            if asset == keys.SHARDS:
                more = lineage.shard_tags(context.instance, config, made_of or {})
            found = (_of_shard(config, storage, shard, asset, before, more) for shard in some)
            log_materializations(context, [each for each in found if each is not None])
    return count


def _of_shard(
    config: DatasetConfig,
    storage: Storage,
    shard: Made,
    asset: str,
    before: int,
    more: Mapping[str, str],
) -> dg.AssetMaterialization | None:
    """A shard's event; `before` is the number of the last event that it may be made of, `more` are the tags
    of what else it is made of."""
    before_it = {keys.SHARDS: keys.SHARD_PLAN, keys.SHARD_INDEX: keys.SHARDS}.get(
        asset, keys.SHARD_INDEX
    )
    version_of_it = shard.seal.digest
    code_version = RECIPE_FORMAT
    if asset == keys.SHARDS:
        version_of_it = PLAN_DATA_VERSION
        code_version = transforms.code_version(config)
        description = f"{shard.seal.samples:,} samples ({shard.cause})"
        found = metadata.of_shard(
            storage, shard.seal, shard.cause, shard.report, rejected=shard.rejected
        )
    elif asset == keys.SHARD_INDEX:
        description = f"{shard.seal.members:,} members"
        found = metadata.of_index(storage, shard.seal)
    elif shard.report is None:
        return None
    else:
        description = metadata.verdict(shard.report)
        found = metadata.of_report(storage, shard.report)
    return dg.AssetMaterialization(
        keys.asset_key(config.name, asset),
        description=f"{shard.partition}: {description}",
        metadata=found,
        partition=shard.partition,
        tags={
            _DATA_VERSION: shard.seal.digest,
            _CODE_VERSION: code_version,
            **lineage.input_tags(keys.asset_key(config.name, before_it), version_of_it, before),
            **more,
        },
    )


def log_version(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    rebuilt: Collection[str] = (),
    logged: Collection[str] = (),
    costs: Costs | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> None:
    """Makes the catalogue tell of this version, unless it does already.

    `rebuilt` are names of shards to log, `logged` those that this run has logged, `costs` what the run
    asked of its stores, `made_of` the listing's `upstream.origin` if it is not the version's.
    """
    count = log_version_shards(context, config, storage, manifest, rebuilt, logged, made_of)
    known = _logged(context.instance, config.name, keys.PUBLISHED_VERSION, "version")
    known_here = known == manifest.version
    if count or logged or not known_here or _out_of_date(context.instance, config.name, manifest):
        context.log_event(
            dg.AssetMaterialization(
                keys.asset_key(config.name, keys.PUBLISHED_VERSION),
                description=f"version {manifest.version}: {manifest.total_samples:,} samples",
                metadata={
                    **metadata.of_version(config, storage, manifest),
                    **(metadata.of_costs(costs) if costs else {}),
                },
                tags={
                    _DATA_VERSION: str(manifest.version),
                    _CODE_VERSION: RECIPE_FORMAT,
                    **lineage.input_tags(
                        keys.asset_key(config.name, keys.SHARD_REPORT),
                        "",
                        context.instance.event_log_storage.get_maximum_record_id() or 0,
                    ),
                },
            )
        )


def _out_of_date(instance: dg.DagsterInstance, dataset: str, manifest: Manifest) -> bool:
    """Whether Dagster thinks that the version is older than what it is made of: a range of partitions
    was materialized, which gives them a data version that is not their shards' digests."""
    events = [
        instance.get_latest_materialization_event(keys.asset_key(dataset, asset))
        for asset in (keys.PUBLISHED_VERSION, keys.SHARD_REPORT)
    ]
    logged, report = (event.timestamp if event else 0.0 for event in events)
    found = events[1].asset_materialization if events[1] else None
    tags = found.tags if found and found.tags else {}
    digests = {shard.digest for shard in manifest.shards}
    return logged < report and tags.get(_DATA_VERSION) not in digests


def log_version_shards(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    rebuilt: Collection[str] = (),
    logged: Collection[str] = (),
    made_of: Mapping[str, Any] | None = None,
) -> int:
    """Makes the version's shards the partitions; logs those that are rebuilt, or not those that the
    catalogue has.

    The catalogue may be behind: of a version that another program than Dagster built (`wds-pipeline
    build`, `restore`), or whose run was killed between the commit and here.
    """
    instance = context.instance
    register_partitions(instance, config.name, [shard.partition for shard in manifest.shards])
    made_of = made_of or upstream.origin(manifest)
    known = _known_shards(instance, config)
    for partition in lineage.look_changed(instance, config, made_of):
        known.pop(partition, None)
    missing = [
        shard
        for shard in manifest.shards
        if shard.name not in logged
        and (shard.name in rebuilt or known.get(shard.partition) != shard.digest)
    ]
    if not missing:
        return 0
    rejected: Mapping[str, int] = {}
    if manifest.transforms:
        rejected = rejected_in(version.read_table(storage, manifest, version.QUARANTINE))
    made = _stored(storage, missing, rejected)
    return log_shards(context, config, storage, made, made_of=made_of)


def _known_shards(instance: dg.DagsterInstance, config: DatasetConfig) -> dict[str, str]:
    """By partition, the digest of the shard that the catalogue has; none if the transforms were others at
    the last version: what they leave as it was would look as if it were out of date."""
    was = _logged(instance, config.name, keys.PUBLISHED_VERSION, metadata.CODE_VERSION)
    if was and was != transforms.code_version(config):
        return {}
    key = keys.asset_key(config.name, keys.SHARDS)
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, [_DATA_VERSION]
    )
    found = {partition: of_one.get(_DATA_VERSION, "") for partition, of_one in tags.items()}
    for partition, digest in found.items():
        if ":" not in digest:  # of a range: its digest stands in the event alone
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(key, asset_partitions=[partition]), limit=1
            ).records
            event = records[0].asset_materialization if records else None
            value = event.metadata.get("digest") if event else None
            found[partition] = str(value.value) if value else ""
    return found


def rejected_in(quarantine: pa.Table) -> Counter[str]:
    """By partition, how many samples of it a transform could not use (schema `ledger.QUARANTINE`)."""
    columns = (quarantine[name].to_pylist() for name in ("reason", "split", "slot"))
    return Counter(
        seal.partition_of(seal.shard_name(split, slot, ""))
        for reason, split, slot in zip(*columns, strict=True)
        if reason == "transform_failed" and split is not None
    )


def _stored(
    storage: Storage, shards: Iterable[ShardEntry], rejected: Mapping[str, int]
) -> Iterator[Made]:
    def read(shard: ShardEntry) -> Made | None:
        found = seal.read_seal(storage, shard.name)
        if found is None:
            return None
        report = load_report(storage, shard.name)
        return Made(found, shard.cause, report, rejected.get(shard.partition, 0))

    yield from (each for each in storage.at_once(read, shards) if each is not None)


def final(config: DatasetConfig, plan: Plan, report: ShardReport) -> bool:
    """Whether a verified shard stays as it is: nothing in it goes to the quarantine."""
    return report.passed and not len(settle.reject_content(plan, config, [report]))
