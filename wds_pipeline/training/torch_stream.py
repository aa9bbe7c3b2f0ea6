"""A stream as torch's DataLoader takes it, and a loader whose state is exact."""

from __future__ import annotations

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
        self.stream = stream
        if options.get("collate_fn") is None:
            options["collate_fn"] = _as_made
        self._loader = DataLoader(stream, batch_size=None, num_workers=num_workers, **options)

    def __len__(self) -> int:
        """How many steps an epoch has."""
        return len(self.stream)

    def __iter__(self) -> Iterator[Any]:
        if not self._loader.num_workers:
            yield from self._loader
            return
        epoch, position = self.stream.board.next(0)
        self.stream.seek(epoch, position)  # where all workers begin
        run = self.stream.begin()
        for batch in self._loader:
            run.done += 1
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch is next, from its beginning."""
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where training is, as `Stream.state_dict`: what workers read ahead does not count."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass begins where the state says, as `Stream.load_state_dict`."""
        self.stream.load_state_dict(state)
