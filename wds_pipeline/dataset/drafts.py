"""A plan on its way to a version: packed, verified, and planned anew where that shows it must be.

Each round looks at what is stored. What verification finds unusable goes to the quarantine, and only its
own shard is packed anew; a source that changes meanwhile is scanned again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wds_pipeline.dataset import seal, settle
from wds_pipeline.dataset.plan import Plan, ShardPlan, check_policies
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.dataset.settle import Rejections
from wds_pipeline.dataset.shard_report import ShardReport, load_report
from wds_pipeline.errors import DataError, VerificationError

if TYPE_CHECKING:
    from wds_pipeline.dataset.build import Build

_SCANS = 3  # a source that changes while it is packed is scanned anew, so many times at most
_LOST = 20  # how often another build may be at the same shards at the same moment


@dataclass(frozen=True)
class Draft:
    """A plan with the listing that it is of, and what was found unusable on the way to it.

    `reports` are those of shards that were read so far: a store is asked once for each.
    """

    listing: Listing
    plan: Plan
    rejected: Rejections = field(default_factory=Rejections.none)
    packed: frozenset[str] = frozenset()
    repaired: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()
    lost: int = 0
    superseded: frozenset[str] = frozenset()
    repack: bool = False
    resplit: bool = False
    reports: Mapping[str, ShardReport] = field(default_factory=dict, repr=False)


def settle_draft(work: Build, draft: Draft, pool: Executor) -> Draft:
    """Packs and verifies until every shard of the plan, as it then is, is sealed and sound.

    Raises DataError when too many samples turn out to be unusable, VerificationError when a shard is
    damaged again after it was packed anew.
    """
    scans = 1
    while True:
        if work.on_candidate is not None:
            work.on_candidate(draft.plan, None)
        with forgetting(work, draft):
            check_policies(draft.plan, work.config)
        missing = work.unsealed(draft.plan)
        found = known_unusable(work, draft.plan, missing)
        if found:
            with forgetting(work, draft):
                draft = _without(work, draft, found)
            continue
        packed = work.pack(draft.plan, missing, pool) if missing else []
        done = frozenset(each.seal.name for each in packed if each.seal is not None)
        again = done & {shard.name for shard in missing if not shard.causes}
        kept = {name: each for name, each in draft.reports.items() if name not in done}
        draft = replace(
            draft, packed=draft.packed | done, repaired=draft.repaired | again, reports=kept
        )
        failed = settle.reject_failed(draft.plan, packed)
        if failed:  # the shards without them are sealed already
            with forgetting(work, draft):
                draft = _without(work, draft, failed)
            continue
        changed = [each for each in packed if each.seal is None]
        if changed and scans < _SCANS:
            scans += 1
            draft = work.redraft(draft, listing=work.scan(), keep_places=True)
        elif changed:
            draft = _without(work, draft, settle.reject_unstable(draft.plan, changed))
        else:
            draft, sound = _verified(work, draft, pool)
            if sound:
                return draft


def unverified(
    work: Build, plan: Plan, reports: Mapping[str, ShardReport | None]
) -> list[ShardPlan]:
    """The plan's shards that have no report to rely on, among these."""
    newest = work.newest()
    published = {shard.name: shard.digest for shard in newest.shards} if newest else {}
    # What a published shard is, its version says; for the others the seals are asked.
    others = [shard.name for shard in plan.shards if shard.name not in published]
    seals = seal.read_seals(work.destination, others)
    digests = published | {name: each.digest for name, each in seals.items() if each is not None}
    wanted = settle.rules(work.config)
    missing = []
    for shard in plan.shards:
        report, digest = reports.get(shard.name), digests.get(shard.name)
        if report is None or digest is None or not report.covers(digest, wanted):
            missing.append(shard)
    return missing


def reports_of(work: Build, draft: Draft) -> list[ShardReport]:
    """The reports of all the draft's shards. Raises VerificationError when one is not there."""
    reports = _load(work, draft.plan, draft.reports)
    missing = [name for name, report in reports.items() if report is None]
    if missing:
        raise VerificationError(
            f"{work.config.name}: {missing[0]}: its report cannot be read, though it was just "
            "written; build again"
        )
    return [report for report in reports.values() if report is not None]


def _load(
    work: Build, plan: Plan, known: Mapping[str, ShardReport]
) -> dict[str, ShardReport | None]:
    """The reports of the plan's shards, in its order; those not known are read."""
    others = [shard for shard in plan.shards if shard.name not in known]
    found = settle.load_reports(work.destination, others) | dict(known)
    return {shard.name: found[shard.name] for shard in plan.shards}


def known_unusable(work: Build, plan: Plan, missing: Sequence[ShardPlan]) -> Rejections:
    """What a build that was killed had found in shards that it then removed."""
    there = set(work.destination.list_names(seal.FOLDER)) if missing else set()
    shards = [shard for shard in missing if shard.name + seal.REPORT in there]
    reports = settle.load_reports(work.destination, shards).values()
    sound = [report for report in reports if report is not None and report.passed]
    return settle.reject_content(plan, work.config, sound)


@contextmanager
def forgetting(work: Build, draft: Draft) -> Iterator[None]:
    """Forgets which samples the transforms reject when too many of them do: often it is a program or a device
    that is not there, and the next build must try them again."""
    try:
        yield
    except DataError:
        names = draft.superseded.union(shard.name for shard in draft.plan.shards)
        there = set(work.destination.list_names(seal.FOLDER)) if draft.plan.steps else set()
        for name in names:
            if name + seal.REPORT not in there or name + seal.SEAL in there:
                continue
            report = load_report(work.destination, name)
            if report is not None and "transform_failed" in report.members["problem"].to_pylist():
                work.destination.delete(seal.path(name, seal.REPORT))
        raise


def _verified(work: Build, draft: Draft, pool: Executor) -> tuple[Draft, bool]:
    """The next draft, and whether it is settled: all its shards are sound."""
    known = _load(work, draft.plan, draft.reports)
    shards = unverified(work, draft.plan, known)
    if shards:
        work.verify(draft.plan, shards, pool, draft.superseded)
        known |= settle.load_reports(work.destination, shards)
    draft = replace(draft, reports={name: each for name, each in known.items() if each is not None})
    try:
        reports = reports_of(work, draft)
    except VerificationError:
        if draft.lost >= _LOST:
            raise
        return replace(draft, lost=draft.lost + 1), False
    damaged = [report for report in reports if not report.passed]
    for report in damaged:
        if report.name in draft.damaged:
            finding = report.errors[0]
            where = work.destination.locate(seal.path(report.name, seal.TAR))
            raise VerificationError(
                f"{work.config.name}: {where}: {finding.code}: {finding.message}; it was packed anew "
                "and is damaged again. Check the disk and the memory. Nothing was published"
            )
        work.destination.delete(seal.path(report.name, seal.SEAL))
    if damaged:
        names = frozenset(report.name for report in damaged)
        kept = {name: each for name, each in draft.reports.items() if name not in names}
        return replace(draft, damaged=draft.damaged | names, reports=kept), False
    found = settle.reject_content(draft.plan, work.config, reports)
    return (_without(work, draft, found), False) if len(found) else (draft, True)


def _without(work: Build, draft: Draft, found: Rejections) -> Draft:
    """The draft without these samples; shards that this build packed with them are removed."""
    after = work.redraft(draft, rejected=draft.rejected.add(found), keep_places=True)
    kept = {shard.name for shard in after.plan.shards}
    columns = (found.table[name].to_pylist() for name in ("split", "slot"))
    places = set(zip(*columns, strict=True))
    spoilt = {s.name for s in draft.plan.shards if (s.split, s.slot) in places}
    # Others that are superseded stay: another build may be about to publish them.
    for name in (draft.packed & spoilt) - kept:
        # Its report stays, until the commit: what it says need not be found out again.
        for end in (seal.SEAL, seal.TAR, seal.MEMBERS):
            work.destination.delete(seal.path(name, end))
    superseded = {shard.name for shard in draft.plan.shards} - kept
    return replace(
        after,
        packed=draft.packed & kept,
        superseded=draft.superseded | superseded,
        reports={name: each for name, each in draft.reports.items() if name in kept},
    )
