"""What a shard costs the driver of a hundred workers: a real plan's recipes go to a real scheduler,
and to workers who only wait.

The workers are threads of a few processes; the scheduler has a process of its own, as in a cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from benchmarks import ours
from benchmarks.measure import HERE, Section, Settings, Table, log
from wds_pipeline.compute import open_pool, parcel, pool_size, run_all
from wds_pipeline.config import ComputeConfig
from wds_pipeline.dataset.listing import LISTING
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.plan import Plan, Recipe, make_plan

_SHARDS = (300, 3_000, 10_000)
_PROCESSES, _WORKERS = 4, 100
_SAMPLES = 30  # a shard; three files each
_USUAL = 2_500  # samples of 100 KB in a shard of 256 MB
_SECONDS = 0.5  # that each job waits
_DEADLINE = 60.0
_QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h",  # many workers share a process here
}


def run(settings: Settings) -> Section:
    counts = _SHARDS[:2] if settings.quick else _SHARDS
    plan = _plan(max(counts), _SAMPLES)
    columns = [
        *("shards", "s", "driver's CPU, ms a shard", "scheduler's CPU, ms a shard"),
        *("workers busy", "most jobs handed out", "scheduler's peak MB"),
    ]
    table = Table(f"{_WORKERS} workers, jobs of {_SECONDS} s", columns)
    for count in counts:
        with _cluster(settings.folder) as (address, scheduler):
            table.rows.append(_measure(plan, count, address, scheduler))
        log(f"{table.rows[-1]}")
    one = _plan(1, _USUAL)
    recipe = one.recipe(one.shards[0])
    start = time.process_time()
    _, plain, sent = parcel.wrap(wait, recipe)
    took = (time.process_time() - start) * 1000
    return Section(
        "Many workers",
        [table],
        [
            f"Shards of {_SAMPLES} samples of three files; the driver's part is to make the recipe, "
            "send it and take the result.",
            f"The recipe of a shard of {_USUAL:,} such samples has {plain / 1e3:,.0f} kB and is sent "
            f"in {len(sent) / 1e3:,.0f}, which takes {took:.1f} ms more of the driver.",
        ],
    )


def wait(recipe: Recipe) -> str:
    """What a simulated worker does."""
    time.sleep(_SECONDS)
    return recipe.name


def _measure(plan: Plan, count: int, address: str, scheduler: psutil.Process) -> list[object]:
    out = most = 0

    def jobs() -> Iterator[Recipe]:
        nonlocal out, most
        for shard in plan.shards[:count]:
            out += 1
            most = max(most, out)
            yield plan.recipe(shard)

    with open_pool(ComputeConfig(kind="dask", address=address)) as pool:
        if pool_size(pool) != _WORKERS:
            raise RuntimeError(f"{pool_size(pool)} workers, not {_WORKERS}")
        list(run_all(pool, wait, [plan.recipe(shard) for shard in plan.shards[:_WORKERS]]))
        before, start, cpu = _cpu(scheduler), time.perf_counter(), time.process_time()
        done = set()
        for recipe, name in run_all(pool, wait, jobs()):
            out -= 1
            done.add(name)
            if name != recipe.name:
                raise RuntimeError(f"the result of {name} came for {recipe.name}")
        seconds, driver = time.perf_counter() - start, time.process_time() - cpu
        theirs = _cpu(scheduler) - before
    if len(done) != count:
        raise RuntimeError(f"{len(done)} results of {count}")
    busy = count * _SECONDS / (seconds * _WORKERS)
    peak = _peak(scheduler.pid) / 1e6
    return [count, seconds, driver * 1e3 / count, theirs * 1e3 / count, busy, most, peak]


def _cpu(process: psutil.Process) -> float:
    found = process.cpu_times()
    return float(found.user + found.system)


def _peak(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError("the system does not say how much memory a process had")


def _plan(shards: int, samples: int) -> Plan:
    """A plan of so many shards, of files that do not exist."""
    count = shards * samples * 3
    numbers = np.arange(count)
    ends = (".jpg", ".json", ".txt")
    paths = [f"{n // 3000:06d}/{n // 3:09d}{ends[n % 3]}" for n in range(count)]
    columns = [
        pa.array(paths, pa.large_string()),
        pa.array(np.where(numbers % 3 == 0, 100_000, 150) + numbers % 997, pa.int64()),
        pa.array(numbers + 1_700_000_000_000_000_000).cast(pa.large_string()),
        pa.nulls(count, pa.string()),
    ]
    config = ours.config_of("source", "destination", shards={"max_samples": samples})
    return make_plan(assign(pa.table(columns, schema=LISTING), config.samples), config)


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler's address and process, with its workers."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    command += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(_process(command))
        deadline = time.monotonic() + _DEADLINE
        address = ""
        while not address:
            with contextlib.suppress(FileNotFoundError, ValueError):
                address = json.loads(file.read_text())["address"]
            _wait(deadline)
        for _ in range(_PROCESSES):
            share = str(_WORKERS // _PROCESSES)
            simulated = [sys.executable, "-m", "benchmarks.workers", address, share, str(folder)]
            stack.enter_context(_process(simulated))
        config = ComputeConfig(kind="dask", address=address)
        with open_pool(config) as pool:
            while pool_size(pool) < _WORKERS:
                _wait(deadline)
        yield address, psutil.Process(scheduler.pid)


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"the scheduler and its workers were not there within {_DEADLINE:g} s")
    time.sleep(0.05)


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, cwd=HERE, env={**os.environ, **_QUIET}, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _simulate(address: str, count: int, folder: str) -> None:
    from distributed import Worker

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            worker = Worker(address, nthreads=1, memory_limit=0, local_directory=folder)
            await stack.enter_async_context(worker)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_simulate(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
