"""Worker processes of this machine: started from a clean server, ended with the driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from typing import Any, NoReturn, TypeVar, cast

from wds_pipeline.compute.board import Board
from wds_pipeline.errors import Ended, WdsPipelineError, may_pass

# pandas, where it is installed, is imported by pyarrow at its first array: once here, not per worker.
_PRELOAD = ["wds_pipeline.dataset.verify_job", "wds_pipeline.dataset.pack", "pandas"]
_SECONDS_TO_END = 5.0
_SECONDS_TO_NOTICE = 1.0
_TERMINATED = 128 + signal.SIGTERM
Job = TypeVar("Job")
Result = TypeVar("Result")
_board: Board | None = None  # of the pool whose worker this process is


class Workers(ProcessPoolExecutor):
    """Worker processes, which start at the first jobs."""

    def __init__(self, count: int) -> None:
        context = server_context()
        self._board = Board(context, count)
        super().__init__(
            count, mp_context=context, initializer=_begin_worker, initargs=(self._board,)
        )

    def death(self) -> str:
        """What ended the worker by which the pool broke, and what that was at; "" if that is not known."""
        manager = cast(threading.Thread | None, getattr(self, "_executor_manager_thread", None))
        if manager is not None:  # it ends the other workers, and asks how each one ended
            manager.join(_SECONDS_TO_END)
        processes = dict(getattr(self, "_processes", None) or {})
        for pid, process in processes.items():
            code = None if manager is None or manager.is_alive() else process.exitcode
            if code not in (None, 0, -signal.SIGTERM, _TERMINATED):
                at = self._board.read(pid)
                return f"{_how(code)}{f'; it was at {at}' if at else ''}"
        return ""


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by the system, often for want of memory"
    if code < 0:
        return f"{signal.Signals(-code).name}: a crash in a library's machine code"
    return f"something in it ended it with the exit code {code}"


def note(what: str) -> None:
    """Says what this worker is at, for the message in case it dies of it."""
    if _board is not None:
        _board.write(what)


def open_processes(count: int) -> ProcessPoolExecutor:
    """So many worker processes, which start at the first jobs."""
    return Workers(count)


def abandon(pool: ProcessPoolExecutor) -> None:
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


def server_context() -> multiprocessing.context.BaseContext:
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


def _begin_worker(board: Board) -> None:
    global _board
    _board = board.taken()
    os.dup2(2, 1)  # what a user's code prints is no part of a command's output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_driver, daemon=True).start()


def _end_worker(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; do not disturb the tidying up
    raise Ended


def _end_with_driver() -> None:
    """A pool's worker waits for work for ever, also when nobody is left who could give it any."""
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_END)
        os._exit(1)


@contextmanager
def undisturbed() -> Iterator[None]:
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


def job_name(job: Any) -> str:
    """What a job is about, for messages: a shard's name, or a sample's key."""
    for part in (job, getattr(job, "recipe", None), getattr(job, "wanted", None)):
        name = getattr(part, "name", None)
        if isinstance(name, str):
            return name
    key = getattr(job, "key", None)
    return f"sample {key!r}" if isinstance(key, str) else "a job"


def run_here(work: Callable[[Job], Result], job: Job) -> Result:
    # Only while there is something to tidy up; an idle worker just ends.
    signal.signal(signal.SIGTERM, _end_worker)
    note(job_name(job))
    try:
        return work(job)
    except Ended:
        # What was half written is removed now; the pool would go on to more work.
        os._exit(_TERMINATED)
    except WdsPipelineError as error:
        error.passing = may_pass(error)  # its cause stays behind in this process
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
