"""Which pass comes next, for a stream and the workers of a DataLoader that have it.

Workers are started anew for each pass or kept, and nobody tells them the epoch. So each has a slot, in
memory that all share, with the epoch that it began last: the next is one more.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Any

SLOTS = 1024  # the first is for the process that has no workers
_HEAD, _WIDTH = 3, 3
_GENERATION, _EPOCH, _POSITION = range(_HEAD)
CELLS = _HEAD + _WIDTH * SLOTS


class Board:
    """`cells` are `CELLS` numbers, 0 at first: a list, or what processes share."""

    def __init__(self, cells: MutableSequence[Any] | Any) -> None:
        self._cells = cells
        self._cells[_GENERATION] = 1

    def take(self, other: Board) -> None:
        """Goes on from where another one is."""
        self._cells[:] = other._cells[:]

    @property
    def first(self) -> tuple[int, int]:
        """The epoch and the position that were set last."""
        return int(self._cells[_EPOCH]), int(self._cells[_POSITION])

    def set(self, epoch: int, position: int) -> None:
        """Says where each worker's next pass begins; those behind it go on from there."""
        self._cells[_EPOCH], self._cells[_POSITION] = epoch, position
        self._cells[_GENERATION] += 1

    def next(self, slot: int) -> tuple[int, int]:
        """The epoch and the position where a worker's next pass begins."""
        at = self._at(slot)
        if int(self._cells[at]) != int(self._cells[_GENERATION]):
            return self.first
        return int(self._cells[at + 1]) + 1, 0

    def begin(self, slot: int, epoch: int) -> None:
        """Says that a worker begins a pass over an epoch."""
        at = self._at(slot)
        self._cells[at], self._cells[at + 1] = self._cells[_GENERATION], epoch

    def skipped(self, slot: int, count: int) -> None:
        """Counts samples that a worker skipped."""
        self._cells[self._at(slot) + 2] += count

    @property
    def all_skipped(self) -> int:
        """How many samples all workers skipped."""
        return sum(int(self._cells[self._at(slot) + 2]) for slot in range(SLOTS))

    @property
    def in_workers(self) -> bool:
        """Whether a worker has begun a pass since `set`."""
        generation = int(self._cells[_GENERATION])
        return any(int(self._cells[self._at(slot)]) == generation for slot in range(1, SLOTS))

    @staticmethod
    def _at(slot: int) -> int:
        return _HEAD + _WIDTH * (slot % SLOTS)
