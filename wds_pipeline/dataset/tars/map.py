"""A function or a command for each sample, which makes none, one or several of it; the order stays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Literal, NamedTuple, get_args

from wds_pipeline.compute import death, pool_size, submit
from wds_pipeline.compute.processes import run_here, undisturbed
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.cat import write_all
from wds_pipeline.dataset.tars.inputs import find_inputs, read_all
from wds_pipeline.dataset.tars.keys import UniqueKeys
from wds_pipeline.dataset.tars.outputs import open_output
from wds_pipeline.dataset.tars.sample import Member, Sample, content
from wds_pipeline.errors import DataError, WorkerError

OnError = Literal["stop", "skip", "keep"]
ON_ERROR: tuple[str, ...] = get_args(OnError)


class Failed(NamedTuple):
    """Why nothing came of a sample; `detail` is what a command said last."""

    reason: str
    detail: str = ""


Work = Callable[[Sample], "list[Sample] | Failed"]
Made = tuple[Sample, "list[Sample] | Failed"]


def map_each(work: Work, pool: Executor) -> Callable[[Iterator[Sample]], Iterator[Made]]:
    """Does the work for each sample in the pool: each with what came of it, in order.

    So many samples are held as keep the workers busy. Raises WorkerError when a worker process dies.
    """
    processes = isinstance(pool, ProcessPoolExecutor)
    most = 2 * max(1, pool_size(pool))

    def made(samples: Iterator[Sample]) -> Iterator[Made]:
        running: deque[tuple[Sample, Future[list[Sample] | Failed]]] = deque()
        job = partial(run_here, work) if processes else work
        try:
            for sample in samples:
                given = _in_memory(sample) if processes else sample
                with undisturbed():
                    running.append((sample, submit(pool, job, given)))
                if len(running) >= most:
                    yield _result(*running.popleft())
            while running:
                yield _result(*running.popleft())
        except BrokenProcessPool as error:
            raise WorkerError(
                f"a worker process died ({death(pool)}): nothing was written; set --workers lower"
            ) from error
        finally:
            if not processes:
                for _, future in running:
                    future.cancel()

    return made


def _result(sample: Sample, future: Future[list[Sample] | Failed]) -> Made:
    return sample, future.result()


def _in_memory(sample: Sample) -> Sample:
    """A sample that can go to another process."""
    members = [Member(field, content(data)) for field, data, _ in sample.members]
    return Sample(sample.key, members, sample.where)


def map_tars(
    names: Sequence[str],
    output: str,
    over: Callable[[Iterator[Sample]], Iterator[Made]],
    *,
    on_error: str = "stop",
    duplicates: str = "error",
    keep_whole: bool = False,
    force: bool = False,
) -> Account:
    """Writes what `over` makes of the samples of all tars into one; each sample comes out of it, with what
    came of it.

    `on_error`, one of `ON_ERROR`: a sample that fails ends it all, or is left out, or stays as it is.
    Arguments and errors as of `cat`; DataError also when a sample fails, or all of them do.
    """
    account = Account()
    inputs = find_inputs(names)
    with open_output(output, inputs, force) as tar:
        made = _sound(over(read_all(inputs, account, keep_whole)), on_error, account)
        write_all(UniqueKeys(duplicates, account).of(made), tar, account)
        if account.failed and account.failed == account.read:
            what, (_, example) = next(iter(account.notes.items()))
            raise DataError(f"all samples {what}, such as {example}; nothing was written")
    account.bytes = tar.size
    return account


def _sound(made: Iterator[Made], on_error: str, account: Account) -> Iterator[Sample]:
    for sample, results in made:
        if isinstance(results, Failed):
            if on_error == "stop":
                more = f"\n{results.detail}" if results.detail else ""
                raise DataError(f"{sample.where}: {sample.key!r}: {results.reason}{more}")
            account.failed += 1
            kept = on_error == "keep"
            what = "failed, and are as they were" if kept else "failed, and are left out"
            account.note(what, f"{sample.key!r}: {results.reason}")
            if kept:
                yield sample
        else:
            if not results:
                account.note("left out, of which nothing was made", sample.key)
            for each in results:
                each.where = sample.where
                yield each
