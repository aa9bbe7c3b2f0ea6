"""A Dask cluster as an executor: whatever happens there, each future gets its result or its error."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from wds_pipeline import __version__
from wds_pipeline.compute import parcel, versions
from wds_pipeline.compute.processes import job_name
from wds_pipeline.errors import WdsPipelineError, WorkerError

if TYPE_CHECKING:
    from distributed import Client

_LOOK_SECONDS = 0.5
_KEPT = "the shards sealed so far are kept"
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class DaskPool(Executor):
    """The cluster that a client is connected to; `cluster` is what messages call it.

    When it has no workers for `patience` seconds while there is work, all of it fails with a
    WorkerError; so it does when the connection is lost, or one job ends several workers.
    """

    def __init__(self, client: Client, cluster: str, patience: float) -> None:
        self._client = client
        self._cluster = cluster
        self._patience = patience
        self._group = f"wds_pipeline-{uuid4().hex}"
        self._numbers = itertools.count()
        self._pending: dict[Future[Any], str] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop  # type: ignore[union-attr]
        self._max_workers = sum(client.nthreads().values())
        self._watch = self._start(self._look())

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Hands a call to the cluster; `fn` must be importable there."""
        if kwargs:
            raise TypeError("give arguments by position: a call goes to other machines as it is")
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        name = job_name(args[0] if args else None)
        call = parcel.wrap(fn, *args)
        found: Future[Result] = Future()
        with self._lock:
            self._pending[found] = name
        # As a group of its own, of which Dask gives each worker no more than one or two beforehand.
        key = (self._group, next(self._numbers), name)
        task = self._client.submit(parcel.run, *call, key=key, pure=False)
        following = self._start(self._follow(task, found, name))
        # Nobody holds the task any more then, and the scheduler drops it.
        found.add_done_callback(lambda _: following.cancel() if found.cancelled() else None)
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more work. Cancels what has not begun, if wanted; waits for the rest, if wanted."""
        self._closed = True
        with self._lock:
            pending = list(self._pending)
        if cancel_futures:
            for each in pending:
                each.cancel()
        if wait:
            _wait(pending)
        self._watch.cancel()

    def _start(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _follow(self, task: Any, found: Future[Any], name: str) -> None:
        """Waits for a task's end and hands on what came of it."""
        try:
            result = await task
        except BaseException as error:  # Dask's own, and whatever else the work raised
            self._settle(found, error=self._explain(error, name))
            return
        if isinstance(result, parcel.Failed):
            self._settle(found, error=result.error)
        elif isinstance(result, parcel.OtherVersion):
            line = f"{versions.OWN}: found {result.found}, expected {__version__}, at a worker that joined"
            self._settle(found, error=versions.refusal(self._cluster, [line]))
        else:
            self._settle(found, result=result)

    def _settle(
        self, found: Future[Any], result: Any = None, error: BaseException | None = None
    ) -> None:
        with self._lock:
            if self._pending.pop(found, None) is None:
                return
        if not found.set_running_or_notify_cancel():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(result)

    def _explain(self, error: BaseException, name: str) -> BaseException:
        """Dask's errors in our words; those of the work as they are."""
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError

        if isinstance(error, KilledWorker):
            last = getattr(error.last_worker, "address", error.last_worker)
            deaths = error.allowed_failures + 1
            found = WorkerError(
                f"{self._cluster}: {name}: {deaths} workers died one after the other while they "
                f"had this job, {last} the last: often for want of memory; {_KEPT}. Look at that "
                "worker's log, give workers more memory or make shards.max_bytes smaller, and build "
                "again"
            )
            found.passing = False
            return found
        if isinstance(error, NoValidWorkerError):
            return self._no_workers()
        if isinstance(error, asyncio.CancelledError) or type(error).__name__.endswith(
            "CancelledError"
        ):
            return WorkerError(
                f"{self._cluster}: the connection to the scheduler was lost, or it dropped {name}; "
                f"{_KEPT}. See whether it still runs, and build again"
            )
        return error

    def _no_workers(self) -> WdsPipelineError:
        return WorkerError(
            f"{self._cluster}: no workers for {self._patience:g} s; {_KEPT}. Start workers and build "
            "again; to have it wait longer, set Dask's distributed.scheduler.no-workers-timeout "
            "(DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT=30min)"
        )

    async def _look(self) -> None:
        """Counts the workers, and gives up when there have been none for too long."""
        gone: float | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                self._max_workers = sum((await self._client.nthreads()).values())
            except OSError:
                continue  # the client notices too, and tries to get back
            with self._lock:
                pending = list(self._pending)
            if self._max_workers or not pending:
                gone = None
            elif gone is None:
                gone = time.monotonic()
                log.warning(
                    f"{self._cluster}: no workers; waiting up to {self._patience:g} s for some"
                )
            elif time.monotonic() - gone > self._patience:
                for each in pending:
                    self._settle(each, error=self._no_workers())


def _wait(futures: list[Future[Any]]) -> None:
    wait(futures)
