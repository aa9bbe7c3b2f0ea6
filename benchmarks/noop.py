"""A build of a dataset that did not change, against the scan alone; and that no shard is opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import corpus, ours
from benchmarks.measure import (
    HERE,
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    log,
    median,
    take_turns,
)
from benchmarks.scan import FILES
from wds_pipeline.dataset.build import build
from wds_pipeline.dataset.scan import scan
from wds_pipeline.storage import open_storage


def run(settings: Settings) -> Section:
    files = FILES // 10 if settings.quick else FILES
    root = corpus.make_tree(files, settings.folder)
    destination = settings.folder / "noop"
    parts: dict[str, Any] = {
        "shards": {"max_bytes": 4_000_000 if settings.quick else 8_000_000},
        "verify": {"level": "digest"},
    }
    log("the first build")
    first = ours.build_once(str(root), str(destination), **parts)
    config = ours.config_of(str(root), str(destination), **parts)

    def only_scan() -> Took:
        watch = Stopwatch()
        scan(open_storage(config.source_url), config.source)
        return watch.took()

    def unchanged() -> Took:
        watch = Stopwatch()
        status = build(config).status
        if status != "unchanged":
            raise RuntimeError(f"the build of an unchanged dataset says {status!r}")
        return watch.took()

    contenders = [Contender("`scan()` alone", only_scan), Contender("`build()`", unchanged)]
    seconds = take_turns(contenders, settings.rounds)
    title = f"{files:,} files in {first['packed']} shards, nothing changed"
    table = Table(title, ["what", "best s", "median s", "CPU s", "× the scan"])
    alone = best(seconds["`scan()` alone"])
    for name, rounds in seconds.items():
        table.rows.append([name, best(rounds), median(rounds), cpu(rounds), best(rounds) / alone])
    how, opened = _shards_opened(root, destination, parts)
    shutil.rmtree(destination)
    return Section(
        "Nothing changed", [table], [f"Shards opened by such a build: {opened} ({how})."]
    )


def _shards_opened(root: Path, destination: Path, parts: dict[str, Any]) -> tuple[str, int]:
    """How many times a build opened a tar: as the kernel saw it, or as Python did without strace."""
    arguments = json.dumps({"source": str(root), "destination": str(destination), **parts})
    command = [sys.executable, "-m", "benchmarks.ours", "build_once", arguments]
    trace = destination.parent / "noop.strace"
    strace = shutil.which("strace")
    if strace:
        options = ["-f", "-e", "trace=open,openat,openat2", "-o", str(trace)]
        done = subprocess.run([strace, *options, *command], cwd=HERE, stdout=subprocess.PIPE)
        if done.returncode == 0:
            lines = trace.read_text(errors="replace")
            trace.unlink()
            if f'"{root}' not in lines:
                raise RuntimeError("strace saw no folder of the source opened")
            return "counted by strace", len(re.findall(r'open[^"]*"[^"]*\.tar"', lines))
    code = (
        "import runpy, sys\nseen = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).endswith('.tar') "
        "and seen.append(args[0]))\n"
        f"sys.argv = {command[2:]!r}\n"
        "runpy.run_module('benchmarks.ours', run_name='__main__', alter_sys=True)\n"
        "print(len(seen))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, check=True
    )
    return "counted by an audit hook", int(done.stdout.split()[-1])
