"""The steps of `benchmarks.scale`; each runs in a fresh process, see `ours.scale`."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from benchmarks import ours
from benchmarks.measure import Stopwatch
from wds_pipeline.dataset import ledger, samples, seal, version
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import Plan, make_plan
from wds_pipeline.dataset.report import Report, ShardRow, make_report
from wds_pipeline.dataset.scan import Listing, scan
from wds_pipeline.dataset.shard_report import (
    MEMBERS,
    Rules,
    ShardReport,
    Thumbnail,
    load_report,
    save_report,
)
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.storage import Storage, open_storage

T = TypeVar("T")
_SHARDS = {"max_samples": 2_500}
_PER_SHARD = 7_500


class Steps:
    """The seconds, the processors' seconds and the peak of memory (bytes) of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self.base = ours.peak_memory()

    def run(self, name: str, work: Callable[[], T]) -> T:
        """Does a step; its result."""
        with contextlib.suppress(OSError):  # else a step's peak is that of all before it, too
            Path("/proc/self/clear_refs").write_text("5")
        watch = Stopwatch()
        result = work()
        self.seconds[name], self.cpu[name] = watch.took()
        self.peak[name] = ours.peak_memory()
        return result

    def plan(self, *arguments: Any) -> Plan:
        """Makes a plan, in two steps: `group` and the rest of it."""
        group = samples.group

        def timed(*parts: Any) -> samples.Samples:
            return self.run("group", lambda: group(*parts))

        setattr(samples, "group", timed)  # noqa: B010  (the plan looks it up there)
        watch = Stopwatch()
        plan = make_plan(*arguments)
        took = watch.took()
        setattr(samples, "group", group)  # noqa: B010
        self.seconds["rest of plan"] = took.seconds - self.seconds["group"]
        self.cpu["rest of plan"] = took.cpu - self.cpu["group"]
        self.peak["rest of plan"] = ours.peak_memory()
        return plan

    def values(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "cpu": self.cpu, "peak": self.peak, "base": self.base}


def first_plan(source: str, folder: str) -> dict[str, Any]:
    """A first build's scan and plan; leaves in the folder what the next build reads of it."""
    steps, config = Steps(), ours.config_of(source, folder, shards=_SHARDS)
    listing: Listing = steps.run("scan", lambda: scan(open_storage(source), config.source))
    inventory: pa.Table = steps.run("assign", lambda: assign(listing.files, config.samples))
    plan = steps.plan(inventory, config)
    stored = {
        version.INVENTORY: seal.parquet_bytes(inventory),
        version.LEDGER: seal.parquet_bytes(plan.ledger),
        version.QUARANTINE: seal.parquet_bytes(plan.quarantine),
    }
    for name, data in stored.items():
        (Path(folder) / name).write_bytes(data)
    recipes = [[shard.split, shard.slot, shard.recipe] for shard in plan.shards]
    (Path(folder) / "recipes.json").write_text(json.dumps(recipes))
    sizes = {"listing": listing.files.nbytes, "inventory": inventory.nbytes}
    sizes |= {"ledger": plan.ledger.nbytes, **{name: len(data) for name, data in stored.items()}}
    found = {"files": inventory.num_rows, "shards": len(plan.shards), "bytes": sizes}
    return {**found, **steps.values()}


def next_plan(source: str, folder: str) -> dict[str, Any]:
    """The next build's scan and plan, on what `first_plan` left."""
    steps, config = Steps(), ours.config_of(source, folder, shards=_SHARDS)
    listing: Listing = steps.run("scan", lambda: scan(open_storage(source), config.source))
    inventory: pa.Table = steps.run("assign", lambda: assign(listing.files, config.samples))
    storage = open_storage(folder)

    def read() -> Parent:
        recipes = json.loads((Path(folder) / "recipes.json").read_text())
        return Parent(
            1,
            seal.read_parquet(storage, version.LEDGER),
            seal.read_parquet(storage, version.QUARANTINE),
            {(split, slot): recipe for split, slot, recipe in recipes},
            lambda: seal.read_parquet(storage, version.INVENTORY),
        )

    plan = steps.plan(inventory, config, steps.run("read parent", read))
    causes = [shard.causes for shard in plan.stale]
    return {
        "files": inventory.num_rows,
        "samples": plan.ledger.num_rows,
        "stale": len(plan.stale),
        "new": sum(each.get("new", 0) for each in causes),
        "edited": sum(each.get("edited", 0) for each in causes),
        **steps.values(),
    }


def open_version(folder: str, shards: int) -> dict[str, float]:
    """Opening a version of so many shards, of which one in a hundred is of the split `val`."""
    root = Path(tempfile.mkdtemp(prefix="scale-", dir=folder))
    try:
        storage = open_storage(str(root))
        entries = _entries(shards)
        write = Stopwatch()
        manifest = _manifest(entries)
        storage.put(version.folder(1) + version.SHARDS, manifest.table())
        storage.put(version.folder(1) + "manifest.json", manifest.dump())
        found = {"write": write.took().seconds}
        found |= {"manifest": len(manifest.dump()), "table": len(manifest.table())}
        del manifest, entries
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = ours.peak_memory()
        rounds = [_open(storage) for _ in range(3)]
        best = {name: min(each[name] for each in rounds) for name in rounds[0]}
        return {**found, **best, "memory": ours.peak_memory() - before}
    finally:
        shutil.rmtree(root)


def _open(storage: Storage) -> dict[str, float]:
    steps = Steps()
    opened = steps.run("open", lambda: version.read(storage, None, "bench"))
    steps.run("split", lambda: opened.of_split("val"))
    again = version.read(storage, None, "bench")
    steps.run("all", lambda: again.shards)
    return steps.seconds


def _entries(count: int) -> list[ShardEntry]:
    random = np.random.default_rng(count)
    held = count // 100
    entries = []
    for split, shards in (("train", count - held), ("val", held)):
        for slot in range(shards):
            recipe, digest = random.bytes(16).hex(), random.bytes(16).hex()
            size = 256_000_000 - int(random.integers(100_000))
            made = (f"{split}-{slot:06d}-{recipe}", split, slot, 2_500 - slot % 7, size)
            entries.append(ShardEntry(*made, f"xxh3-128:{digest}", 1 + slot % 5, "2,500 new"))
    return entries


def _manifest(entries: list[ShardEntry]) -> Manifest:
    parts: dict[str, Any] = {
        name: {} for name in ("config", "files", "quarantined", "verification")
    }
    texts = ("write_id", "created", "writer", "source", "inputs", "content_rules")
    parts |= dict.fromkeys(texts, "")
    return Manifest.of_shards(entries, version=1, dataset="bench", parent=0, **parts)


def report_version(files: int) -> dict[str, float]:
    """Reading the reports of shards of 7,500 files, and the version's report of them."""
    root = tempfile.mkdtemp(prefix="wds_pipeline_scale-")
    try:
        storage = open_storage(root)
        made = [_shard_report(number) for number in range(files // _PER_SHARD)]
        for each in made:
            save_report(storage, each)
        names = [each.name for each in made]
        del made
        steps = Steps()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = ours.peak_memory()
        found = steps.run("read", lambda: [load_report(storage, name) for name in names])
        reports = [each for each in found if each is not None]
        whole = steps.run("checks", lambda: _report(reports))
    finally:
        shutil.rmtree(root)
    if not whole.passed or len(reports) != len(names):
        raise RuntimeError(f"not the report expected: {whole.summary()}")
    memory = max(steps.peak.values()) - before
    return {"shards": len(names), **steps.cpu, "memory": memory}


def _report(reports: list[ShardReport]) -> Report:
    rows = [ShardRow(r.name, r.split, r.slot, r.samples, r.bytes, "") for r in reports]
    samples_in = sum(row.samples for row in rows)
    return make_report(
        dataset="bench",
        level="decode",
        reports=reports,
        samples_in=samples_in,
        quarantine=ledger.empty(ledger.QUARANTINE),
        files={"seen": 3 * samples_in, "packed": 3 * samples_in},
        required=["jpg"],
        shards=rows,
        on_leak="error",
    )


def _shard_report(number: int) -> ShardReport:
    """A shard's report as `verify` would leave it, with pictures of 3 kB."""
    random, count = np.random.default_rng(number), _PER_SHARD // 3
    keys = [f"{number:06d}/{sample:09d}" for sample in range(count)]
    image = np.tile(np.array([True, False, False]), count)
    columns = {
        "key": pa.array(np.repeat(keys, 3)),
        "field": pa.array(np.tile(np.array(["jpg", "json", "txt"]), count)),
        "size": pa.array(random.integers(100, 1_000, 3 * count)),
        "digest": ledger.digest_column(np.frombuffer(random.bytes(48 * count), "V16")),
        "width": pa.array(np.full(3 * count, 640, np.int32), mask=~image),
        "height": pa.array(random.integers(300, 900, 3 * count).astype(np.int32), mask=~image),
        "chars": pa.array(np.full(3 * count, 30, np.int32), mask=image),
        "format": pa.array(np.where(image, "JPEG", "text")),
        "problem": pa.nulls(3 * count, pa.string()),
        "detail": pa.nulls(3 * count, pa.string()),
        "decoded": pa.array(np.ones(3 * count, bool)),
    }
    members = pa.table([columns[name] for name in MEMBERS.names], schema=MEMBERS)
    split = "train" if number % 20 else "val"
    name = seal.shard_name(split, number, random.bytes(16).hex())
    pictures = [Thumbnail(key, "jpg", random.bytes(3_000), "640 × 480") for key in keys[:4]]
    rules = Rules("decode", 1.0, 10**8, {})
    return ShardReport(name, split, number, rules, "xxh3-128:", count, 1_000, members, [], pictures)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    each.__name__: each for each in (first_plan, next_plan, open_version, report_version)
}
