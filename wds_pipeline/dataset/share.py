"""One part of a build's shards, for array jobs: each task packs its own, and a last build publishes.

Who packs what follows from the plan alone, so that tasks need not talk to each other. A shard is sealed
when it is whole: a task that is killed loses the one under way, and started again does the rest.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Literal

from wds_pipeline.compute import open_pool, prepare
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import drafts, seal, settle
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.drafts import Draft
from wds_pipeline.dataset.plan import ShardPlan, check_policies
from wds_pipeline.dataset.settle import Progress


@dataclass(frozen=True)
class Share:
    """What a task did. `shards` are those that fell to it, `packed` those of them that were not there yet;
    `rejected` counts samples that a transform could not use. Nothing to do at all is `unchanged`."""

    status: Literal["packed", "unchanged"]
    shards: tuple[str, ...] = ()
    packed: int = 0
    rejected: int = 0
    changed: tuple[str, ...] = field(default_factory=tuple)
    """Shards whose source files changed meanwhile: a later build takes them as they are then."""


def build_share(
    config: DatasetConfig, number: int, count: int, progress: Progress | None = None
) -> Share:
    """Packs and verifies the share `number` (from 1) of `count` of the shards that a build would pack;
    publishes nothing.

    Raises what `build` raises.
    """
    work = Build(config, progress)
    work.open_destination()
    listing = work.scan()
    if work.newest_if_current(listing) is not None:
        return Share("unchanged")
    prepare(config.compute)
    draft = work.plan(listing)
    check_policies(draft.plan, config)
    mine = draft.plan.stale[number - 1 :: count]
    with open_pool(config.compute) as pool:
        return _pack(work, draft, mine, pool)


def _pack(work: Build, draft: Draft, mine: list[ShardPlan], pool: Executor) -> Share:
    places = {shard.partition for shard in mine}
    missing = _missing(work, draft, places)
    known_already = drafts.known_unusable(work, draft.plan, missing)
    if known_already:  # by a task that was killed
        with drafts.forgetting(work, draft):
            draft = work.redraft(draft, rejected=known_already, keep_places=True)
        missing = _missing(work, draft, places)
    packed = work.pack(draft.plan, missing, pool) if missing else []
    rejected = settle.reject_failed(draft.plan, packed)
    if rejected:
        with drafts.forgetting(work, draft):
            draft = work.redraft(draft, rejected=draft.rejected.add(rejected), keep_places=True)
    left = {shard.name for shard in _missing(work, draft, places)}
    done = [s for s in draft.plan.shards if s.partition in places and s.name not in left]
    known = settle.load_reports(work.destination, done)
    work.verify(draft.plan, [shard for shard in done if known[shard.name] is None], pool)
    return Share(
        "packed",
        tuple(shard.partition for shard in mine),
        sum(each.seal is not None for each in packed),
        len(rejected),
        tuple(
            seal.partition_of(each.name)
            for each in packed
            if each.seal is None and not each.rejected
        ),
    )


def _missing(work: Build, draft: Draft, places: set[str]) -> list[ShardPlan]:
    return [shard for shard in work.unsealed(draft.plan) if shard.partition in places]


def parse_share(text: str) -> tuple[int, int]:
    """`3/16` as two numbers. Raises ValueError for anything else."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(
            f"found {text!r}; expected the task's number, from 1, and how many there are, such as 3/16"
        )
    return int(number), int(count)
