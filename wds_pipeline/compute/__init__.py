"""The one door to workers: whatever does the work is a `concurrent.futures.Executor`."""

from __future__ import annotations

from wds_pipeline.compute.pools import open_pool, prepare, worker_count
from wds_pipeline.compute.run import pool_size, run_all

__all__ = ["open_pool", "pool_size", "prepare", "run_all", "worker_count"]
