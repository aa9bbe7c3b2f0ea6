"""Listing a source, against `find` and `os.walk` on the same tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks import corpus
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    median,
    take_turns,
)
from wds_pipeline.config import SamplesConfig, SourceConfig
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.scan import scan
from wds_pipeline.storage import LocalStorage

FILES = 300_000


def run(settings: Settings) -> Section:
    files = FILES // 10 if settings.quick else FILES
    root = corpus.make_tree(files, settings.folder)
    names = [
        "`find -printf '%p %s %T@'`",
        "`os.walk` and `os.stat`",
        "`scan()`",
    ]
    contenders = [
        Contender(names[0], lambda: _find(root)),
        Contender(names[1], lambda: _walk(root)),
        Contender(names[2], lambda: _scan(root)),
        Contender("names to keys and fields", lambda: _assign(root)),
        Contender("write the inventory (Parquet)", lambda: _write(root, settings.folder)),
    ]
    seconds = take_turns(contenders, settings.rounds)
    table = Table(f"{files:,} files", ["what", "best s", "median s", "CPU s", "files/s", "of find"])
    find = best(seconds[names[0]])
    for name, rounds in seconds.items():
        shown: object = find / best(rounds) if name in names else "(apart)"
        row = [name, best(rounds), median(rounds), cpu(rounds), files / best(rounds)]
        table.rows.append([*row, shown])
    return Section("Scan", [table])


def _find(root: Path) -> Took:
    watch = Stopwatch()
    command = ["find", str(root), "-printf", "%p %s %T@\\n"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return watch.took()


def _walk(root: Path) -> Took:
    watch = Stopwatch()
    rows = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            found = os.stat(path)
            rows.append((path, found.st_size, found.st_mtime_ns))
    return watch.took()


def _scan(root: Path) -> Took:
    watch = Stopwatch()
    scan(LocalStorage(root), SourceConfig(url=str(root)))
    return watch.took()


def _assign(root: Path) -> Took:
    files = scan(LocalStorage(root), SourceConfig(url=str(root))).files
    watch = Stopwatch()
    assign(files, SamplesConfig())
    return watch.took()


def _write(root: Path, folder: Path) -> Took:
    files = scan(LocalStorage(root), SourceConfig(url=str(root))).files
    inventory = assign(files, SamplesConfig())
    path = folder / "inventory.parquet"
    watch = Stopwatch()
    pq.write_table(inventory, path, compression="zstd")
    took = watch.took()
    path.unlink()
    return took
