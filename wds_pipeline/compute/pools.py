"""The pools, by the configuration's `compute.kind`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

from wds_pipeline.compute.processes import abandon, open_processes, server_context
from wds_pipeline.compute.run import pool_size
from wds_pipeline.config import ComputeConfig


def worker_count(config: ComputeConfig) -> int:
    """How many workers there are: as configured, or as many as cores that this process may use.

    Of a cluster that is there already, as many as it has now: its scheduler is asked. Raises
    ConfigError, WorkerError then.
    """
    if config.workers:
        return config.workers
    if config.kind == "dask":
        with open_pool(config) as pool:
            return pool_size(pool)
    return _cores()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(config: ComputeConfig) -> None:
    """Begins what workers need before they can start, in the background; `open_pool` is quicker then."""
    if config.kind == "processes":
        server_context()


@contextmanager
def open_pool(config: ComputeConfig) -> Iterator[Executor]:
    """Workers, as the configuration wants them. Leaving the block ends those that were started here.

    When it is left by an error or an interrupt, work that has not begun is dropped, and worker
    processes are ended: what they had not sealed is not there. They end too when this process dies.
    Workers of a cluster that was there before stay; what they are at, they finish.

    Raises, for a cluster, ConfigError when there is none to go to, WorkerError when it cannot be
    reached or has another version of this package.
    """
    if config.kind == "dask":
        from wds_pipeline.compute.dask_cluster import open_dask_pool

        with open_dask_pool(config) as cluster:
            yield cluster
        return
    pool: Executor
    if config.kind == "threads":
        pool = ThreadPoolExecutor(worker_count(config), thread_name_prefix="wds")
    else:
        pool = open_processes(worker_count(config))
    try:
        yield pool
    except BaseException:
        if isinstance(pool, ProcessPoolExecutor):
            abandon(pool)
        else:
            # Threads cannot be ended: what they are at is finished, and leaves nothing half written.
            pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
