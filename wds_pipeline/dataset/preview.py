"""What a build would do and why, as plain values; writes nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import ledger, samples
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.costs import Costs, estimate
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import Plan, check_policies
from wds_pipeline.dataset.settle import Progress
from wds_pipeline.dataset.wording import human_bytes
from wds_pipeline.errors import DataError

_EXAMPLES = 3


@dataclass(frozen=True)
class ShardPreview:
    """One shard. `pack`: it is written; `sealed`: a build that was killed has written it already;
    `repair`: it stays as it is, but its files are damaged or gone; `keep`: nothing happens to it."""

    partition: str
    name: str
    action: Literal["pack", "sealed", "repair", "keep"]
    cause: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class Reason:
    """Why samples are left out: how many, the first of them, and what to do about it."""

    reason: str
    count: int
    examples: list[str]
    advice: str


@dataclass(frozen=True)
class Preview:
    """What a build would do. `version` is the newest one that is published, 0 for none.

    `bytes_added` are those of new and edited samples, `bytes_written` those of the shards to pack.
    With `transforms`, samples and bytes are those of the source: what comes of them, only a build knows.
    `costs` is what the build will ask of its stores, `problems` are why it would fail.
    """

    dataset: str
    version: int
    changed: bool
    samples: int
    shards: list[ShardPreview]
    gone: list[str]
    bytes_added: int
    bytes_written: int
    costs: Costs
    transforms: list[str]
    quarantined: list[Reason]
    files: dict[str, int]
    skipped: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Literal["publish", "repair", "nothing", "fail"]:
        """What the build would end with."""
        if self.problems:
            return "fail"
        if self.changed:
            return "publish"
        return "repair" if self.of("repair") else "nothing"

    def of(self, *actions: str) -> list[ShardPreview]:
        """The shards to which this happens."""
        return [shard for shard in self.shards if shard.action in actions]

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome, **asdict(self)}


def preview(
    config: DatasetConfig,
    progress: Progress | None = None,
    *,
    repack: bool = False,
    resplit: bool = False,
) -> Preview:
    """Scans and plans; what is wrong with content shows only when a build reads it.

    Raises SourceError, DataError (no sample at all), DestinationError, VersionError.
    """
    work = Build(config, progress)
    work.newest()  # a destination that holds something else is told before the scan
    listing = work.scan()
    plan = work.plan(listing, repack=repack, resplit=resplit).plan
    missing = {shard.name for shard in work.unsealed(plan)}
    shards = []
    for shard in plan.shards:
        action: Any = "keep"
        if shard.causes:
            action = "pack" if shard.name in missing else "sealed"
        elif shard.name in missing:
            action = "repair"
        cause = "damaged or gone" if action == "repair" else shard.cause
        shards.append(
            ShardPreview(shard.partition, shard.name, action, cause, shard.samples, shard.bytes)
        )
    written = sum(shard.bytes for shard in shards if shard.action in ("pack", "repair"))
    return Preview(
        dataset=config.name,
        version=plan.parent,
        changed=plan.changed,
        samples=plan.ledger.num_rows,
        shards=shards,
        gone=plan.gone,
        bytes_added=_bytes_added(plan, work.parent()),
        bytes_written=written,
        costs=estimate(
            config,
            work.source.storage,
            work.destination,
            plan,
            [shard for shard in plan.shards if shard.name in missing],
        ),
        transforms=[step.name for step in work.steps],
        quarantined=reasons(plan.quarantine),
        files=plan.file_counts(),
        skipped=listing.skipped,
        warnings=[*work.source.warnings, *plan.warnings],
        problems=_problems(plan, config, written, work.destination.free_bytes()),
    )


def reasons(quarantine: pa.Table) -> list[Reason]:
    """A quarantine by reason, the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    columns = (quarantine[name].to_pylist() for name in ("key", "reason", "detail"))
    for key, reason, detail in zip(*columns, strict=True):
        what = detail.removesuffix(": " + samples.advice(reason))
        by_reason.setdefault(reason, []).append(what if what.startswith(key) else f"{key}: {what}")
    return [
        Reason(reason, len(found), found[:_EXAMPLES], samples.advice(reason))
        for reason, found in sorted(by_reason.items(), key=lambda each: (-len(each[1]), each[0]))
    ]


def _bytes_added(plan: Plan, parent: Parent) -> int:
    """What new and edited samples take in the shards."""
    before = parent.ledger
    size = plan.ledger["bytes"].to_numpy()
    if not before.num_rows:
        return int(size.sum())
    at = pc.index_in(plan.ledger["key"], value_set=before["key"].combine_chunks())
    old = pc.fill_null(at, -1).to_numpy()
    same = np.zeros(len(old), bool)
    known = old >= 0
    digests = ledger.digests(plan.ledger["digest"])
    same[known] = ledger.digests(before["digest"])[old[known]] == digests[known]
    return int(size[~same].sum())


def _problems(plan: Plan, config: DatasetConfig, written: int, free: int | None) -> list[str]:
    problems = []
    try:
        check_policies(plan, config)
    except DataError as error:
        problems.append(str(error).removesuffix(" Nothing was published."))
    if free is not None and free < written:
        problems.append(
            f"{config.name}: destination.url: {config.destination_url}: {human_bytes(free)} are free, "
            f"{human_bytes(written)} are needed"
        )
    return problems
