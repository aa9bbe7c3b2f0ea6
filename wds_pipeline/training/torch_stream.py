"""A stream as torch's DataLoader takes it, and a loader whose state is exact."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from wds_pipeline.errors import ConfigError
from wds_pipeline.training.board import CELLS, Board
from wds_pipeline.training.on_error import RAISE
from wds_pipeline.training.stream import Stream


class TorchStream(Stream, IterableDataset):  # type: ignore[misc]
    """A stream for `DataLoader(stream, batch_size=None, num_workers=…)`, and for StatefulDataLoader."""

    def _make_board(self) -> Board:
        return Board(torch.zeros(CELLS, dtype=torch.int64).share_memory_())

    def loader(self, num_workers: int = 0, **options: Any) -> Loader:
        """A DataLoader of this stream's batches; its state goes to any number of ranks and workers.

        `options` are those of `DataLoader`. Raises ConfigError for those that the stream decides.
        """
        return Loader(self, num_workers, options)


def _as_made(step: Any) -> Any:
    """What the stream made; by default a DataLoader makes tensors of its arrays."""
    return step


class Loader:
    """A `DataLoader` over a stream. Lightning and others keep and load its state."""

    def __init__(self, stream: TorchStream, num_workers: int, options: dict[str, Any]) -> None:
        decided = ("batch_size", "batch_sampler", "sampler", "shuffle", "drop_last", "dataset")
        for name in decided:
            if options.get(name) is not None:
                raise ConfigError(
                    f"{stream.source.named}: loader: {name}: found {options[name]!r}; expected nothing: "
                    "the stream decides it (`stream(batch_size=…, shuffle=…, last=…)`)"
                )
        if num_workers and not stream.batched and stream.errors.on_error != RAISE:
            raise ConfigError(
                f"{stream.source.named}: loader: on_error: found {stream.errors.on_error!r} without a "
                "batch_size; expected one: else nobody knows how many samples workers left out"
            )
        if options.get("in_order") is False:
            raise ConfigError(
                f"{stream.source.named}: loader: in_order: found False; expected True: batches in another "
                "order have no position to go on from"
            )
        self.stream = stream
        self.sampler = _Epochs(self)
        self.batch_sampler = None  # Lightning asks for it where there is a sampler
        self.fresh = True
        """No pass began, and nobody said where."""
        self._passes = 0
        if options.get("collate_fn") is None:
            options["collate_fn"] = _as_made
        self._loader = DataLoader(stream, batch_size=None, num_workers=num_workers, **options)

    def __len__(self) -> int:
        """How many steps an epoch has."""
        return len(self.stream)

    def __iter__(self) -> Iterator[Any]:
        self.fresh = False
        if not self._loader.num_workers:
            yield from self._loader
            return
        stream = self.stream
        self._passes = number = self._passes + 1
        start = stream.board.next(0)
        stream.seek(*start)  # where all workers begin
        run = stream.begin()
        stream.lead = start
        try:
            batches = iter(self._loader)
        finally:
            stream.lead = None
        for batch in batches:
            run.done += 1
            yield batch
            if self._loader.persistent_workers and number != self._passes:
                raise ConfigError(
                    f"{stream.source.named}: loader: a pass goes on after another began, and both have the "
                    "same workers; expected one at a time, or no persistent_workers"
                )

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch is next, from its beginning."""
        self.fresh = False
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where training is, as `Stream.state_dict`: what workers read ahead does not count."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass begins where the state says, as `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)
        self.fresh = False


class _Epochs:
    """Where Lightning says which epoch begins. It loads no state of a loader from a checkpoint of an epoch's
    end, so this is all that a new process knows then; else the stream knows better."""

    def __init__(self, loader: Loader) -> None:
        # A cycle would leave the loader to the garbage collector, which ends the queues of its workers before
        # these are told to end: five seconds each.
        self._loader = weakref.ref(loader)

    def set_epoch(self, epoch: int) -> None:
        loader = self._loader()
        if loader is not None and loader.fresh and epoch > loader.stream.epoch:
            loader.set_epoch(epoch)
