"""Packing single shards anew from the source, and reading them back: each succeeds or fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from wds_pipeline.dataset import settle
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.pack import Packed
from wds_pipeline.dataset.plan import Plan, ShardPlan
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.shard_report import ShardReport

GONE = "the present plan has no such shard; its samples are gone from the source"
NOT_TRIED = "not tried, for many shards before it failed: the store is away; try again later"


@dataclass(frozen=True)
class Rebuilt:
    """A shard that is whole again, or the `problem` because of which it is not.

    `as_published`: it has the bytes that the newest version gives it.
    """

    partition: str
    seal: Seal | None = None
    report: ShardReport | None = None
    cause: str = ""
    as_published: bool = False
    problem: str = ""


def rebuild(build: Build, plan: Plan, partitions: Sequence[str], pool: Executor) -> list[Rebuilt]:
    """Packs the plan's shards of these partitions, whatever is stored, and verifies them.

    Raises DestinationError, WorkerError.
    """
    by_partition = {shard.partition: shard for shard in plan.shards}
    chosen = [by_partition[each] for each in partitions if each in by_partition]
    packed = {shard.name: Packed(shard.name, None, failed=NOT_TRIED) for shard in chosen}
    packed |= {each.name: each for each in build.try_pack(plan, chosen, pool, anew=True)}
    sealed = [
        shard
        for shard in chosen
        if packed[shard.name].seal is not None and not packed[shard.name].rejected
    ]
    build.verify(plan, sealed, pool)
    reports = settle.load_reports(build.destination, sealed)
    newest = build.newest()
    published = {shard.name for shard in newest.shards} if newest else set()
    found = []
    for partition in partitions:
        shard = by_partition.get(partition)
        if shard is None:
            found.append(Rebuilt(partition, problem=GONE))
        else:
            report = reports.get(shard.name)
            found.append(_outcome(shard, packed[shard.name], report, shard.name in published))
    return found


def _outcome(
    shard: ShardPlan, packed: Packed, report: ShardReport | None, as_published: bool
) -> Rebuilt:
    if packed.rejected:
        key, reason = next(iter(packed.rejected.items()))
        problem = (
            f"{len(packed.rejected):,} of its samples are rejected by the transforms, such as {key}: "
            f"{reason}; the build job leaves them out"
        )
        return Rebuilt(shard.partition, problem=problem)
    if packed.seal is None:
        reasons = [f"{path}: {reason}" for path, reason in packed.changed]
        more = f"; and {len(reasons) - 3:,} more files" if len(reasons) > 3 else ""
        problem = packed.refused or packed.failed or f"{'; '.join(reasons[:3])}{more}"
        return Rebuilt(shard.partition, problem=problem)
    if report is None or not report.passed:
        found = report.errors[0] if report else None
        why = f"{found.code}: {found.message}" if found else "its report cannot be read"
        return Rebuilt(shard.partition, problem=f"packed anew, and damaged at once: {why}")
    cause = shard.cause or "repair"
    return Rebuilt(shard.partition, packed.seal, report, cause, as_published)
