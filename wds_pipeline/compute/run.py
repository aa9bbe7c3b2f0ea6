"""The one door to workers: whatever does the work is a `concurrent.futures.Executor`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from queue import SimpleQueue
from typing import Any, NoReturn, TypeVar

from wds_pipeline.config import ComputeConfig
from wds_pipeline.errors import WdsPipelineError, WorkerError, may_pass

# pandas, where it is installed, is imported by pyarrow at its first array: once here, not per worker.
_PRELOAD = ["wds_pipeline.dataset.verify_job", "wds_pipeline.dataset.pack", "pandas"]
_SECONDS_TO_END = 5.0
_SECONDS_TO_NOTICE = 1.0
_LEAST_AHEAD = 64
Job = TypeVar("Job")
Result = TypeVar("Result")


def worker_count(config: ComputeConfig) -> int:
    """How many workers there are: as configured, or as many as cores that this process may use."""
    if config.workers:
        return config.workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(config: ComputeConfig) -> None:
    """Begins what workers need before they can start, in the background; `open_pool` is quicker then."""
    if config.kind == "processes":
        _context()


@contextmanager
def open_pool(config: ComputeConfig) -> Iterator[Executor]:
    """Workers, as the configuration wants them. Leaving the block ends them.

    When it is left by an error or an interrupt, work that has not begun is dropped, and worker
    processes are ended: what they had not sealed is not there. They end too when this process dies.
    """
    count = worker_count(config)
    pool: Executor
    if config.kind == "threads":
        pool = ThreadPoolExecutor(count, thread_name_prefix="wds")
    else:
        pool = ProcessPoolExecutor(count, mp_context=_context(), initializer=_begin_worker)
    try:
        yield pool
    except BaseException:
        if isinstance(pool, ProcessPoolExecutor):
            _abandon(pool)
        else:
            # Threads cannot be ended: what they are at is finished, and leaves nothing half written.
            pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _abandon(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once, and the pool's own thread, which Python's exit would wait for."""
    manager: threading.Thread | None = getattr(pool, "_executor_manager_thread", None)
    queues = [getattr(pool, name, None) for name in ("_call_queue", "_result_queue")]
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_SECONDS_TO_END)
        if process.is_alive():  # Python drops what a signal raises in a destructor
            process.kill()
    if manager is None:
        return
    # It closes a pipe that the interpreter's exit writes to: the two must not meet.
    manager.join(_SECONDS_TO_NOTICE)
    if not manager.is_alive():
        return
    # Nobody is left who could read the rest of a job or write the rest of a result; as long as this
    # process holds these ends too, its threads would wait for them for ever.
    for queue, end in zip(queues, ("_reader", "_writer"), strict=True):
        with suppress(AttributeError, OSError):
            getattr(queue, end).close()
    manager.join(_SECONDS_TO_END)


def _context() -> multiprocessing.context.BaseContext:
    """Fork from a clean server: quick, and safe under Dagster's threads, which plain fork is not."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    _start_server()
    return context


def _start_server() -> None:
    """Starts the fork server deaf to Ctrl-C, which it would not be while it imports."""
    resource_tracker.ensure_running()  # else it is started in there, which unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_worker(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; do not disturb the tidying up
    sys.exit(128 + signal.SIGTERM)


def _end_with_driver() -> None:
    """A pool's worker waits for work for ever, also when nobody is left who could give it any."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_END)
        os._exit(1)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Holds signals back: `submit` starts workers, and one half started is one that nobody ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: dict[int, None] = {}
    handlers: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.getsignal(number)
            signal.signal(number, lambda number, _: held.setdefault(number))
        yield
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
        for changed, handler in handlers.items():
            signal.signal(changed, signal.SIG_DFL if handler is None else handler)
        for each in held:
            signal.raise_signal(each)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(work: Callable[[Job], Result], job: Job) -> Result:
    # Only while there is something to tidy up; an idle worker just ends.
    signal.signal(signal.SIGTERM, _end_worker)
    try:
        return work(job)
    except SystemExit:
        # What was half written is removed now; the pool would go on to more work.
        os._exit(128 + signal.SIGTERM)
    except WdsPipelineError as error:
        error.passing = may_pass(error)  # its cause stays behind in this process
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def run_all(
    pool: Executor, work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int | None = None
) -> Iterator[tuple[Job, Result]]:
    """Runs `work` on all jobs and yields each with its result, as they come.

    At most `ahead` jobs are handed out at a time, so that a generator of jobs is not held in memory;
    by default enough for each worker to have one waiting.

    Raises WorkerError when a worker process dies; and whatever the work raises.
    """
    waiting = iter(jobs)
    ahead = ahead or max(_LEAST_AHEAD, 2 * getattr(pool, "_max_workers", 0))
    if isinstance(pool, ProcessPoolExecutor):
        work = partial(_run, work)
    running: dict[Future[Result], Job] = {}
    # Not `futures.wait`: an interrupt while it takes their locks leaves some locked, for ever.
    done: SimpleQueue[Future[Result]] = SimpleQueue()
    try:
        while True:
            for job in islice(waiting, ahead - len(running)):
                with _undisturbed():
                    future = pool.submit(work, job)
                    running[future] = job
                    future.add_done_callback(done.put)
            if not running:
                return
            future = done.get()
            yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorkerError(
            "a worker process died (killed by the system, often for want of memory); the shards "
            "sealed so far are kept: build again, or set compute.workers lower"
        ) from error
    finally:
        # A process pool drops them itself: before Python 3.12 its thread fails on one that is cancelled.
        if not isinstance(pool, ProcessPoolExecutor):
            for future in running:
                future.cancel()
