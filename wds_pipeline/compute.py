"""The one door to workers: whatever does the work is a `concurrent.futures.Executor`."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from wds_pipeline.config import ComputeConfig
from wds_pipeline.errors import WorkerError

_PRELOAD = ["wds_pipeline.dataset.verify_job", "wds_pipeline.dataset.pack"]
Job = TypeVar("Job")
Result = TypeVar("Result")


def worker_count(config: ComputeConfig) -> int:
    """How many workers there are: as configured, or as many as cores that this process may use."""
    if config.workers:
        return config.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def open_pool(config: ComputeConfig) -> Iterator[Executor]:
    """Workers, as the configuration wants them. Leaving the block ends them.

    When it is left by an error or an interrupt, work that has not begun is dropped, and worker
    processes are ended: what they had not sealed is not there.
    """
    count = worker_count(config)
    pool: Executor
    if config.kind == "threads":
        pool = ThreadPoolExecutor(count, thread_name_prefix="wds")
    else:
        pool = ProcessPoolExecutor(count, mp_context=_context(), initializer=_ignore_interrupts)
    try:
        yield pool
    except BaseException:
        processes = dict(getattr(pool, "_processes", None) or {})
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes.values():
            process.terminate()
        raise
    pool.shutdown()


def _context() -> multiprocessing.context.BaseContext:
    """Fork from a clean server: quick, and safe under Dagster's threads, which plain fork is not."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers


def run_all(
    pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int = 64
) -> Iterator[tuple[Job, Result]]:
    """Runs `work` on all jobs and yields each with its result, as they come.

    At most `ahead` jobs are handed out at a time, so that a generator of jobs is not held in memory.

    Raises WorkerError when a worker process dies; and whatever the work raises.
    """
    waiting = iter(jobs)
    running: dict[Future[Result], Job] = {}
    try:
        while True:
            for job in islice(waiting, ahead - len(running)):
                running[pool.submit(work, job)] = job
            if not running:
                return
            done, _ = wait_for(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process died (killed by the system, often for want of memory); the shards "
            "sealed so far are kept: build again, or set compute.workers lower"
        ) from error
    finally:
        for future in running:
            future.cancel()
