"""Fetches many things at a time and keeps each: what was fetched before is not fetched again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice
from typing import TypeVar

from wds_pipeline.dataset.sources.base import Progress
from wds_pipeline.dataset.sources.kept import OK, Batches, Fetched, Kept

_TELL_SECONDS = 30.0
_log = logging.getLogger(__name__)
Job = TypeVar("Job")


def fetch_all(
    jobs: Iterable[Job],
    total: int,
    work: Callable[[Job], Fetched],
    kept: Kept,
    *,
    concurrency: int,
    what: str,
    progress: Progress | None = None,
) -> Counter[str]:
    """Does the work for each job, `concurrency` of them at a time, and keeps what comes of it.

    Killed at any moment, it loses the batch under way. Returns how many had which status. Raises
    DestinationError when the store cannot be written.
    """
    counts: Counter[str] = Counter()
    told = time.monotonic()
    with Batches(kept) as batches, closing(_done(jobs, work, concurrency)) as items:
        for item in items:
            counts[item.status] += 1
            batches.add(item)
            done = counts.total()
            if progress is not None:
                progress(what, done, total)
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                _log.info(
                    "%s: %s of %s, %s failed",
                    what,
                    f"{done:,}",
                    f"{total:,}",
                    f"{done - counts[OK]:,}",
                )
    return counts


def _done(
    jobs: Iterable[Job], work: Callable[[Job], Fetched], concurrency: int
) -> Generator[Fetched, None, None]:
    """What comes of each, as it comes; no more is begun than is taken."""
    left = iter(jobs)
    threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
    running: set[Future[Fetched]] = set()
    try:
        while True:
            for job in islice(left, 2 * concurrency - len(running)):
                running.add(threads.submit(work, job))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
