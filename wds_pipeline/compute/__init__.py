"""The one door to workers: whatever does the work is a `concurrent.futures.Executor`."""

from __future__ import annotations

from wds_pipeline.compute.pools import open_pool, prepare, worker_count
from wds_pipeline.compute.run import death, pool_size, run_all, submit

__all__ = ["death", "open_pool", "pool_size", "prepare", "run_all", "submit", "worker_count"]
