"""Scan, naming, grouping and planning of up to a million files; what a version of many shards costs.

Each size and each build has a process of its own (`benchmarks.ours`), so that its peak is its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import corpus
from benchmarks.measure import Section, Settings, Table, in_subprocess, log

_SIZES = (30_000, 100_000, 300_000, 1_000_000)
_FURTHER = (10_000_000, 100_000_000)
_SHARDS = (1_000, 10_000, 100_000)
_STEPS = ("scan", "assign", "group", "rest of plan")
_TABLES = ("listing", "inventory", "inventory.parquet", "ledger", "ledger.parquet")

Found = dict[str, Any]


def run(settings: Settings) -> Section:
    sizes = _SIZES[:2] if settings.quick else _SIZES
    first, again = [], []
    for files in sizes:
        one, two = _measure(files, settings.folder / "scale")
        log(f"{files:,} files: {one}, then {two}")
        first.append(one)
        again.append(two)
    shards = _SHARDS[:2] if settings.quick else _SHARDS
    tables = [
        _steps("a first build: seconds of each step, and the most memory in it", first, _STEPS),
        _steps(
            "the next build: 1 % of the samples new, 1 % edited, on a version of that size",
            again,
            ("scan", "assign", "read parent", "group", "rest of plan"),
        ),
        _bytes(first),
        _growth(first, again),
        _manifests(shards, settings.folder),
        _reports(sizes),
    ]
    return Section("Scale", tables, [_assumptions()])


def _measure(files: int, folder: Path) -> tuple[Found, Found]:
    """A first build of a real tree, and the next."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        source = corpus.make_tree(files, folder)
        first = in_subprocess("scale", step="first_plan", source=str(source), folder=str(folder))
        _change(source, files)
        again = in_subprocess("scale", step="next_plan", source=str(source), folder=str(folder))
    finally:
        shutil.rmtree(folder)
    samples, stale = again["samples"], again["stale"]
    if again["new"] != files // 300 or not 0 < again["edited"] <= samples // 100 + 1:
        raise RuntimeError(f"{files:,} files: unexpected changes: {again} in {stale} shards")
    return first, again


def _change(source: Path, files: int) -> None:
    """Edits the captions of 1 % of the samples, and adds 1 %."""
    for number, path in enumerate(sorted(source.glob("*/*00.txt"))):
        os.utime(path, ns=(number, number))
    folder = source / "new"
    folder.mkdir()
    for number in range(files // 300):
        for ending in (".jpg", ".txt", ".json"):
            (folder / f"{number:08d}{ending}").write_bytes(b"new")


def _steps(title: str, found: Sequence[Found], steps: Sequence[str]) -> Table:
    table = Table(
        title, ["files", *(f"{step}, s (MB)" for step in steps), "all, s", "CPU s", "CPU µs a file"]
    )
    for each in found:
        cells = [f"{each['seconds'][step]:.2f} ({each['peak'][step] / 1e6:,.0f})" for step in steps]
        seconds, cpu = sum(each["seconds"].values()), _cpu(each)
        table.rows.append([f"{each['files']:,}", *cells, seconds, cpu, cpu / each["files"] * 1e6])
    return table


def _cpu(found: Found) -> float:
    """The processors' seconds, which hardly depend on what else the machine does."""
    return float(sum(found["cpu"].values()))


def _memory(found: Found) -> float:
    """The peak of a build's process, without what any has after its imports."""
    return float(max(found["peak"].values()) - found["base"])


def _bytes(found: Sequence[Found]) -> Table:
    table = Table("bytes a file, in memory and stored", ["files", *_TABLES])
    for each in found:
        sizes = [each["bytes"][name] / each["files"] for name in _TABLES]
        table.rows.append([f"{each['files']:,}", *sizes])
    return table


def _growth(first: Sequence[Found], again: Sequence[Found]) -> Table:
    last = first[-1]["files"]
    table = Table(
        "growth: y = c · filesᵏ, and what it gives further on",
        ["what", "k", f"{last:,}", *(f"{files:,}" for files in _FURTHER)],
    )
    rows: list[tuple[str, Sequence[Found], Any, float]] = [
        ("a first build, CPU s", first, _cpu, 1.0),
        ("the next build, CPU s", again, _cpu, 1.0),
        ("a first build, memory above the base, MB", first, _memory, 1e6),
        ("the next build, memory above the base, MB", again, _memory, 1e6),
    ]
    for name in ("inventory.parquet", "ledger.parquet"):
        rows.append((f"{name}, MB", first, lambda each, name=name: each["bytes"][name], 1e6))
    for what, found, value, unit in rows:
        values = [value(each) / unit for each in found]
        k = exponent([each["files"] for each in found], values)
        further = [values[-1] * (files / last) ** max(1.0, k) for files in _FURTHER]
        table.rows.append([what, k, values[-1], *further])
    return table


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """k of `values = c · sizes ** k`, by least squares over the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _manifests(counts: Sequence[int], folder: Path) -> Table:
    columns = ["shards", "manifest.json, bytes", "shards.parquet, kB", "open the newest, ms"]
    columns += ["one split (1 %), ms", "all shards, ms", "memory, MB", "write, ms"]
    table = Table("a version of many shards", columns)
    for shards in counts:
        found = in_subprocess("scale", step="open_version", folder=str(folder), shards=shards)
        log(f"{shards:,} shards: {found}")
        times = [1e3 * found[name] for name in ("open", "split", "all")]
        sizes = [found["manifest"], found["table"] / 1e3]
        row = [f"{shards:,}", *sizes, *times, found["memory"] / 1e6, 1e3 * found["write"]]
        table.rows.append(row)
    return table


def _reports(counts: Sequence[int]) -> Table:
    columns = ["files", "shards", "read the shards' reports, CPU s", "ms a shard"]
    columns += ["checks across the version, CPU s", "memory above the base, MB"]
    table = Table("the report of a version, of its shards' reports (7,500 files a shard)", columns)
    for files in counts:
        found = in_subprocess("scale", step="report_version", files=files)
        log(f"report of {files:,} files: {found}")
        each = 1e3 * found["read"] / found["shards"]
        row = [f"{files:,}", found["shards"], found["read"], each, found["checks"]]
        table.rows.append([*row, found["memory"] / 1e6])
    return table


def _assumptions() -> str:
    return (
        "Further on: the last measured value grown by k, at least by 1; names and folders as here, three "
        "files a sample, paths of 20 bytes, on this machine's own folders with their entries in memory. "
        "Names here are numbers, which compress well: with names of 32 random digits and random times, "
        "a file takes 24 bytes of inventory.parquet and 13 of ledger.parquet."
    )
