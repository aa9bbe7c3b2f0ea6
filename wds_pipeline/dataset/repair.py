"""Packing damaged shards of a version anew: the same recipe, the same bytes, no new version.

A recipe is what the version's own ledger and inventory say, not what the source holds now: a repair
takes in no change. A shard that cannot be had again, because its source files are other ones by now,
stays as it is stored, seal and all: whatever of it can be read still can.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.compute import run_all
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import pack, publish, seal, settle
from wds_pipeline.dataset.audit import audit_rules, expected_members
from wds_pipeline.dataset.origins import GONE, ORIGINS
from wds_pipeline.dataset.pack import Packed, PackJob
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.settle import Progress
from wds_pipeline.dataset.shard_report import LEVELS, ShardReport, load_report
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.verify_job import VerifyJob
from wds_pipeline.dataset.verify_job import run as run_verify
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.dataset.wording import counted, printable
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import Place, Storage
from wds_pipeline.transforms.registry import load as load_steps

_SHOWN = 20  # shards of a message


@dataclass(frozen=True)
class Repaired:
    """A shard that is whole again, read back."""

    seal: Seal
    report: ShardReport


@dataclass
class Repair:
    """What came of a repair: the shards that are whole again; by partition, why others are not."""

    repaired: list[Repaired] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def repair(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    damaged: Collection[str],
    pool: Executor,
    level: str | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Packs these shards of a version anew with the pool, and reads them back: at the level that the
    dataset says, or at `level` if that is deeper.

    Raises SourceError when the source is not there, DestinationError when the destination cannot be
    written or is full, VersionError, VerificationError when the version's own files cannot be read.
    """
    shards = [shard for shard in manifest.shards if shard.name in damaged]
    if not shards:
        return Repair()
    _check_source(config)
    settle.check_space(config, sum(shard.bytes for shard in shards))
    found = Repair()
    sealed = []
    recipes = _recipes(config, storage, manifest, shards)
    for packed in _pack(config, recipes, shards, pool, progress):
        if packed.seal is None:
            found.failed[seal.partition_of(packed.name)] = _reason(packed)
        else:
            sealed.append(packed.seal)
    # The views' hard links still lead to the damaged files.
    publish.relink_views(storage, {each.name for each in sealed})
    _read_back(config, storage, manifest, recipes, sealed, pool, level, found)
    return found


def unrepaired(config: DatasetConfig, manifest: Manifest, failed: dict[str, str], job: str) -> str:
    """What a user has to know of shards that could not be repaired; `job` is how they build."""
    listed = [f"{partition}: {reason}" for partition, reason in sorted(failed.items())]
    shown = "\n  ".join(printable(line) for line in listed[:_SHOWN])
    more = f"\n  and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else ""
    return (
        f"{config.name}: {counted(len(failed), 'damaged shard')} of version {manifest.version} cannot "
        f"be had again:\n  {shown}{more}\nThey stay as they are stored. Put the source files back as "
        f"they were and repair again, or run {job}: it makes a new version of the source as it is "
        "now, without this damage"
    )


def _check_source(config: DatasetConfig) -> None:
    """Else every single file would be reported as gone."""
    source = open_source(config)
    source.check()
    if source.storage is not None and source.storage.is_empty():
        raise SourceError(
            f"{config.name}: source.url: {config.source_url}: found no files; expected those that the "
            "damaged shards are packed from; check the path, or mount it. Nothing was changed"
        )


def _recipes(
    config: DatasetConfig, storage: Storage, manifest: Manifest, shards: Sequence[ShardEntry]
) -> dict[str, Recipe]:
    members = expected_members(storage, manifest, ("path", "fingerprint", "field"))
    steps = load_steps(config.transforms, config.name) if manifest.transforms else ()
    stores = None
    if config.source.kind != "url":
        some = {shard.partition: members[shard.partition] for shard in shards}
        stores, members = located(config, some)
    return {
        shard.name: Recipe(
            shard.name, shard.split, shard.slot, shard.recipe, shard.samples,
            members[shard.partition], stores, steps,
        )
        for shard in shards
    }  # fmt: skip


def located(
    config: DatasetConfig, members: Mapping[str, pa.Table]
) -> tuple[tuple[Place, ...], dict[str, pa.Table]]:
    """The members of shards with their origins in the source as it is now.

    What the source has no more, or with another content, has an origin in no file: reading it is a
    SourceChanged, as of a file that is gone. Raises SourceError.
    """
    listing = open_source(config).scan()
    if listing.origins is None:
        raise SourceError(
            f"{config.name}: source: {config.source_url}: nothing says where its files are"
        )
    found = {}
    paths = listing.files["path"].combine_chunks()
    for partition, table in members.items():
        at = pc.index_in(table["path"], value_set=paths).combine_chunks()
        row = pc.fill_null(at, 0)
        now = listing.files["fingerprint"].take(row)
        same = pc.and_(pc.is_valid(at), pc.equal(now, table["fingerprint"]).combine_chunks())
        origins = listing.origins.take(row)
        gone = pc.invert(same)
        columns = {name: origins[name].combine_chunks() for name in ORIGINS.names}
        columns["store"] = pc.if_else(gone, pa.scalar(GONE, pa.int16()), columns["store"])
        for name, column in columns.items():
            table = table.append_column(name, column)
        found[partition] = table
    return listing.origins.stores, found


def _pack(
    config: DatasetConfig,
    recipes: dict[str, Recipe],
    shards: Sequence[ShardEntry],
    pool: Executor,
    progress: Progress | None,
) -> list[Packed]:
    jobs = [
        PackJob(
            recipes[shard.name],
            settle.source_of(config),
            config.destination_place,
            published=shard.digest,
        )
        for shard in shards
    ]
    sizes = {shard.name: shard.bytes for shard in shards}
    total, done = sum(sizes.values()), 0
    results = []
    for _, packed in run_all(pool, pack.run, jobs):
        results.append(packed)
        done += sizes[packed.name]
        if progress is not None:
            progress("pack", done, total)
    return results


def _read_back(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    recipes: dict[str, Recipe],
    sealed: Sequence[Seal],
    pool: Executor,
    level: str | None,
    found: Repair,
) -> None:
    """Verifies the shards; each gets its report beside it, which the next build relies on."""
    rules = audit_rules(config, manifest)
    if level is not None and LEVELS.index(level) > LEVELS.index(rules.level):
        rules = replace(rules, level=level)
    jobs = [
        VerifyJob(
            each.name,
            config.destination_place,
            rules,
            None if manifest.transforms else recipes[each.name].members.select(["name", "size"]),
        )
        for each in sealed
    ]
    for _ in run_all(pool, run_verify, jobs):
        pass
    for each in sealed:
        report = load_report(storage, each.name)
        if report is not None and report.passed:
            found.repaired.append(Repaired(each, report))
            continue
        what = report.errors[0].message if report else "its report cannot be read"
        found.failed[seal.partition_of(each.name)] = (
            f"packed anew, and damaged again: {what}. Check the disk and the memory"
        )


def _reason(packed: Packed) -> str:
    """Why a shard was not packed."""
    if packed.refused:
        return packed.refused
    path, reason = packed.changed[0]
    count = len(packed.changed)
    if count > 1:
        return f"{count:,} of its source files are not what they were, such as {path}: {reason}"
    return f"its source file {path} is not what it was: {reason}"
