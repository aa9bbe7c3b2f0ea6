"""What Dagster costs on top of the library: `<name>_build` against `build()`, on tiny shards.

The job's steps run in this process, as `dagster job execute` runs them, and log to SQLite; what the
command takes to start (Python, imports, definitions) is measured apart.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from benchmarks import ours
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
    take_turns,
)
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import build
from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs

_SAMPLES = 4  # a shard
_EVENTS = 3  # a shard: itself, its index, its report


def run(settings: Settings) -> Section:
    counts = (300,) if settings.quick else (300, 3000)
    columns = [
        "shards",
        "`build()`, s",
        "job, s",
        "difference a shard, ms",
        "of it driver's CPU, ms",
    ]
    table = Table("Tiny shards, all new", columns)
    fixed = Table("`dagster job execute`, nothing changed", ["what", "s"])
    for shards in counts:
        source = _source(settings.folder / f"dagster-{shards}", shards)
        took = _compare(settings, source, shards)
        plain, by_job = took["build()"], took["the job"]
        cost = (best(by_job) - best(plain)) / shards * 1000
        of_driver = (cpu(by_job) - cpu(plain)) / shards * 1000
        table.rows.append([shards, best(plain), best(by_job), cost, of_driver])
        if shards == counts[0]:
            whole, inner = _command(settings, source)
            fixed.rows += [["the whole command", whole], ["of which the run", inner]]
        shutil.rmtree(source.parent)
    notes = [f"{_EVENTS} materializations a shard, to SQLite in {_place(settings)}. Goal: 10 ms."]
    return Section("Dagster's own cost", [table, fixed], notes)


def _place(settings: Settings) -> str:
    return "memory" if str(settings.folder).startswith("/dev/shm") else "a folder on disk"


def _source(folder: Path, shards: int) -> Path:
    root = folder / "raw"
    for number in range(shards * _SAMPLES):
        path = root / f"{number // 1000:03d}" / f"{number:06d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(f"caption {number}")
        path.with_suffix(".json").write_text(f'{{"number": {number}}}')
    return root


def _config(source: str, destination: str) -> DatasetConfig:
    return ours.config_of(source, destination, shards={"max_samples": _SAMPLES})


def job(source: str, destination: str) -> dg.JobDefinition:
    """The job, as Dagster makes it again."""
    return build_defs([_config(source, destination)]).resolve_job_def("bench_build")


def _compare(settings: Settings, source: Path, shards: int) -> dict[str, list[Took]]:
    destination = source.parent / "published"

    def timed(work: Callable[[], int]) -> Callable[[], Took]:
        def once() -> Took:
            shutil.rmtree(destination, ignore_errors=True)
            watch = Stopwatch()
            with contextlib.redirect_stdout(io.StringIO()):
                packed = work()
            took = watch.took()
            if packed != shards:
                raise RuntimeError(f"{packed} shards were packed, not {shards}")
            return took

        return once

    def library() -> int:
        return build(_config(str(source), str(destination))).packed

    def by_dagster() -> int:
        arguments: Any = (str(source), str(destination))
        made = dg.build_reconstructable_job("benchmarks.dagster_cost", "job", arguments)
        with dg.execute_job(made, instance=instance, raise_on_error=True) as result:
            key = keys.asset_key("bench", keys.SHARD_REPORT)
            found = instance.fetch_materializations(key, limit=shards + 1).records
            return sum(record.run_id == result.run_id for record in found)

    home = source.parent / "home"
    home.mkdir()
    quiet = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home), overrides=quiet) as instance:
        contenders = [
            Contender("build()", timed(library)),
            Contender("the job", timed(by_dagster)),
        ]
        library()  # starts the workers' server, and warms the page cache
        log(f"{shards} shards")
        seconds = take_turns(contenders, settings.rounds)
    return seconds


def _command(settings: Settings, source: Path) -> tuple[float, float]:
    """The seconds of the command when there is nothing to do, and of the run that it starts."""
    folder = source.parent
    home, datasets = folder / "command", folder / "datasets"
    home.mkdir()
    datasets.mkdir()
    (home / "dagster.yaml").write_text((HERE / "dagster.yaml").read_text())
    values: dict[str, Any] = {
        "name": "bench",
        "source": {"url": str(source)},
        "destination": {"url": str(folder / "published")},
        "shards": {"max_samples": _SAMPLES},
    }
    (datasets / "bench.yaml").write_text(yaml.safe_dump(values))
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "WDS_PIPELINE_DATASETS": str(datasets),
    }
    command = [sys.executable, "-m", "dagster", "job", "execute"]
    command += ["-m", "wds_pipeline.definitions", "-j", "bench_build"]
    whole, runs = [], []
    for _ in range(1 + settings.rounds):  # the first one makes the databases
        start = time.perf_counter()
        subprocess.run(command, cwd=HERE, env=environment, capture_output=True, check=True)
        whole.append(time.perf_counter() - start)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for record in instance.get_run_records():
            if record.end_time and record.start_time:
                runs.append(record.end_time - record.start_time)
    return min(whole[1:]), min(runs)
