"""Our side of the benchmarks, in a process of its own: `python -m benchmarks.ours FUNCTION JSON`.

A fresh process makes the peaks of memory and the starting of workers count, as they do for others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
import time
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow as pa

from wds_pipeline.compute import open_pool, worker_count
from wds_pipeline.config import DatasetConfig, SourceConfig
from wds_pipeline.dataset import settle
from wds_pipeline.dataset.build import Build, Draft, build
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.pack import Packed
from wds_pipeline.dataset.plan import Plan, ShardPlan, make_plan
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import open_storage

_NAP = 0.02


def config_of(source: str, destination: str, **parts: Any) -> DatasetConfig:
    """A dataset's configuration. `parts` are sections such as `shards={"max_bytes": …}`."""
    values = {"source": {"url": source}, "destination": {"url": destination}, **parts}
    return DatasetConfig.model_validate({"name": "bench", **values})


def plan_of(config: DatasetConfig) -> Plan:
    """Scan and plan, as a first build does."""
    listing = scan(open_storage(config.source_url), config.source)
    return make_plan(assign(listing.files, config.samples), config)


def pack(source: str, destination: str, **parts: Any) -> dict[str, float]:
    """The seconds of packing a source, the plan made before, and of starting the workers for it."""
    config = config_of(source, destination, **parts)
    plan = plan_of(config)
    start, cpu = time.perf_counter(), time.process_time()
    with open_pool(config.compute) as pool:
        workers_cpu = sum(each[2] for each in workers(pool, config))
        ready, ready_cpu = time.perf_counter(), time.process_time()
        packed = settle.pack_shards(config, plan, plan.shards, pool)
        done, done_cpu = time.perf_counter(), time.process_time()
        found = workers(pool, config)
    if any(each.seal is None for each in packed):
        raise RuntimeError(f"not all shards were packed: {packed}")
    return {
        "pool": ready - start - _NAP,
        "pack": done - ready,
        "whole": done - start - _NAP,
        "cpu": done_cpu - ready_cpu + sum(each[2] for each in found) - workers_cpu,
        "whole_cpu": done_cpu - cpu + sum(each[2] for each in found),
        "peak": max(each[1] for each in found),
        "workers": len(found),
    }


def workers(pool: Executor, config: DatasetConfig) -> list[tuple[int, float, float]]:
    """Each worker's process id, the most memory (bytes) that it has held, and its seconds of CPU."""
    futures = [pool.submit(_worker) for _ in range(worker_count(config.compute))]
    return list({found[0]: found for found in (future.result() for future in futures)}.values())


def _worker() -> tuple[int, float, float]:
    pa.array([0])  # imports pandas where it is installed: part of the start, not of the work
    time.sleep(_NAP)  # so that each worker gets one of these
    return os.getpid(), peak_memory(), time.process_time()


def peak_memory() -> float:
    """The most memory (bytes) that this process has held."""
    with contextlib.suppress(OSError):  # on Linux, `ru_maxrss` starts with what the parent held
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found:
            return float(found.group(1)) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


class _TimedBuild(Build):
    """A build that notes how long each of its steps takes."""

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        self.seconds: dict[str, float] = {}

    def _timed(self, name: str, step: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return step(*arguments)
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took

    def pack(self, plan: Plan, shards: Any, pool: Executor) -> list[Packed]:
        self._timed("start workers", workers, pool, self.config)
        return list(self._timed("pack", super().pack, plan, shards, pool))

    def verify(self, plan: Plan, shards: Any, pool: Executor, superseded: Any = ()) -> None:
        self._timed("verify", super().verify, plan, shards, pool, superseded)

    def unsealed(self, plan: Plan) -> list[ShardPlan]:
        return list(self._timed("look for shards", super().unsealed, plan))

    def report(self, draft: Draft) -> Report:
        found: Report = self._timed("report", super().report, draft)
        return found

    def publish(self, draft: Draft, report: Report) -> Manifest | None:
        found: Manifest | None = self._timed("publish", super().publish, draft, report)
        return found


def build_stages(source: str, destination: str, **parts: Any) -> dict[str, float]:
    """The seconds of each step of a whole build, in order, and of all: `whole`."""
    config = config_of(source, destination, **parts)
    start = time.perf_counter()
    work = _TimedBuild(config)
    work.open_destination()
    listing = work._timed("scan", work.scan)
    draft = work._timed("plan", work.plan, listing)
    with open_pool(config.compute) as pool:
        work.finish(draft, pool)
    whole = time.perf_counter() - start
    return {**work.seconds, "rest": whole - sum(work.seconds.values()), "whole": whole}


def build_once(source: str, destination: str, **parts: Any) -> dict[str, Any]:
    """A build: its seconds, its status, and how many shards it packed."""
    config = config_of(source, destination, **parts)
    start = time.perf_counter()
    result = build(config)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "status": result.status, "packed": result.packed}


def list_keys(url: str, count: int) -> dict[str, float]:
    """The seconds and the peak (bytes) of listing a store's keys, all of them held as a listing."""
    source = open_storage(url)
    source.check()
    start, cpu = time.perf_counter(), time.process_time()
    listing = scan(source, SourceConfig(url=url))
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    if listing.files.num_rows != count:
        raise RuntimeError(f"{listing.files.num_rows:,} of {count:,} keys were listed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "cpu": used, "requests": source.usage.list, "peak": peak}


def scale(step: str, **arguments: Any) -> dict[str, Any]:
    """A step of the benchmark of that name."""
    from benchmarks.scale_steps import STEPS

    return STEPS[step](**arguments)


def main() -> None:
    functions = {each.__name__: each for each in (pack, build_stages, build_once, list_keys, scale)}
    print(json.dumps(functions[sys.argv[1]](**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    # Under its own name, so that workers can import what they are sent.
    from benchmarks import ours

    ours.main()
