"""Inventory + previous ledger + config → the new ledger, and per shard a recipe with its cause.

A pure function. Its laws, which the tests hold with generated inventories:
the same input gives the same plan; no sample changes its split or, short of compaction or repack,
its shard; an edit or a deletion marks only its own shard; more samples touch only the open tail
shards and new ones; no change marks none; every sample is in one place, a shard or the quarantine.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import ledger, naming, samples
from wds_pipeline.dataset.causes import why_stale
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.origins import Origins
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.places import Places
from wds_pipeline.dataset.samples import Samples
from wds_pipeline.dataset.seal import shard_name
from wds_pipeline.dataset.transformed import transformed
from wds_pipeline.dataset.wording import printable
from wds_pipeline.errors import DataError
from wds_pipeline.storage import Place
from wds_pipeline.transforms.registry import Step

# Part of every recipe's digest: raised when the same members would be packed into other bytes.
RECIPE_FORMAT = "wds_pipeline-recipe-1"


@dataclass(frozen=True)
class ShardPlan:
    """One shard of the plan. `bytes` are its members' in the tar; `causes` is empty if it stays."""

    split: str
    slot: int
    recipe: str
    samples: int
    bytes: int
    causes: dict[str, int]

    @property
    def name(self) -> str:
        return shard_name(self.split, self.slot, self.recipe)

    @property
    def partition(self) -> str:
        """The shard slot's name, the same in every version: `train-000042`."""
        return f"{self.split}-{self.slot:06d}"

    @property
    def cause(self) -> str:
        """Why the shard is built, in words: `3 new, 1 edited`, or "" if it stays as it is."""
        return ", ".join(
            f"{count:,} {cause}" if count else cause for cause, count in self.causes.items()
        )


@dataclass(frozen=True)
class Recipe:
    """What one shard is made of: `members` (name, path, size, fingerprint, field), in order.

    Where these are not files below one folder, `members` has the columns of `origins.ORIGINS` too, whose
    stores are `stores`. With transforms, `digests` are the samples' (16 bytes each), of which the recipe's
    digest is made.
    """

    name: str
    split: str
    slot: int
    digest: str
    samples: int
    members: pa.Table
    stores: tuple[Place, ...] | None = None
    steps: tuple[Step, ...] = ()
    digests: bytes = b""

    def without(self, left_out: Container[str]) -> str:
        """The name of the shard that has all its samples but these, as a plan would call it."""
        names, fields = self.members["name"].to_pylist(), self.members["field"].to_pylist()
        keys = (name[: -len(field) - 1] for name, field in zip(names, fields, strict=True))
        kept = b"".join(
            self.digests[16 * number : 16 * number + 16]
            for number, key in enumerate(dict.fromkeys(keys))
            if key not in left_out
        )
        return shard_name(self.split, self.slot, recipe_digest(kept))


def recipe_digest(samples: bytes, recipe_format: str = RECIPE_FORMAT) -> str:
    """The digest of a recipe, by those of its samples (16 bytes each), in order."""
    state = xxhash.xxh3_128(recipe_format.encode())
    state.update(samples)
    return state.hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a build does. `ledger` and `quarantine` are the new version's."""

    dataset: str
    parent: int
    ledger: pa.Table
    quarantine: pa.Table
    shards: list[ShardPlan]
    gone: list[str]
    warnings: list[str]
    inventory: pa.Table
    samples: Samples
    quarantine_changed: bool
    _rows: np.ndarray
    _bounds: np.ndarray
    origins: Origins | None = None
    steps: tuple[Step, ...] = ()
    rebased: bool = False
    """Whether it is an overlay of another version of its base than the parent."""

    @property
    def stale(self) -> list[ShardPlan]:
        """The shards that the parent version does not hold as they are."""
        return [shard for shard in self.shards if shard.causes]

    @property
    def changed(self) -> bool:
        """Whether a build would publish anything new."""
        others = self.gone or self.quarantine_changed or self.rebased
        return bool(others) or any(s.causes for s in self.shards)

    @cached_property
    def _position(self) -> dict[str, int]:
        return {shard.name: index for index, shard in enumerate(self.shards)}

    def recipe(self, shard: ShardPlan) -> Recipe:
        """A shard's recipe."""
        index = self._position[shard.name]
        chosen = self._rows[self._bounds[index] : self._bounds[index + 1]]
        members = self.samples.files.take(pa.array(self.samples.rows(chosen)))
        if samples.ROW in members.column_names:
            rows = members[samples.ROW]
            members = members.drop_columns([samples.ROW])
            if self.origins is not None:
                origins = self.origins.take(rows)
                for name in origins.column_names:
                    members = members.append_column(name, origins[name])
        digests = self.samples.digests[chosen]
        return Recipe(
            shard.name,
            shard.split,
            shard.slot,
            shard.recipe,
            shard.samples,
            members.combine_chunks(),
            stores=self.origins.stores if self.origins else None,
            steps=self.steps,
            digests=np.ascontiguousarray(digests).tobytes() if self.steps else b"",
        )

    def file_counts(self) -> dict[str, int]:
        """How many of the inventory's files are packed, quarantined or ignored, by reason."""
        status = self.inventory["status"].cast(pa.string())
        counts = {row["values"]: row["counts"] for row in pc.value_counts(status).to_pylist()}
        ignored = {reason: counts[reason] for reason in naming.IGNORED if reason in counts}
        quarantined = int(pc.sum(pc.list_value_length(self.quarantine["files"])).as_py() or 0)
        packed = self.inventory.num_rows - quarantined - sum(ignored.values())
        return {"packed": packed, "quarantined": quarantined, **ignored}


def make_plan(
    inventory: pa.Table,
    config: DatasetConfig,
    parent: Parent | None = None,
    *,
    listed: Mapping[str, str] | None = None,
    rejected: pa.Table | None = None,
    draft: pa.Table | None = None,
    repack: bool = False,
    resplit: bool = False,
    recipe_format: str = RECIPE_FORMAT,
    listing: Listing | None = None,
    steps: tuple[Step, ...] = (),
) -> Plan:
    """The plan for an inventory (schema `naming.INVENTORY`).

    `listed` is the split list's content; `rejected` are samples that verification found unusable
    (schema `ledger.QUARANTINE`); `draft` is the ledger of an earlier plan of the same build, whose
    places are kept. `repack` lays every shard out anew, keeping each sample's split; `resplit` lets
    samples change their splits too. `listing` is what the inventory is of, where that knows more of its
    files than the inventory says; the inventory then has a column `samples.ROW`. `steps` are the transforms.

    Raises DataError when a rule of the configuration is broken or no sample is left.
    """
    parent = parent or Parent()
    details = listing.details if listing is not None else None
    found = samples.group(inventory, config.samples, config.name, details)
    if steps:
        found = transformed(found, steps)
    _apply_rejections(found, config, parent.quarantine if parent.same_rules else None, rejected)
    places = Places(
        found, parent, rejected, draft, config, relayout=repack or resplit, resplit=resplit
    )
    given = listing.places if listing is not None else None
    warnings: list[str] = []
    if given is None:
        if listing is not None and listing.splits is not None and not config.says_split:
            warnings += places.take_splits(listing.splits)
        warnings += places.choose_splits(listed or {})
    kept = np.flatnonzero(found.problem == "")
    if not len(kept):
        raise DataError(
            f"{config.name}: all {len(found):,} samples are unusable; "
            f"the first: {_first_problem(found)}"
        )
    if given is not None:
        places.take(given)
    else:
        places.choose_slots(kept)
    order = kept[np.lexsort((places.position[kept], places.slot[kept], places.split[kept]))]
    table = places.ledger(order)
    shards, bounds = _shards(found, inventory, order, places, parent, recipe_format)
    quarantine = places.quarantine()
    now = {(shard.split, shard.slot) for shard in shards}
    return Plan(
        dataset=config.name,
        parent=parent.version,
        ledger=table,
        quarantine=quarantine,
        shards=shards,
        gone=[f"{name}-{slot:06d}" for name, slot in sorted(set(parent.recipes) - now)],
        warnings=warnings,
        inventory=inventory,
        samples=found,
        quarantine_changed=not _same_quarantine(quarantine, parent.quarantine),
        _rows=order,
        _bounds=bounds,
        origins=listing.origins if listing is not None else None,
        steps=steps,
        rebased=listing is not None and listing.overlay.get("digest", "") != parent.base,
    )


class Quarantined(Protocol):
    """A plan, or what is left of one: tables by `ledger.LEDGER` and `ledger.QUARANTINE`."""

    @property
    def ledger(self) -> pa.Table: ...

    @property
    def quarantine(self) -> pa.Table: ...


def check_policies(plan: Quarantined, config: DatasetConfig) -> None:
    """Raises DataError when a sample breaks a rule whose policy is `error`, or too many are left out.

    The message names the reasons, how many samples each has, and the first of them.
    """
    by_reason: dict[str, list[str]] = {}
    columns = (plan.quarantine[name].to_pylist() for name in ("key", "reason", "detail"))
    for key, reason, detail in zip(*columns, strict=True):
        by_reason.setdefault(reason, []).append(printable(f"{key}: {detail}"))
    refused = [
        reason for reason in by_reason if samples.policy_for(reason, config.samples) == "error"
    ]
    count = plan.quarantine.num_rows
    total = count + plan.ledger.num_rows
    share = config.samples.max_quarantined
    if refused:
        head = f"{config.name}: {sum(len(by_reason[r]) for r in refused):,} samples break a rule"
        tail = "Mend them, or set the policy (samples.on_…) to quarantine"
    elif count - share * total > 1e-6:  # 29 of 100 are 29 %, whatever floating point says
        refused = list(by_reason)
        head = (
            f"{config.name}: {count:,} of {total:,} samples ({count / total:.1%}) are unusable; "
            f"samples.max_quarantined allows {share:.1%}"
        )
        tail = "Mend them, or raise samples.max_quarantined"
    else:
        return
    lines = [head + ":"]
    for reason in sorted(refused, key=lambda each: -len(by_reason[each])):
        examples = by_reason[reason]
        lines.append(f"  {reason}: {len(examples):,}, for example")
        lines += [f"    {example}" for example in examples[:3]]
    raise DataError("\n".join([*lines, tail + ". Nothing was published."]))


def _apply_rejections(
    found: Samples, config: DatasetConfig, before: pa.Table | None, rejected: pa.Table | None
) -> None:
    """Marks samples whose content was found unusable and has not changed since."""
    for table in (before, rejected):
        if table is None or not table.num_rows:
            continue
        index = pc.index_in(table["key"], value_set=found.keys).to_pylist()
        digests = ledger.digests(table["digest"])
        rows = zip(index, table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        for row, (sample, reason, detail) in enumerate(rows):
            if reason in samples.PASSING and table is before:
                continue
            if sample is None or reason not in samples.CONTENT_PROBLEMS or found.problem[sample]:
                continue
            wanted = samples.policy_for(reason, config.samples)
            if wanted != "keep" and found.digests[sample] == digests[row]:
                found.problem[sample], found.detail[sample] = reason, detail


def _shards(
    found: Samples,
    inventory: pa.Table,
    order: np.ndarray,
    places: Places,
    parent: Parent,
    recipe_format: str,
) -> tuple[list[ShardPlan], np.ndarray]:
    """The shards of a ledger with their recipes' digests and causes; and their bounds in it."""
    split_codes, slots = places.split[order], places.slot[order]
    new_shard = np.flatnonzero((np.diff(split_codes) != 0) | (np.diff(slots) != 0)) + 1
    bounds = np.concatenate(([0], new_shard, [len(order)]))
    starts = bounds[:-1]
    sizes = np.add.reduceat(found.bytes[order], starts)
    causes = why_stale(found, inventory, order, starts, places, parent)
    digests = np.ascontiguousarray(found.digests[order]).tobytes()
    shards = []
    for index, (start, stop) in enumerate(zip(starts.tolist(), bounds[1:].tolist(), strict=True)):
        name, slot = places.split_names[split_codes[start]], int(slots[start])
        recipe = recipe_digest(digests[16 * start : 16 * stop], recipe_format)
        why: dict[str, int] = {}
        if parent.recipes.get((name, slot)) != recipe:
            why = {cause: int(n[index]) for cause, n in causes.items() if n[index]}
            if places.relayout:
                why = {"repack": 0}
            why = why or {"config": 0}
        shards.append(ShardPlan(name, slot, recipe, stop - start, int(sizes[index]), why))
    return shards, bounds


def _same_quarantine(now: pa.Table, before: pa.Table) -> bool:
    columns = ["key", "reason", "digest"]
    return bool(now.select(columns).equals(before.select(columns)))


def _first_problem(found: Samples) -> str:
    return f"{found.keys[0].as_py()}: {found.detail.get(0, found.problem[0])}"
