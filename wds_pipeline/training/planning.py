"""Which bytes of a shard to read at once, for samples in the order in which they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from wds_pipeline.training.members import GAP, ShardMembers

# More than this at once is slower: it no longer stays in the processor's cache until it is cut.
SPAN = 128 * 1024
_FIRST, _CHUNK = 128, 8192  # the first sample shall not wait for the plans of many


class Span(NamedTuple):
    """The samples `first` up to `last` of those wanted, whose bytes are read at once from `begin` to
    `end`; one alone may lie apart, and is then read by its members."""

    first: int
    last: int
    begin: int
    end: int


def chunks(groups: Iterable[Iterable[int]]) -> Iterator[np.ndarray]:
    """The indices of group after group as int64 arrays, some at a time, more and more."""
    size = _FIRST
    for group in groups:
        start = 0
        if isinstance(group, range | np.ndarray):
            while start < len(group):
                part = group[start : start + size]
                if isinstance(part, range):
                    yield np.arange(part.start, part.stop, part.step, dtype=np.int64)
                else:
                    yield part.astype(np.int64, copy=False)
                start, size = start + size, min(2 * size, _CHUNK)
            continue
        left = iter(group)
        while some := list(islice(left, size)):
            yield np.array(some, np.int64)
            size = min(2 * size, _CHUNK)


def runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Where adjacent values are the same: (first, last) of each run; `last` is not of it."""
    cuts = (np.flatnonzero(values[1:] != values[:-1]) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(values)], strict=True)) if len(values) else []


def each_of(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each value that there is, and where it is: ascending."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    cuts = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    for where in np.split(order, cuts):
        if len(where):
            yield int(values[where[0]]), where


def spans(members: ShardMembers, samples: np.ndarray) -> list[Span]:
    """What to read at once for these samples of a shard, in this order."""
    begin, end, apart = (column[samples] for column in members.extents)
    after, before = begin[1:], end[:-1]
    alone = apart[1:] | apart[:-1] | (after < before) | (after - before > GAP)
    alone |= (after - begin[0]) // SPAN != (begin[:-1] - begin[0]) // SPAN
    firsts = np.concatenate([[0], np.flatnonzero(alone) + 1])
    lasts = np.append(firsts[1:], len(samples))
    columns = (firsts, lasts, begin[firsts], end[lasts - 1])
    return list(map(Span, *(column.tolist() for column in columns)))
