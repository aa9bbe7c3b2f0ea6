"""Which ranges of shards to ask a store for, for samples in the order in which they are wanted.

A stretch of 32 KB that nobody wants is read along. From a server on the same machine that took a
processor an eighth to a sixth of what a request did, and it takes a gigabit line a quarter of a
millisecond. By the processor's time alone a wider stretch would pay too; how wide, the line decides and
what a store charges for requests. A range is asked for in pieces of 4 MB, so that it comes by several
connections, and its first samples before its last. From a server on the same machine 1 MB took half as
much again of a processor's time, 2 MB a tenth more, and 8 and 16 MB no less; but the larger they are,
the fewer fit into what may be held, and are under way at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.members import ShardMembers
from wds_pipeline.training.planning import runs

GAP = 32 * 1024
PIECE = 4 * 1024 * 1024
# So that none is of a gap alone.
LEAST_PIECE = 2 * GAP
# Before a member's data; it tells whether the shard is the one that the index is of.
HEADER = 512


class Piece:
    """A range of a shard to ask for, in bytes; `left` samples have not been cut out of it yet.

    `member`: begin and size of the first member's data, if its header is in the range, else None.
    """

    __slots__ = ("begin", "data", "done", "end", "error", "left", "member", "shard")

    def __init__(
        self, shard: int, begin: int, end: int, left: int, member: tuple[int, int] | None
    ) -> None:
        self.shard, self.begin, self.end, self.left, self.member = shard, begin, end, left, member
        self.done = False
        self.data: memoryview | None = None
        self.error: BaseException | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


class Pieces(Protocol):
    """Where a plan's pieces come from."""

    def wait(self, piece: Piece) -> memoryview:
        """The piece's bytes, once they are there."""
        ...

    def release(self, piece: Piece) -> None:
        """The piece is needed no more."""
        ...


class Limits(NamedTuple):
    """`piece`: how many bytes are asked for at a time, at most; `LEAST_PIECE` at least. `block`: ranges
    begin and end at multiples of it, or at the shard's end; it is `GAP` at most, and 1: anywhere."""

    piece: int = PIECE
    block: int = 1


class Unit:
    """Samples that are planned together: their pieces in the order in which they are needed, and how
    the samples are cut out of them in the order asked."""

    def __init__(self, indices: np.ndarray) -> None:
        self.indices = indices
        self.pieces: list[Piece] = []
        self.parts: list[Part] = []
        self.part_of = np.zeros(len(indices), np.int64)
        self.row_of = np.zeros(len(indices), np.int64)

    @property
    def bytes(self) -> int:
        """How many are asked for."""
        return sum(piece.size for piece in self.pieces)

    def samples(self, source: Pieces) -> Iterator[dict[str, Any]]:
        """The samples in the order asked, each as soon as its bytes are there."""
        parts = self.parts
        for part, row in zip(self.part_of.tolist(), self.row_of.tolist(), strict=True):
            yield parts[part].sample(row, source)


def plan(
    catalog: Catalog, indices: np.ndarray, fields: Collection[str] | None, limits: Limits
) -> Unit:
    """Plans samples by their numbers in the catalog, in any order, also several times the same.

    Raises what `Catalog.members` does.
    """
    unit = Unit(indices)
    starts = catalog.starts
    shards = np.searchsorted(starts, indices, side="right") - 1
    order = np.argsort(shards, kind="stable")
    needs = []
    for first, last in runs(shards[order]):
        at = order[first:last]  # positions in `indices`, ascending
        shard = int(shards[at[0]])
        unit.part_of[at] = len(unit.parts)
        part, unit.row_of[at], need = _plan_shard(
            catalog, shard, indices[at] - starts[shard], at, fields, limits
        )
        unit.parts.append(part)
        needs.append(need)
    if needs:
        found = [piece for part in unit.parts for piece in part.pieces]
        unit.pieces = [found[i] for i in np.argsort(np.concatenate(needs), kind="stable").tolist()]
    return unit


def _plan_shard(
    catalog: Catalog,
    shard: int,
    samples: np.ndarray,
    positions: np.ndarray,
    fields: Collection[str] | None,
    limits: Limits,
) -> tuple[Part, np.ndarray, np.ndarray]:
    """What is wanted of one shard; each sample's row in it; and for each piece the first of the
    positions that need it."""
    members = catalog.members(shard).only(fields)
    wanted, at, rows = np.unique(samples, return_index=True, return_inverse=True)
    rows = rows.reshape(-1)
    taken = _member_rows(members, wanted)
    stretches = _Stretches(members, taken, limits, catalog.shards[shard].bytes)
    # Each asked sample is cut out of all of its pieces, from the first to the last.
    steps = np.zeros(len(stretches.begin) + 1, np.int64)
    times = np.bincount(rows, minlength=len(wanted))
    some = stretches.last >= 0
    np.add.at(steps, stretches.first[some], times[some])
    np.add.at(steps, stretches.last[some] + 1, -times[some])
    left = np.cumsum(steps[:-1])
    need = np.full(len(stretches.begin), np.iinfo(np.int64).max)
    asked_at = positions[at]
    for row in np.flatnonzero(stretches.last > stretches.first).tolist():
        span = slice(stretches.first[row], stretches.last[row] + 1)
        need[span] = np.minimum(need[span], asked_at[row])
    np.minimum.at(need, stretches.first[some], asked_at[some])
    columns = (stretches.begin, stretches.end, left.tolist(), stretches.member)
    pieces = [Piece(shard, *each) for each in zip(*columns, strict=True)]
    return Part(catalog, shard, members, wanted, taken, stretches, pieces), rows, need


class _MemberRows(NamedTuple):
    """The members of some samples: their rows in the index; where each sample's begin among them, and
    at last their number; and which sample each is of."""

    rows: np.ndarray
    first: np.ndarray
    owner: np.ndarray


def _member_rows(members: ShardMembers, samples: np.ndarray) -> _MemberRows:
    begin = members.first[samples]
    counts = members.first[samples + 1] - begin
    first = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(samples)), counts)
    rows = np.arange(len(owner)) - first[owner] + begin[owner]
    return _MemberRows(rows, first, owner)


class _Stretches:
    """The pieces for some members of a shard: `begin`, `end`, `member`. `first` and `last` are each
    sample's pieces; -1 for a sample that has no bytes."""

    def __init__(
        self, members: ShardMembers, taken: _MemberRows, limits: Limits, size: int
    ) -> None:
        bounds = members.bounds[taken.rows]
        filled = bounds[:, 1] > bounds[:, 0]
        begin, end, owner = bounds[filled, 0], bounds[filled, 1], taken.owner[filled]
        count = len(taken.first) - 1
        self.first, self.last = np.zeros(count, np.int64), np.full(count, -1, np.int64)
        self.begin: list[int] = []
        self.end: list[int] = []
        self.member: list[tuple[int, int] | None] = []
        if not len(begin):
            return
        # Runs of a sample's members that lie close together stay together.
        new = np.flatnonzero((owner[1:] != owner[:-1]) | (begin[1:] - end[:-1] > GAP)) + 1
        heads = np.concatenate([[0], new])
        tails = np.append(new, len(begin)) - 1
        self._sizes = (end[heads] - begin[heads]).tolist()
        self._data = begin[heads].tolist()
        block = limits.block
        self._begin = np.maximum(begin[heads] - HEADER, 0) // block * block
        self._end = np.minimum(-(-end[tails] // block) * block, size)
        firsts, lasts = self._cut(limits)
        of = owner[heads]
        self.first[of[::-1]] = firsts[::-1]
        self.last[of] = lasts

    def _cut(self, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """Joins neighbours, and cuts what is too large; the first and last piece of each run."""
        begin, end = self._begin, self._end
        apart = np.flatnonzero(begin[1:] - end[:-1] > GAP) + 1
        begins, ends = begin.tolist(), end.tolist()
        firsts = np.zeros(len(begin), np.int64)
        lasts = np.zeros(len(begin), np.int64)
        for head, until in pairwise([0, *apart.tolist(), len(begin)]):
            while head < until:
                at = begins[head]
                if ends[until - 1] - at <= limits.piece:
                    last = until
                else:
                    fits = np.searchsorted(end[head:until], at + limits.piece, side="right")
                    last = head + max(int(fits), 1)
                firsts[head:last] = len(self.begin)
                self._add(at, ends[last - 1], limits, (self._data[head], self._sizes[head]))
                lasts[head:last] = len(self.begin) - 1
                head = last
        return firsts, lasts

    def _add(self, begin: int, end: int, limits: Limits, member: tuple[int, int]) -> None:
        parts = -(-(end - begin) // limits.piece)
        step = -(-(end - begin) // parts)
        step = -(-step // limits.block) * limits.block
        for at in range(begin, end, step):
            self.begin.append(at)
            self.end.append(min(at + step, end))
            whole = at == begin and member[0] - begin >= HEADER
            self.member.append(member if whole else None)


class Part:
    """What is wanted of one shard, and how it is cut apart."""

    def __init__(
        self,
        catalog: Catalog,
        shard: int,
        members: ShardMembers,
        wanted: np.ndarray,
        taken: _MemberRows,
        stretches: _Stretches,
        pieces: list[Piece],
    ) -> None:
        self.shard = shard
        self.pieces = pieces
        self._url = catalog.shards[shard].url
        self._members = members
        self._indices = (wanted + catalog.starts[shard]).tolist()
        self._keys: list[str] = members.keys.take(pa.array(wanted)).to_pylist()
        self._names = members.uniform
        self._rows = members.first[wanted].tolist()
        self._at = taken.first.tolist()
        self._first, self._last = stretches.first.tolist(), stretches.last.tolist()
        bounds = members.bounds[taken.rows]
        base = np.zeros(len(wanted), np.int64)
        if pieces:
            # Of samples that are in one piece, relative to that; else as they are in the shard.
            one = stretches.first == stretches.last
            base[one] = np.array(stretches.begin)[stretches.first[one]]
        self._bounds = (bounds - base[taken.owner, None]).reshape(-1).tolist()

    def sample(self, row: int, source: Pieces) -> dict[str, Any]:
        """A sample, once its bytes are there."""
        found: dict[str, Any] = {
            "__key__": self._keys[row],
            "__url__": self._url,
            "__index__": self._indices[row],
        }
        at, until = self._at[row], self._at[row + 1]
        names = self._names or self._members.names(self._rows[row], self._rows[row] + until - at)
        bounds = self._bounds[2 * at : 2 * until]
        first, last = self._first[row], self._last[row]
        if first == last:
            piece = self.pieces[first]
            data = piece.data if piece.data is not None else source.wait(piece)
            each = iter(bounds)
            for name in names:
                found[name] = data[next(each) : next(each)].tobytes()
            _use(piece, source)
        elif last < 0:
            for name in names:
                found[name] = b""
        else:
            self._sample_of_many(found, names, bounds, self.pieces[first : last + 1], source)
        return found

    def _sample_of_many(
        self,
        found: dict[str, Any],
        names: Collection[str],
        bounds: list[int],
        pieces: list[Piece],
        source: Pieces,
    ) -> None:
        """Each piece is let go of as soon as what is wanted of it is copied, so that a sample may be
        larger than what may be held."""
        at = 0
        for name, begin, end in zip(names, bounds[::2], bounds[1::2], strict=True):
            if begin == end:
                found[name] = b""
                continue
            while pieces[at].end <= begin:
                _use(pieces[at], source)
                at += 1
            piece = pieces[at]
            if end <= piece.end:
                data = source.wait(piece)
                found[name] = data[begin - piece.begin : end - piece.begin].tobytes()
                continue
            whole = BytesIO(bytes(end - begin))  # `getvalue` of all of it is no copy
            while True:
                piece = pieces[at]
                data = source.wait(piece)
                whole.write(data[max(begin - piece.begin, 0) : end - piece.begin])
                if end <= piece.end:
                    break
                _use(piece, source)
                at += 1
            found[name] = whole.getvalue()
        for piece in pieces[at:]:
            _use(piece, source)


def _use(piece: Piece, source: Pieces) -> None:
    piece.left -= 1
    if not piece.left:
        source.release(piece)
