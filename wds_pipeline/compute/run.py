"""Handing jobs to a pool and taking their results, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

from wds_pipeline.compute.processes import Workers, run_here, undisturbed
from wds_pipeline.errors import WorkerError

_LEAST_AHEAD = 64
_FOR_EACH_WORKER = 2
Job = TypeVar("Job")
Result = TypeVar("Result")


def pool_size(pool: Executor) -> int:
    """How many jobs the pool runs at a time, as far as is known now: a cluster grows and shrinks."""
    return int(getattr(pool, "_max_workers", 0))


def submit(pool: Executor, work: Callable[[Job], Result], job: Job) -> Future[Result]:
    """As `pool.submit`; raises BrokenProcessPool whenever a worker process has died."""
    try:
        return pool.submit(work, job)
    except OSError as error:
        # A pool that breaks at this moment may have closed its pipe before it says so.
        if isinstance(pool, ProcessPoolExecutor):
            raise BrokenProcessPool(str(error)) from error
        raise


def death(pool: Executor) -> str:
    """What ended the worker by which the pool broke, as far as that is known."""
    how = pool.death() if isinstance(pool, Workers) else ""
    return how or "killed by the system, often for want of memory"


def run_all(
    pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int | None = None
) -> Iterator[tuple[Job, Result]]:
    """Runs `work` on all jobs and yields each with its result, as they come.

    At most `ahead` jobs are handed out at a time, so that neither a generator of jobs is held in
    memory, nor are more of them at a cluster than its scheduler has room for; by default enough for
    each worker, however many there are by now, to have one waiting.

    Raises WorkerError when a worker process dies, or a cluster has none left; and whatever the work
    raises.
    """
    waiting = iter(jobs)
    if isinstance(pool, ProcessPoolExecutor):
        work = partial(run_here, work)
    running: dict[Future[Result], Job] = {}
    # Not `futures.wait`: an interrupt while it takes their locks leaves some locked, for ever.
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    try:
        while True:
            most = ahead or max(_LEAST_AHEAD, _FOR_EACH_WORKER * pool_size(pool))
            for job in islice(waiting, max(0, most - len(running))):
                with undisturbed():
                    future = submit(pool, work, job)
                    running[future] = job
                    future.add_done_callback(done.put)
            if not running:
                return
            future = done.get()
            yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            f"a worker process died ({death(pool)}); the shards sealed so far are kept: build again, or set "
            "compute.workers lower"
        ) from error
    finally:
        # A process pool drops them itself: before Python 3.12 its thread fails on one that is cancelled.
        if not isinstance(pool, ProcessPoolExecutor):
            for future in running:
                future.cancel()
