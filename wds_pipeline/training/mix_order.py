"""Which dataset each position of a mixture's epoch is from: exact shares, spread evenly, at random.

An epoch has so many samples of each dataset. They are shared out to blocks of positions by halving the
epoch again and again, each half with its share of every dataset, rounded by the largest remainders; so
what lies before any block is known without what lies between. In a block the order is random. Each
dataset goes through its own epochs, one after the other, whatever the epoch of the mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wds_pipeline.training.bounded import Bounded
from wds_pipeline.training.order import Order
from wds_pipeline.training.permute import key_of, permutation
from wds_pipeline.training.planning import each_of

_BLOCK = 4096


class MixOrder:
    """The order of a mixture. A sample's number is its own in its dataset and those of all before."""

    def __init__(
        self, orders: Sequence[Order], counts: Sequence[int], seed: int, group: int
    ) -> None:
        """`counts`: samples of each dataset in an epoch; `group`: samples that are read as one."""
        self._orders = orders
        self._counts = np.array(counts, np.int64)
        self._count, self._group = int(self._counts.sum()), group
        self._offsets = np.cumsum([0, *map(len, orders)])
        self._key = key_of(*(order.identity["digest"] for order in orders), seed)
        self.identity: dict[str, Any] = {
            "datasets": [order.identity["digest"] for order in orders],
            "counts": list(map(int, counts)),
            "seed": seed,
            "shuffle": [order.identity["shuffle"] for order in orders],
        }
        self._blocks: Bounded[tuple[int, int], tuple[np.ndarray, np.ndarray]] = Bounded(64)

    def __len__(self) -> int:
        return self._count

    def cuts(self, start: int, stop: int) -> Iterator[int]:
        """Every so many samples, and at last `stop`."""
        while (end := (start // self._group + 1) * self._group) < stop:
            yield end
            start = end
        if start < stop:
            yield stop

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The numbers of the samples at these positions: int64."""
        which, draw = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        blocks = positions // _BLOCK
        for block, mine in each_of(blocks):
            inside = positions[mine] - block * _BLOCK
            labels, draws = self._block(epoch, block)
            which[mine], draw[mine] = labels[inside], draws[inside]
        found = np.empty(len(positions), np.int64)
        for number, order in enumerate(self._orders):
            mine = which == number
            drawn = epoch * self._counts[number] + draw[mine]
            own, place = np.divmod(drawn, max(len(order), 1))
            part = np.empty(len(drawn), np.int64)
            for each, where in each_of(own):
                part[where] = order.at(each, place[where])
            found[mine] = self._offsets[number] + part
        return found

    def _block(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The dataset of each position of a block, and how many of that dataset come before it."""
        found = self._blocks.get((epoch, block))
        if found is None:
            before, here = self._share(block)
            mixed = permutation(int(here.sum()), key_of(self._key, epoch, block))
            labels = np.repeat(np.arange(len(here)), here)[mixed]
            draws = np.empty(len(labels), np.int64)
            for number, count in enumerate(here.tolist()):
                draws[labels == number] = before[number] + np.arange(count)
            found = self._blocks.add((epoch, block), (labels, draws))
        return found

    def _share(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """How many samples of each dataset lie before a block, and in it."""
        before, here = np.zeros_like(self._counts), self._counts
        first, last = 0, -(-self._count // _BLOCK)
        while last - first > 1:
            middle = (first + last) // 2
            left = shares(here, (middle - first) * _BLOCK)
            if block < middle:
                here, last = left, middle
            else:
                before, here, first = before + left, here - left, middle
        return before, here


def shares(counts: np.ndarray, total: int) -> np.ndarray:
    """So many of all, of each in proportion: rounded down, and the largest remainders up."""
    whole = int(counts.sum())
    exact = [int(count) * total for count in counts]  # Python's numbers do not overflow
    found = np.array([each // whole for each in exact], np.int64)
    rest = np.array([-(each % whole) for each in exact])
    found[np.argsort(rest, kind="stable")[: total - int(found.sum())]] += 1
    return found
