"""A settled plan → the report and the manifest of the version that it will be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import publish, seal, settle, version
from wds_pipeline.dataset.plan import Plan, ShardPlan
from wds_pipeline.dataset.report import Report, ShardRow, make_report
from wds_pipeline.dataset.shard_report import ShardReport
from wds_pipeline.dataset.verify import read_thumbnail
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.dataset.wording import listed_changes
from wds_pipeline.errors import VerificationError
from wds_pipeline.storage import Storage


def make_version_report(
    config: DatasetConfig,
    storage: Storage,
    plan: Plan,
    skipped: Mapping[str, int],
    reports: Sequence[ShardReport],
) -> Report:
    """The version's report, of its shards' reports; `skipped` counts files that the scan left out."""
    rules = settle.rules(config)
    files = {"seen": plan.inventory.num_rows + sum(skipped.values()), **plan.file_counts()}
    files |= {f"skipped: {reason}": count for reason, count in skipped.items()}
    stored = {report.name: report for report in reports}
    return make_report(
        dataset=config.name,
        level=config.verify.level,
        reports=reports,
        samples_in=len(plan.samples),
        quarantine=plan.quarantine.drop_columns(["digest", "split", "slot"]),
        files=files,
        required=config.samples.required,
        shards=[
            ShardRow(s.name, s.split, s.slot, stored[s.name].samples, stored[s.name].bytes, s.cause)
            for s in plan.shards
        ],
        on_leak=config.verify.on_leak,
        picture=lambda shard, key: read_thumbnail(storage, rules, shard, key),
        about=_about(storage, plan),
        inputs=_of_source(plan),
        left_out=_left_out(storage, plan),
    )


def _of_source(plan: Plan) -> dict[str, int] | None:
    """How many samples of the source each split has, where transforms make others of them."""
    if not plan.steps:
        return None
    counts: Counter[str] = Counter()
    for shard in plan.shards:
        counts[shard.split] += shard.samples
    return dict(counts)


def _left_out(storage: Storage, plan: Plan) -> dict[str, int]:
    """By transform, how many samples it left out of the plan's shards."""
    if not plan.steps:
        return {}
    counts: Counter[str] = Counter()
    for found in seal.read_seals(storage, [shard.name for shard in plan.shards]).values():
        counts.update(found.left_out if found is not None else {})
    return dict(sorted(counts.items()))


def _about(storage: Storage, plan: Plan) -> str:
    changes: Counter[str] = Counter()
    for shard in plan.stale:
        changes.update({cause: count or 1 for cause, count in shard.causes.items()})
    made = f"version {version.next_number(storage, plan.parent)}"
    made += f" of {publish.stamp()['created'].replace('T', ' ').replace('+00:00', ' UTC')}"
    if not plan.parent:
        return made
    otherwise = "another version of the base" if plan.rebased else "other samples left out"
    return f"{made}: {listed_changes(changes) or otherwise} since version {plan.parent}"


def make_manifest(
    config: DatasetConfig,
    storage: Storage,
    plan: Plan,
    inputs: str,
    report: Report,
    made_of: Mapping[str, Any] | None = None,
    overlay: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest that publishes a plan; `inputs` is a digest of all that decided it, `made_of` the version
    of another dataset that the source is, `overlay` its base.

    Raises VerificationError when a shard of the plan is not sealed.
    """
    parent = version.try_read(storage, plan.parent) if plan.parent else None
    known = {shard.name: shard for shard in parent.shards} if parent else {}
    number = version.next_number(storage, plan.parent)
    stamp: dict[str, Any] = {**publish.stamp()}
    seals = seal.read_seals(storage, [s.name for s in plan.shards if s.name not in known])
    return Manifest.of_shards(
        [
            known.get(shard.name) or _new_entry(config, seals[shard.name], shard, number)
            for shard in plan.shards
        ],
        **stamp,
        dataset=config.name,
        version=number,
        parent=plan.parent,
        of_source=_of_source(plan),
        parent_write_id=parent.write_id if parent else "",
        source=config.shown_url("source"),
        inputs=inputs,
        content_rules=settle.rules(config).content_digest,
        config=config.written,
        files=plan.file_counts(),
        quarantined=dict(Counter(plan.quarantine["reason"].to_pylist())),
        verification=report.summary(),
        transforms=[step.name for step in plan.steps],
        left_out=report.samples.get("left_out", {}),
        made_of=made_of or {},
        overlay={**overlay, **report.samples["overlay"]} if overlay else {},
    )


def _new_entry(
    config: DatasetConfig, sealed: seal.Seal | None, shard: ShardPlan, number: int
) -> ShardEntry:
    if sealed is None:
        raise VerificationError(f"{config.name}: {shard.name}: its seal is gone; build again")
    return ShardEntry(
        name=shard.name,
        split=shard.split,
        slot=shard.slot,
        samples=sealed.samples,
        bytes=sealed.bytes,
        digest=sealed.digest,
        since=number,
        cause=shard.cause,
    )
