"""Which positions of an epoch's order make which step, and whose they are: arithmetic alone.

A pass goes over an epoch from a position to its end. Step `s` of it is the global batch of the
positions `start + s * batch` up to `start + (s + 1) * batch`. Position `p` is of rank `p % ranks`, so
the global batches are the same on any number of ranks; step `s` is of worker `s % workers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wds_pipeline.errors import ConfigError
from wds_pipeline.training.order import Ordered
from wds_pipeline.training.world import World

Last = Literal["pad", "drop", "short"]
LAST: tuple[Last, ...] = ("pad", "drop", "short")


@dataclass(frozen=True)
class Pass:
    """A pass over `count` samples from the position `start`, in global batches of `batch`."""

    epoch: int
    start: int
    count: int
    batch: int
    world: World
    last: Last

    def __post_init__(self) -> None:
        rest = self.rest
        if self.last == "short" and 0 < rest < self.world.size:
            raise ConfigError(
                f'last: found "short", with {rest} samples left for the {self.world.size} ranks in the '
                'last step, which some would not have; expected "pad" or "drop"'
            )

    @property
    def rest(self) -> int:
        """How many samples are left for a last global batch that is not full."""
        return (self.count - self.start) % self.batch

    @property
    def steps(self) -> int:
        """As many on each rank."""
        whole = (self.count - self.start) // self.batch
        return whole + (1 if self.rest and self.last != "drop" else 0)

    @property
    def end(self) -> int:
        """Behind the last position; those from `count` on are filled with the epoch's first samples."""
        whole = self.start + self.steps * self.batch
        return whole if self.last == "pad" else min(whole, self.count)

    @property
    def padded(self) -> int:
        """How many samples all ranks get a second time."""
        return max(self.end - self.count, 0)

    @property
    def dropped(self) -> int:
        """How many samples no rank gets."""
        return max(self.count - self.end, 0)

    def position(self, done: int) -> tuple[int, int]:
        """Epoch and position after so many steps."""
        at = self.start + done * self.batch
        return (self.epoch, at) if done < self.steps else (self.epoch + 1, 0)

    def size(self, step: int) -> int:
        """How many samples of a step are this rank's."""
        first = self.start + step * self.batch
        last = min(first + self.batch, self.end)
        rank, ranks = self.world
        return (last - 1 - rank) // ranks - (first - 1 - rank) // ranks

    def groups(self, order: Ordered, done: int, worker: int, workers: int) -> Iterator[np.ndarray]:
        """The samples of this rank and worker in their order, as many at once as to read at once.

        `done` steps of this rank are over; the next is one of this worker's.
        """
        begin = self.start + done * self.batch
        rank, ranks = self.world
        for end in order.cuts(begin, min(self.end, self.count)):
            positions = np.arange(begin + (rank - begin) % ranks, end, ranks, dtype=np.int64)
            begin = end
            mine = self._of_worker(positions, done, worker, workers)
            if len(mine):
                yield order.at(self.epoch, mine)
        begin = max(begin, self.count)
        if begin < self.end:
            positions = np.arange(begin + (rank - begin) % ranks, self.end, ranks, dtype=np.int64)
            mine = self._of_worker(positions, done, worker, workers)
            if len(mine):
                yield order.at(self.epoch, (mine - self.count) % self.count)

    def _of_worker(self, positions: np.ndarray, done: int, worker: int, workers: int) -> np.ndarray:
        if workers == 1:
            return positions
        return positions[(positions - self.start) // self.batch % workers == worker]
