"""Generated sources, their inventories, and histories of what happens to them.

A source is a dict of path → (size, fingerprint). A history is a list of small steps that say in
numbers what happens, so that hypothesis can shrink it; `Source.apply` gives them a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import ledger
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import Plan, make_plan
from wds_pipeline.dataset.scan import LISTING

# The same examples at every run, and no deadline: the machines that run this are shared.
settings.register_profile(
    "wds_pipeline",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("wds_pipeline")

Files = dict[str, tuple[int, str]]
FIELDS = ("jpg", "json", "txt")


def dataset(**sections: Any) -> DatasetConfig:
    """A configuration for plans: tiny shards, no budget, jpg and txt required."""
    values: dict[str, Any] = {
        "name": "small",
        "source": {"url": "raw"},
        "destination": {"url": "published"},
        "samples": {"required": ["jpg", "txt"], "max_quarantined": 1},
        "split": {"train": 0.6, "val": 0.4},
        "shards": {"max_bytes": 10_000, "max_samples": 4},
    }
    for name, value in sections.items():
        both = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if both and name != "split" else value
    return DatasetConfig.model_validate(values)


def listing(files: Mapping[str, tuple[int, str]], order: Sequence[str] | None = None) -> pa.Table:
    """What a scan of these files gives."""
    paths = sorted(files) if order is None else list(order)
    return pa.table(
        {
            "path": pa.chunked_array([pa.array(paths, pa.large_string())]),
            "size": pa.chunked_array([pa.array([files[path][0] for path in paths], pa.int64())]),
            "fingerprint": pa.chunked_array(
                [pa.array([files[path][1] for path in paths], pa.large_string())]
            ),
            "problem": pa.chunked_array([pa.nulls(len(paths), pa.string())]),
        },
        schema=LISTING,
    )


def inventory(
    files: Mapping[str, tuple[int, str]],
    config: DatasetConfig,
    order: Sequence[str] | None = None,
) -> pa.Table:
    """The inventory of these files."""
    return assign(listing(files, order), config.samples)


def plan_of(
    files: Mapping[str, tuple[int, str]],
    config: DatasetConfig,
    parent: Parent | None = None,
    **more: Any,
) -> Plan:
    """The plan for these files."""
    return make_plan(inventory(files, config), config, parent, **more)


def published(plan: Plan) -> Parent:
    """The version that a plan becomes, as `Build.parent` gives it to the next one."""
    return Parent(
        version=plan.parent + 1,
        ledger=plan.ledger,
        quarantine=plan.quarantine,
        recipes={(shard.split, shard.slot): shard.recipe for shard in plan.shards},
        inventory=lambda: plan.inventory,
    )


def samples(first: int, count: int, folder: str = "a", size: int = 600) -> Files:
    """Whole samples: `a/0001.jpg`, `a/0001.txt`."""
    return {
        f"{folder}/{number:04d}.{field}": (size, "1")
        for number in range(first, first + count)
        for field in ("jpg", "txt")
    }


def keys_of(plan: Plan) -> dict[str, tuple[str, int]]:
    """Each published key's split and slot."""
    columns = (plan.ledger[name].to_pylist() for name in ("key", "split", "slot"))
    return {key: (split, slot) for key, split, slot in zip(*columns, strict=True)}


def left_out(plan: Plan) -> dict[str, str]:
    """Each quarantined key's reason."""
    return dict(
        zip(
            plan.quarantine["key"].to_pylist(),
            plan.quarantine["reason"].to_pylist(),
            strict=True,
        )
    )


def shards_of(plan: Plan) -> dict[str, list[str]]:
    """Each shard slot's keys, in their order."""
    found: dict[str, list[str]] = {shard.partition: [] for shard in plan.shards}
    for key, (split, slot) in keys_of(plan).items():
        found[f"{split}-{slot:06d}"].append(key)
    return found


def rejections(plan: Plan, keys: Sequence[str], reason: str = "broken_image") -> pa.Table:
    """What verification says of these samples of a plan, as settle.reject does."""
    digests = dict(
        zip(plan.ledger["key"].to_pylist(), plan.ledger["digest"].to_pylist(), strict=True)
    )
    rows = [
        {
            "key": key,
            "reason": reason,
            "detail": f"{key}.jpg: {reason}",
            "files": [],
            "bytes": 0,
            "digest": digests[key],
            "split": None,
            "slot": None,
        }
        for key in keys
    ]
    return pa.Table.from_pylist(rows, schema=ledger.QUARANTINE)


@dataclass
class Source:
    """Raw files under change."""

    files: Files = field(default_factory=dict)
    clock: int = 0
    next: int = 0

    def keys(self) -> list[str]:
        return sorted({path.rpartition(".")[0] for path in self.files})

    def stamp(self) -> str:
        self.clock += 1
        return str(self.clock)

    def put(self, path: str, size: int) -> None:
        self.files[path] = (size, self.stamp())

    def add(self, folder: int, size: int, with_json: bool) -> None:
        key = f"g{folder}/{self.next:03d}"
        self.next += 1
        for name in FIELDS if with_json else ("jpg", "txt"):
            self.put(f"{key}.{name}", size)

    def apply(self, step: Step) -> None:
        """Does what a step says. Without a sample to do it to, nothing."""
        if step.kind == "add":
            for index in range(step.count):
                self.add((step.which + index) % 4, step.size, step.size % 2 == 0)
            return
        keys = self.keys()
        for index in range(step.count):
            if not keys:
                return
            key = keys.pop((step.which + 7 * index) % len(keys))
            mine = [path for path in self.files if path.rpartition(".")[0] == key]
            if step.kind == "edit":
                self.put(mine[step.which % len(mine)], step.size)
            elif step.kind == "touch":
                path = mine[step.which % len(mine)]
                self.put(path, self.files[path][0])
            elif step.kind == "empty":
                self.put(mine[step.which % len(mine)], 0)
            elif step.kind == "mend":
                for name in ("jpg", "txt"):
                    if self.files.get(f"{key}.{name}", (0, ""))[0] == 0:
                        self.put(f"{key}.{name}", step.size)
            elif step.kind == "lose":
                self.files.pop(f"{key}.txt", None)
            elif step.kind == "json":
                self.put(f"{key}.json", step.size)
            elif step.kind == "delete":
                for path in mine:
                    del self.files[path]
            elif step.kind == "rename":
                new = f"g{step.which % 4}/r{self.next:03d}"
                self.next += 1
                for path in mine:
                    self.files[new + path[len(key) :]] = self.files.pop(path)


@dataclass(frozen=True)
class Step:
    """One kind of change, done to `count` samples from the `which`-th on."""

    kind: str
    which: int
    count: int
    size: int


KINDS = ("add", "edit", "touch", "empty", "mend", "lose", "json", "delete", "rename")


def steps() -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        kind=st.sampled_from(KINDS),
        which=st.integers(0, 40),
        count=st.integers(1, 5),
        size=st.sampled_from([1, 2, 512, 513, 1500, 4000, 12_000]),
    )


def histories(versions: int = 4) -> st.SearchStrategy[list[list[Step]]]:
    """For each version, what happens before it. The first adds some samples."""
    first = st.builds(
        lambda count, which: [Step("add", which, count, 600), Step("add", 0, 2, 513)],
        count=st.integers(1, 18),
        which=st.integers(0, 3),
    )
    later = st.lists(st.lists(steps(), max_size=4), min_size=1, max_size=versions - 1)
    return st.builds(lambda one, more: [one, *more], first, later)
