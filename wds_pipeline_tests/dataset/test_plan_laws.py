"""The plan's laws, over generated histories; and a slow, plain model of the plan to compare with."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import xxhash
from hypothesis import event, given, settings
from hypothesis import strategies as st

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import tar
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import Plan, make_plan
from wds_pipeline.errors import DataError
from wds_pipeline_tests.dataset.inventories import (
    Files,
    Source,
    Step,
    dataset,
    histories,
    inventory,
    keys_of,
    left_out,
    plan_of,
    published,
    rejections,
    shards_of,
)

Place = tuple[str, int]

CONFIGS: list[dict[str, Any]] = [
    {},
    {"split": {"train": 0.5, "val": 0.3, "test": 0.2, "group_by": "^([^/]+)/"}},
    {"split": {"train": 1.0, "none": 0}, "shards": {"max_bytes": 3_000, "max_samples": 100}},
    {"split": {"by": "directory", "names": {"g0": "val"}}, "shards": {"max_samples": 2}},
    {"samples": {"on_missing": "keep", "on_invalid": "keep"}, "shards": {"max_samples": 1}},
]


# --- a model of the plan: dicts and loops, from the design and not from the code -----------------


@dataclass
class Model:
    """One dataset's versions, one after the other."""

    places: dict[str, Place] = field(default_factory=dict)  # of all samples, quarantined ones too
    shards: dict[Place, list[str]] = field(default_factory=dict)
    content: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    files: Files = field(default_factory=dict)

    def step(
        self, files: Files, config: DatasetConfig
    ) -> tuple[dict[str, str], dict[Place, Counter[str]]]:
        """The next version. Returns the quarantine, and the causes of each shard that changes."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for path in files:
            key, _, name = path.rpartition(".")
            if config.samples.fields is None or name in config.samples.fields:
                found[key][name] = path
        problems = {
            key: p for key, fields in found.items() if (p := self._problem(fields, files, config))
        }
        splits = {key: place[0] for key, place in self.places.items() if key in found}
        for key in found:
            if key not in problems and key not in splits:
                splits[key] = self._split(key, config, splits)
        slots = {key: place[1] for key, place in self.places.items() if key in found}
        shards: dict[Place, list[str]] = {}
        for place, keys in self.shards.items():
            here = [key for key in keys if key in found and key not in problems]
            if here:
                shards[place] = here
        back = [
            k for k in slots if k not in problems and k not in shards.get((splits[k], slots[k]), [])
        ]
        for key in sorted(back, key=_hash):
            shards.setdefault((splits[key], slots[key]), []).append(key)
        sizes = {key: self._bytes(found[key], files) for key in found}
        for split in set(splits.values()):
            new = [k for k in found if k not in problems and k not in slots and splits[k] == split]
            mine = [slot for name, slot in shards if name == split]
            slot = max(mine, default=0)
            for key in sorted(new, key=_hash):
                inside = shards.get((split, slot), [])
                full = len(inside) >= config.shards.max_samples or (
                    sum(sizes[k] for k in inside) + sizes[key] > config.shards.max_bytes
                )
                if inside and full:
                    slot += 1
                shards.setdefault((split, slot), []).append(key)
        content = {
            key: tuple(
                (f"{key}.{name}", path, *files[path]) for name, path in sorted(fields.items())
            )
            for key, fields in found.items()
        }
        causes = self._causes(shards, content, files)
        self.places = {k: p for k, p in self.places.items() if k in found}
        self.places |= {key: place for place, keys in shards.items() for key in keys}
        self.shards, self.content, self.files = shards, content, dict(files)
        return problems, causes

    def _problem(self, fields: dict[str, str], files: Files, config: DatasetConfig) -> str:
        if (
            any(files[path][0] == 0 for path in fields.values())
            and config.samples.on_invalid != "keep"
        ):
            return "empty_file"
        if any(name not in fields for name in config.samples.required):
            return "missing_field" if config.samples.on_missing != "keep" else ""
        return ""

    def _split(self, key: str, config: DatasetConfig, settled: dict[str, str]) -> str:
        if config.split.by == "directory":
            folder = key.partition("/")[0]
            return config.split.names.get(folder, folder)
        group = key
        if config.split.group_by:
            match = re.search(config.split.group_by, key)
            group = match.group(1) if match else key
            for other, split in settled.items():
                match = re.search(config.split.group_by, other)
                if (match.group(1) if match else other) == group:
                    return split
        place = xxhash.xxh3_64_intdigest(f"{config.split.salt}\0{group}".encode()) / 2**64
        for name, share in config.split.ratios.items():
            place -= share
            if place < 0:
                return name
        raise AssertionError(key)

    def _bytes(self, fields: dict[str, str], files: Files) -> int:
        return sum(
            tar.BLOCK * (1 + -(-files[path][0] // tar.BLOCK)) for path in fields.values()
        )  # the names here are short

    def _causes(
        self, shards: dict[Place, list[str]], content: dict[str, tuple[Any, ...]], files: Files
    ) -> dict[Place, Counter[str]]:
        causes: dict[Place, Counter[str]] = {}
        was = {key for keys in self.shards.values() for key in keys}
        for place, keys in shards.items():
            before = self.shards.get(place, [])
            count: Counter[str] = Counter()
            for key in keys:
                if key not in was:
                    count["new"] += 1
                elif content[key] != self.content[key]:
                    same = all(
                        self.files.get(path) == (size, mark) for _, path, size, mark in content[key]
                    )
                    lost = any(path not in files for _, path, _, _ in self.content[key])
                    count["config" if same and not lost else "edited"] += 1
            if gone := len(set(before) - set(keys)):
                count["deleted"] = gone
            if count:
                causes[place] = count
        return causes


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


# --- laws that hold for every plan --------------------------------------------------------------


def check_plan(plan: Plan, files: Files, config: DatasetConfig) -> None:
    """What is true of a plan by itself."""
    placed, quarantined = plan.ledger["key"].to_pylist(), plan.quarantine["key"].to_pylist()
    assert len(set(placed)) == len(placed)
    assert len(set(quarantined)) == len(quarantined)
    keys = set(zip(plan.inventory["key"].to_pylist(), strict=True))
    assert sorted([*placed, *quarantined]) == sorted(key for (key,) in keys if key is not None)
    members: list[str] = []
    used: list[str] = []
    for shard, owned in zip(plan.shards, shards_of(plan).items(), strict=True):
        assert owned[0] == shard.partition
        recipe = plan.recipe(shard)
        assert (recipe.name, recipe.split, recipe.slot) == (shard.name, shard.split, shard.slot)
        assert (recipe.digest, recipe.samples) == (shard.recipe, shard.samples)
        rows = recipe.members.to_pylist()
        order = [row["name"][: -len(row["field"]) - 1] for row in rows]
        assert all(
            row["name"] == f"{key}.{row['field']}" for row, key in zip(rows, order, strict=True)
        )
        assert list(dict.fromkeys(order)) == owned[1]
        assert len(owned[1]) == shard.samples
        together = [key for key, last in zip(order, ["", *order], strict=False) if key != last]
        assert together == owned[1], "a sample's members are adjacent"
        for key in owned[1]:
            fields = [r["field"] for r, k in zip(rows, order, strict=True) if k == key]
            assert fields == sorted(set(fields))
        assert [(r["size"], r["fingerprint"]) for r in rows] == [files[r["path"]] for r in rows]
        assert shard.bytes == sum(tar.member_size(r["name"], r["size"]) for r in rows)
        members += [row["name"] for row in rows]
        used += [row["path"] for row in rows]
    assert len(set(members)) == len(members)
    out = [path for paths in plan.quarantine["files"].to_pylist() for path in paths]
    counts = plan.file_counts()
    assert len(used) == counts["packed"]
    assert len(out) == counts["quarantined"]
    assert len({*used, *out}) == len(used) + len(out)
    assert sum(counts.values()) == len(files), "files in = packed + quarantined + ignored"


def check_steps(before: Plan, after: Plan, config: DatasetConfig) -> None:
    """What is true of a plan and the one before it, when nothing is compacted."""
    old, new = keys_of(before), keys_of(after)
    for key in old.keys() & new.keys():
        assert old[key] == new[key], "a sample stays in its split and shard"
    hidden = {
        row["key"]: (row["split"], row["slot"])
        for row in before.quarantine.to_pylist()
        if row["slot"] is not None
    }
    for key in hidden.keys() & new.keys():
        assert new[key] == hidden[key], "a sample that comes back finds its place"
    then = dict(zip(before.samples.keys.to_pylist(), before.samples.digests.tolist(), strict=True))
    now = dict(zip(after.samples.keys.to_pylist(), after.samples.digests.tolist(), strict=True))
    touched = {place for key, place in old.items() if key not in new or then[key] != now[key]}
    touched |= {place for key, place in new.items() if key not in old}
    stale = {(shard.split, shard.slot) for shard in after.stale}
    gone = {(split, int(slot)) for split, _, slot in (each.rpartition("-") for each in after.gone)}
    assert stale == touched - gone, "a change marks its own shard, and no other"
    assert gone == set(old.values()) - set(new.values())
    for key in new.keys() - old.keys() - hidden.keys():
        split, slot = new[key]
        kept = [n for each, (s, n) in new.items() if s == split and (each in old or each in hidden)]
        assert slot >= max(kept, default=0), "what is new goes to the tail and behind it"
    for shard, keys in shards_of(after).items():
        place = (shard.rpartition("-")[0], int(shard.rpartition("-")[2]))
        fresh = [key for key in keys if key not in old and key not in hidden]
        if fresh:
            index = {key: at for at, key in enumerate(after.samples.keys.to_pylist())}
            size = sum(int(after.samples.bytes[index[key]]) for key in keys)
            assert len(keys) == 1 or size <= config.shards.max_bytes, place
            assert len(keys) <= config.shards.max_samples, place
        kept_order = [key for key in keys if key in old]
        assert kept_order == sorted(kept_order, key=list(old).index)


def same(one: Plan, two: Plan) -> bool:
    return (
        one.ledger.to_pylist() == two.ledger.to_pylist()
        and one.quarantine.to_pylist() == two.quarantine.to_pylist()
        and one.shards == two.shards
        and one.gone == two.gone
        and one.changed == two.changed
        and all(
            one.recipe(a).members.to_pylist() == two.recipe(b).members.to_pylist()
            for a, b in zip(one.shards, two.shards, strict=True)
        )
    )


def run(history: list[list[Step]], config: DatasetConfig) -> tuple[Source, list[Plan]]:
    """A history's plans; what would leave no sample to publish is undone."""
    source, plans = Source(), list[Plan]()
    for changes in history:
        before = dict(source.files)
        for step in changes:
            source.apply(step)
        try:
            plans.append(plan_of(source.files, config, published(plans[-1]) if plans else None))
        except DataError:
            source.files = before
    return source, plans


@pytest.mark.parametrize("number", range(len(CONFIGS)))
@settings(max_examples=35)
@given(history=histories(), seed=st.integers(0, 5))
def test_the_plan_is_the_model_s_and_keeps_its_laws(
    number: int, history: list[list[Step]], seed: int
) -> None:
    config = dataset(**CONFIGS[number])
    source, model = Source(), Model()
    before: Plan | None = None
    for changes in history:
        for step in changes:
            source.apply(step)
        parent = published(before) if before else Parent()
        try:
            plan = plan_of(source.files, config, parent)
        except DataError:
            event("nothing to publish")
            continue
        check_plan(plan, source.files, config)
        if before is not None:
            check_steps(before, plan, config)
        problems, causes = model.step(source.files, config)
        assert left_out(plan) == problems
        assert {(s.split, s.slot): s.causes for s in plan.stale} == causes
        assert shards_of(plan) == {f"{p[0]}-{p[1]:06d}": k for p, k in sorted(model.shards.items())}
        mixed = list(source.files)
        random.Random(seed).shuffle(mixed)
        again = make_plan(inventory(source.files, config, mixed), config, parent)
        assert same(plan, again), "the same files, listed in another order"
        nothing = plan_of(source.files, config, published(plan))
        assert not nothing.changed
        assert not nothing.stale
        assert nothing.ledger.equals(plan.ledger)
        before = plan


@settings(max_examples=25)
@given(history=histories(3), count=st.integers(1, 9))
def test_more_samples_touch_the_tails_and_new_shards_only(
    history: list[list[Step]], count: int
) -> None:
    config = dataset()
    source, plans = run(history, config)
    source.apply(Step("add", 0, count, 512))
    plan = plan_of(source.files, config, published(plans[-1]))
    tails = {
        split: max(s.slot for s in plans[-1].shards if s.split == split)
        for split in {s.split for s in plans[-1].shards}
    }
    assert sum(shard.causes["new"] for shard in plan.stale) == count
    for shard in plan.stale:
        assert shard.causes.keys() == {"new"}
        assert shard.slot >= tails.get(shard.split, 0)


@settings(max_examples=30)
@given(
    history=histories(),
    ratios=st.lists(
        st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.1, 0.9)]), min_size=4, max_size=4
    ),
)
def test_groups_are_never_torn_apart_though_the_ratios_change(
    history: list[list[Step]], ratios: list[tuple[float, float]]
) -> None:
    source, parent = Source(), Parent()
    before: dict[str, str] = {}
    for changes, (train, val) in zip(history, ratios, strict=False):
        for step in changes:
            source.apply(step)
        config = dataset(split={"train": train, "val": val, "group_by": "^([^/]+)/"})
        try:
            plan = plan_of(source.files, config, parent)
        except DataError:
            continue
        where: dict[str, set[str]] = defaultdict(set)
        for key, (split, _) in keys_of(plan).items():
            where[key.partition("/")[0]].add(split)
        # What waits in the quarantine comes back to its group's split.
        for row in plan.quarantine.to_pylist():
            if row["split"]:
                where[row["key"].partition("/")[0]].add(row["split"])
        assert all(len(splits) == 1 for splits in where.values()), where
        now = {key: split for key, (split, _) in keys_of(plan).items()}
        assert all(now[key] == before[key] for key in now.keys() & before.keys())
        before, parent = now, published(plan)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "max_bytes up": ({"shards": {"max_bytes": 50_000, "max_samples": 4}}, "none"),
    "max_bytes down": ({"shards": {"max_bytes": 1_000, "max_samples": 4}}, "none"),
    "max_samples down": ({"shards": {"max_bytes": 10_000, "max_samples": 1}}, "none"),
    "ratios": ({"split": {"train": 0.1, "val": 0.9}}, "none"),
    "salt": ({"split": {"train": 0.6, "val": 0.4, "salt": "x"}}, "none"),
    "split by directory": ({"split": {"by": "directory"}}, "none"),
    "group_by": ({"split": {"train": 0.6, "val": 0.4, "group_by": "^([^/]+)/"}}, "none"),
    "digest": ({"shards": {"digest": "sha256", "max_bytes": 10_000, "max_samples": 4}}, "none"),
    "json dropped": (
        {"samples": {"fields": {"jpg": [], "txt": []}, "required": ["jpg", "txt"]}},
        "json",
    ),
    "json renamed": (
        {"samples": {"fields": {"jpg": [], "txt": [], "meta.json": ["json"]}, "required": ["jpg"]}},
        "json",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@settings(max_examples=12)
@given(history=histories(3))
def test_a_changed_configuration_marks_exactly_what_it_affects(
    change: str, history: list[list[Step]]
) -> None:
    values, affects = CHANGES[change]
    source, plans = run(history, dataset(samples={"required": ["jpg"]}))
    start = plans[-1]
    config = dataset(**{"samples": {"required": ["jpg"]}, **values})
    try:
        plan = plan_of(source.files, config, published(start))
    except DataError:
        return
    with_json = {path.rpartition(".")[0] for path in source.files if path.endswith(".json")}
    hit = with_json if affects == "json" else set()
    quarantined = left_out(plan)
    for shard in plan.stale:
        keys, old = shards_of(plan)[shard.partition], shards_of(start).get(shard.partition, [])
        differ = set(keys) & set(old) & hit
        assert differ or set(old) - set(keys) or set(keys) - set(old)
        if differ:
            assert shard.causes["config"] == len(differ)
        assert "edited" not in shard.causes
    if affects == "none" or not hit:
        assert not plan.stale or quarantined != left_out(start)
    stale = {shard.partition for shard in plan.stale}
    for partition, keys in shards_of(plan).items():
        assert not set(keys) & hit or partition in stale


@settings(max_examples=15)
@given(history=histories(3))
def test_another_recipe_format_marks_all(history: list[list[Step]]) -> None:
    config = dataset()
    source, plans = run(history, config)
    plan = plan_of(source.files, config, published(plans[-1]), recipe_format="another")
    assert plan.stale == plan.shards
    assert all(shard.causes == {"config": 0} and shard.cause == "config" for shard in plan.shards)
    assert not {shard.name for shard in plan.shards} & {shard.name for shard in plans[-1].shards}


@settings(max_examples=25)
@given(history=histories(), limit=st.sampled_from([3_000, 10_000]))
def test_repack_keeps_the_splits_and_is_a_fresh_layout(
    history: list[list[Step]], limit: int
) -> None:
    config = dataset(shards={"max_bytes": limit, "max_samples": 4})
    source, plans = run(history, config)
    before = plans[-1]
    try:
        plan = plan_of(source.files, config, published(before), repack=True)
    except DataError:
        return
    check_plan(plan, source.files, config)
    old, new = keys_of(before), keys_of(plan)
    assert all(old[key][0] == new[key][0] for key in old.keys() & new.keys())
    listed = {key: split for key, (split, _) in new.items()}
    by_list = dataset(
        shards={"max_bytes": limit, "max_samples": 4}, split={"by": "list", "file": "x.csv"}
    )
    fresh = plan_of(source.files, by_list, listed=listed)
    assert fresh.ledger.to_pylist() == plan.ledger.to_pylist()
    assert [s.recipe for s in fresh.shards] == [s.recipe for s in plan.shards]
    assert all(shard.cause == "repack" for shard in plan.stale)
    again = plan_of(source.files, config, published(plan), repack=True)
    assert not again.stale


@settings(max_examples=25)
@given(
    history=histories(),
    below=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    kind=st.sampled_from(["delete", "empty", "lose"]),
)
def test_compaction_comes_to_an_end_and_never_changes_a_split(
    history: list[list[Step]], below: float, kind: str
) -> None:
    source, plans = run([*history, [Step(kind, 3, 5, 0)]], dataset())
    config = dataset(shards={"max_bytes": 10_000, "max_samples": 4, "compact_below": below})
    before = plans[-1]
    for _ in range(len(before.shards) + 2):
        try:
            plan = plan_of(source.files, config, published(before))
        except DataError:
            return
        check_plan(plan, source.files, config)
        old, new = keys_of(before), keys_of(plan)
        moved = [key for key in old.keys() & new.keys() if old[key] != new[key]]
        assert all(old[key][0] == new[key][0] for key in old.keys() & new.keys())
        assert sum(shard.causes.get("moved", 0) for shard in plan.stale) == len(moved)
        if moved:
            event("compacted")
            assert len(plan.shards) < len(before.shards)
            for key in moved:
                assert f"{old[key][0]}-{old[key][1]:06d}" in plan.gone
        before = plan
    assert not before.changed, "plans of the same files that never settle"


@settings(max_examples=40)
@given(
    history=histories(3),
    first=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    second=st.lists(st.integers(0, 30), max_size=3),
)
def test_a_rejected_sample_leaves_its_shard_alone_and_returns_to_it(
    history: list[list[Step]], first: list[int], second: list[int]
) -> None:
    config = dataset()
    source, plans = run(history, config)
    if len(plans) < 2:
        return
    parent = published(plans[-2])
    draft = plans[-1]
    home = keys_of(draft)
    rejected = rejections(draft, [])
    gone: set[str] = set()
    for numbers in (first, second):
        keys = [key for key in home if key not in gone]
        chosen = sorted({keys[number % len(keys)] for number in numbers})
        if len(chosen) == len(keys):
            return
        more = rejections(draft, chosen)
        rejected = type(rejected).from_batches(
            rejected.to_batches() + more.to_batches(), more.schema
        )
        after = plan_of(source.files, config, parent, rejected=rejected, draft=draft.ledger)
        gone |= set(chosen)
        assert keys_of(after) == {key: place for key, place in home.items() if key not in gone}
        names = {shard.partition: shard.name for shard in draft.shards}
        own = {f"{home[key][0]}-{home[key][1]:06d}" for key in chosen}
        for shard in after.shards:
            assert (names[shard.partition] == shard.name) == (shard.partition not in own)
        draft = after
    check_plan(draft, source.files, config)
    assert gone <= left_out(draft).keys()
    version = published(draft)
    assert not plan_of(source.files, config, version).changed, "still broken, still left out"
    # A sample that was published before has its place, however often the draft was replaced.
    for key in sorted(gone):
        source.put(f"{key}.jpg", 700)
    back = plan_of(source.files, config, version)
    assert gone <= keys_of(back).keys()
    old = {key: place for key, place in keys_of(plans[-2]).items() if key in gone}
    assert {key: keys_of(back)[key] for key in old} == old
    for key in gone:
        assert keys_of(back)[key][0] == home[key][0]
