"""Samples in the shuffled order of an epoch, shared out to ranks and workers, from any position on."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, TypedDict

from wds_pipeline.errors import ConfigError, DecodeError
from wds_pipeline.training.board import CELLS, Board
from wds_pipeline.training.on_error import ErrorPolicy, OnError
from wds_pipeline.training.order import Ordered, Shuffle, seed_of
from wds_pipeline.training.state import WorkerState, read_state
from wds_pipeline.training.steps import LAST, Last, Pass
from wds_pipeline.training.stream_source import Sample, Source
from wds_pipeline.training.threads import cores, mapped
from wds_pipeline.training.world import World, find_world, worker_info

AHEAD_BYTES = 256 * 1024 * 1024
_THREADS = 16
_FEW = 32  # samples that a thread takes at a time, where no batch says how many
_log = logging.getLogger("wds_pipeline.training")

_SKIPPED = object()


class Options(TypedDict, total=False):
    """What `Dataset.stream` takes, which explains it; the defaults are those of `Stream`."""

    seed: int
    shuffle: Shuffle | bool | str | None
    batch_size: int | None
    global_batch_size: int | None
    last: Last
    collate: Callable[[list[Any]], Any] | None
    rank: int | None
    world_size: int | None
    threads: int | None
    on_error: OnError | ErrorPolicy | None
    ahead_bytes: int


class Stream:
    """Iterates over the samples of an epoch; each pass is another epoch. See `Dataset.stream`.

    `state_dict()` says how far the pass is that began last, in some plain values; a stream that loads
    it, on any number of ranks and workers, goes on right there.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int = 0,
        shuffle: Shuffle | bool | str | None = True,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        last: Last = "pad",
        collate: Callable[[list[Any]], Any] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        threads: int | None = None,
        on_error: OnError | ErrorPolicy | None = None,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self.source = source
        self.seed, self.shuffle = seed_of(seed), Shuffle.of(shuffle)
        self.batch_size, self.global_batch_size, self.last = batch_size, global_batch_size, last
        self.collate, self.threads, self.ahead_bytes = collate, threads, ahead_bytes
        self._given = (rank, world_size)
        self._sender: World | None = None
        self.lead: tuple[int, int] | None = None
        """Where the pass begins that a loader has workers started for."""
        self._on_error = source.on_error if on_error is None else on_error
        self._check()
        self._board, self._home = self._make_board(), os.getpid()
        self._start_over()

    def _make_board(self) -> Board:
        return Board([0] * CELLS)

    @property
    def board(self) -> Board:
        """Which pass is next. Workers share it; processes that were given this stream as ranks do not."""
        if self._home != os.getpid() and worker_info() is None:
            board = self._make_board()
            board.take(self._board)
            self._board, self._home = board, os.getpid()
        return self._board

    def _start_over(self) -> None:
        self.errors = ErrorPolicy.of(self._on_error)
        """What was skipped in this process."""
        self._order: Ordered | None = None
        self._run: Run | None = None
        self._resume: WorkerState | None = None
        self._process = os.getpid()

    def _at_home(self) -> None:
        """Forgets what another process did, if it was forked from that."""
        if self._process != os.getpid():
            self._start_over()
        parent = multiprocessing.parent_process()
        if worker_info() is not None and parent and self._home not in (parent.pid, os.getpid()):
            raise ConfigError(
                f"{self.source.named}: stream: a DataLoader was made of it in a process that got it from "
                "another one, where its workers share it with those of other ranks; take "
                "`stream.loader(…)`, or say `stream.set_epoch(…)` there first"
            )

    def _check(self) -> None:
        batches = {"batch_size": self.batch_size, "global_batch_size": self.global_batch_size}
        numbers = {**batches, "threads": self.threads, "ahead_bytes": self.ahead_bytes}
        for name, value in numbers.items():
            least = 0 if name == "threads" else 1
            if value is not None and (type(value) is not int or value < least):
                raise self._wrong(name, value, f"a number from {least}")
        if None not in batches.values():
            raise self._wrong(
                "global_batch_size", self.global_batch_size, "it or batch_size, not both"
            )
        if self.last not in LAST:
            raise self._wrong("last", self.last, f"one of {', '.join(LAST)}")
        if not (self.collate is None or callable(self.collate)):
            raise self._wrong("collate", self.collate, "a function that gets a list of samples")
        if self.collate is not None and not self.batched:
            raise self._wrong("collate", self.collate, "a batch_size with it")
        self._world()

    def _wrong(self, name: str, found: object, expected: str) -> ConfigError:
        return ConfigError(
            f"{self.source.named}: stream: {name}: found {found!r}; expected {expected}"
        )

    @property
    def batched(self) -> bool:
        """Whether a step is a batch."""
        return self.batch_size is not None or self.global_batch_size is not None

    def __getstate__(self) -> dict[str, Any]:
        own = ("errors", "_order", "_run", "_resume", "_process")
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        state["_sender"] = self._world()  # a worker cannot ask torch.distributed; a rank can
        state["_board"], state["_home"] = self.board, self._home
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_over()

    # What it is.

    @property
    def order(self) -> Ordered:
        """The order of its epochs."""
        if self._order is None:
            self._order = self.source.order(self.seed, self.shuffle)
            if not len(self._order):
                raise ConfigError(f"{self.source.named}: stream: there are no samples")
        return self._order

    def _world(self) -> World:
        world = (worker_info() and self._sender) or find_world(*self._given)
        whole = self.global_batch_size
        if whole is not None and whole % world.size:
            raise self._wrong("global_batch_size", whole, f"a multiple of the {world.size} ranks")
        return world

    def plan(self, epoch: int = 0, position: int = 0) -> Pass:
        """A pass from a position to the epoch's end: how many `steps` on each rank, how many samples
        are `padded` or `dropped`, in all ranks."""
        world = self._world()
        batch = self.global_batch_size or (self.batch_size or 1) * world.size
        return Pass(epoch, position, len(self.order), batch, world, self.last)

    def __len__(self) -> int:
        """How many steps a whole epoch has, on each rank: batches, or samples where none are made."""
        return self.plan().steps

    def __repr__(self) -> str:
        plan = self.plan()
        rest = {
            "pad": f"{plan.padded} padded",
            "drop": f"{plan.dropped} dropped",
            "short": "none lost",
        }
        return (
            f"<{type(self).__name__} {self.source.named}: {plan.count:,} samples, "
            f"{plan.steps:,} steps of {plan.batch} for {plan.world.size} ranks, {rest[self.last]}>"
        )

    @property
    def skipped(self) -> int:
        """How many samples were left out because they do not decode, in all workers of this rank."""
        return self.board.all_skipped

    # Passes.

    @property
    def epoch(self) -> int:
        """The epoch of the pass under way, or of the next one."""
        return self._position()[0]

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch is next, from its beginning. Raises ConfigError for what is no number."""
        self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Says where the next pass begins: a position of an epoch's global order."""
        sound = type(epoch) is type(position) is int and epoch >= 0
        if not (sound and 0 <= position <= len(self.order)):
            expected = f"an epoch from 0, and 0 to {len(self.order):,}"
            raise self._wrong("epoch and position", (epoch, position), expected)
        self._at_home()
        self._run, self._resume = None, None
        self.board.set(epoch, position)

    def begin(self, slot: int = 0, workers: int = 1) -> Run:
        """Begins the pass that is next."""
        self._at_home()
        resume, self._resume = self._resume, None
        done = max(slot - 1, 0)
        if resume is not None:
            epoch, position, done = resume.epoch, resume.position, resume.step
        elif slot and self.lead is not None:
            # A kept worker's later passes begin while the loader waits: it has set the board.
            epoch, position = self.lead if self._run is None else self.board.first
        else:
            epoch, position = self.board.next(slot)
        self.board.begin(slot, epoch)
        plan = self.plan(epoch, position)
        if resume is not None:
            resume.check_batch(plan.batch, self.source.named)
        if slot <= 1 and (plan.padded or plan.dropped):
            _log.info("epoch %d of %r", epoch, self)
        self._run = Run(plan, done, slot, workers)
        return self._run

    def __iter__(self) -> Iterator[Any]:
        found = worker_info()
        if found is None:
            return self._pass(None)
        # At once, before anything is asked for: a pass that is broken off early is one for each worker.
        return self._pass(self.begin(found[0] + 1, found[1]))

    def _pass(self, run: Run | None) -> Iterator[Any]:
        run = run or self.begin()
        workers = run.workers
        with closing(self._made(run)) as made:
            if not self.source.decodes:
                for found in made:
                    run.done += workers
                    yield found
                return
            for found in made:
                run.done += workers
                self._count_skipped(run)
                if found is not _SKIPPED:
                    yield found

    def _count_skipped(self, run: Run) -> None:
        skipped = self.errors.count
        if skipped != run.skipped:
            self.board.skipped(run.slot, skipped - run.skipped)
            run.skipped = skipped

    def _made(self, run: Run) -> Generator[Any]:
        """What the steps of a pass give: samples, or batches of them."""
        plan, run.skipped = run.plan, self.errors.count
        groups = plan.groups(self.order, run.done, run.worker, run.workers)
        raw = self.source.read_ahead(groups, self.ahead_bytes)
        threads = self._threads(run)
        if self.batched:
            sizes = (plan.size(step) for step in range(run.done, plan.steps, run.workers))
            yield from mapped(threads, self._batch, (list(islice(raw, size)) for size in sizes))
        elif self.source.decodes:
            parts = iter(lambda: list(islice(raw, _FEW if threads else 1)), [])
            for part in mapped(threads, self._decoded, parts):
                yield from part
        else:
            yield from raw

    def _threads(self, run: Run) -> int:
        if self.threads is not None:
            return self.threads
        if run.slot or not (self.source.decodes or self.collate):
            return 0
        return min(cores(), _THREADS)

    def _decoded(self, samples: list[Sample]) -> list[Any]:
        """As many as came; `_SKIPPED` for those that are left out."""
        if not self.source.decodes:
            return samples
        found = (self.errors.apply(self.source.decode, sample) for sample in samples)
        return [value if sound else _SKIPPED for sound, value in found]

    def _batch(self, samples: list[Sample]) -> Any:
        found = [each for each in self._decoded(samples) if each is not _SKIPPED]
        if not found:
            last = self.errors.first[-1].message if self.errors.first else ""
            raise DecodeError(
                f"{self.source.named}: all {len(samples)} samples of a batch were left out because they do "
                f"not decode, and a step without samples would be missing on this rank alone; {last}",
                dataset=self.source.named,
            )
        return found if self.collate is None else self.collate(found)

    # Its state.

    def _position(self) -> tuple[int, int]:
        run = self._run
        if run is None:
            return self.board.next(0)
        return run.plan.position(run.done)

    def state_dict(self) -> dict[str, Any]:
        """Where training is: plain values, a few dozen bytes more than the dataset's name.

        In a worker of a DataLoader it is of that worker, for torchdata's StatefulDataLoader. Raises
        ConfigError where only a DataLoader knows.
        """
        self._at_home()
        head = {**self.source.facts, **self.order.identity}
        worker = worker_info()
        if worker is not None:
            return {**head, **self._worker_state(*worker)._asdict()}
        if self._run is None and self.board.in_workers:
            raise ConfigError(
                f"{self.source.named}: state_dict: workers of a DataLoader read ahead of training, and only "
                "the loader knows how far it is; take `stream.loader(...)`, or torchdata's "
                "StatefulDataLoader, and the state of that"
            )
        epoch, position = self._position()
        return {**head, "epoch": epoch, "position": position}

    def _worker_state(self, worker: int, workers: int) -> WorkerState:
        if self._resume is not None:
            return self._resume
        run = self._run
        if run is None:
            plan, done = self.plan(*self.board.next(worker + 1)), worker
        else:
            plan, done = run.plan, run.done
        return WorkerState(plan.epoch, plan.start, done, worker, workers, plan.batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass begins where `state` says: one of `state_dict`, or of a StatefulDataLoader that
        had this stream, on any number of ranks and workers.

        Raises ConfigError for the state of another order: other samples, another seed or shuffle.
        """
        self._at_home()
        found = read_state(state, {**self.source.facts, **self.order.identity}, self.source.named)
        worker = worker_info()
        if worker is None:
            self.seek(*found.merged(self.source.named, len(self.order), self.last))
            return
        self._resume = found.of_worker(*worker, self.source.named)
        self.board.begin(worker[0] + 1, self._resume.epoch)

    def loader(self, num_workers: int = 0, **options: Any) -> Any:
        """A DataLoader of torch's. Raises ConfigError where torch is not installed."""
        raise ConfigError(
            f"{self.source.named}: stream.loader: num_workers={num_workers}: a DataLoader needs torch, which "
            "is not installed: `pip install torch`; or iterate over the stream itself, with threads"
        )

    def close(self) -> None:
        """Closes the files of its datasets."""
        self.source.close()


class Run:
    """A pass under way in a process: `done` is the next step that it makes."""

    def __init__(self, plan: Pass, done: int, slot: int, workers: int) -> None:
        self.plan, self.done, self.slot, self.workers = plan, done, slot, workers
        self.skipped = 0

    @property
    def worker(self) -> int:
        """Which of the workers it is; 0 where there are none."""
        return max(self.slot - 1, 0)
