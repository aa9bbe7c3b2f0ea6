"""Naming and planning of listings of up to some million files: seconds, memory, growth."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa

from benchmarks import ours
from benchmarks.measure import Section, Settings, Table, in_subprocess, log
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import make_plan
from wds_pipeline.dataset.scan import LISTING

_SIZES = (100_000, 300_000, 1_000_000, 3_000_000)


def run(settings: Settings) -> Section:
    sizes = _SIZES[:2] if settings.quick else _SIZES
    columns = [
        "files",
        "naming s",
        "first plan s",
        "µs a file",
        "1 % more: naming and plan s",
        "peak MB",
        "before the plan",
    ]
    table = Table("a listing of 3 files a sample, 100 KB samples, shards of 256 MB", columns)
    for files in sizes:
        rounds = [in_subprocess("scale", files=files) for _ in range(2)]
        found = min(rounds, key=lambda each: each["naming"] + each["plan"])
        log(f"{files:,} files: {found}")
        both = found["naming"] + found["plan"]
        row: list[object] = [f"{files:,}", found["naming"], found["plan"], both / files * 1e6]
        table.rows.append([*row, found["again"], found["peak"] / 1e6, found["before"] / 1e6])
    return Section("Planning many files", [table])


def listing(files: int, start: int = 0) -> pa.Table:
    """What a scan of so many files would give."""
    chunks = []
    endings = (".jpg", ".json", ".txt")
    for first in range(start, start + files, 300_000):
        count = min(300_000, start + files - first)
        numbers = range(first, first + count)
        paths = [f"{n // 3000:06d}/{n // 3:09d}{endings[n % 3]}" for n in numbers]
        sizes = np.where(np.arange(first, first + count) % 3 == 0, 100_000, 150)
        times = pa.array(np.arange(first, first + count) + 1_700_000_000_000_000_000)
        columns = [
            pa.array(paths, pa.large_string()),
            pa.array(sizes + np.arange(count) % 997, pa.int64()),
            times.cast(pa.large_string()),
            pa.nulls(count, pa.string()),
        ]
        chunks.append(pa.table(columns, schema=LISTING))
    return pa.concat_tables(chunks)


def plan_listing(files: int) -> dict[str, float]:
    """Runs in a process of its own, see `ours.scale`."""
    config = ours.config_of("source", "destination")
    found = listing(files)
    before = ours.peak_memory()
    start = time.perf_counter()
    inventory = assign(found, config.samples)
    named = time.perf_counter()
    plan = make_plan(inventory, config)
    planned = time.perf_counter()
    peak = ours.peak_memory()
    recipes = {(shard.split, shard.slot): shard.recipe for shard in plan.shards}
    parent = Parent(1, plan.ledger, plan.quarantine, recipes, lambda: inventory)
    more = pa.concat_tables([found, listing(files // 100 // 3 * 3, -(-files // 3) * 3)])
    again = time.perf_counter()
    second = make_plan(assign(more, config.samples), config, parent)
    done = time.perf_counter()
    if len(second.stale) > len(plan.shards) // 50 + 2:
        raise RuntimeError(f"{len(second.stale)} of {len(plan.shards)} shards are stale")
    times = {"naming": named - start, "plan": planned - named, "again": done - again}
    return {**times, "peak": peak, "before": before, "shards": len(plan.shards)}
