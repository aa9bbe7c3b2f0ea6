"""Where each sample's data are in its tar: a shard's member index, in columns."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Two stretches with so few bytes between them are read as one: between two members there are a
# header and padding, and less than a page of the disk costs nothing.
GAP = 4096
# A sample of so many bytes is read at once and cut into its fields. Of a larger one the large fields
# are read alone, since a second copy would cost more than a second read.
WHOLE = 32 * 1024
_SUBSETS = 4  # of fields that are remembered for a shard


class DamagedIndex(Exception):
    """A member index contradicts itself or its shard; says in what, in one clause."""


class Extents(NamedTuple):
    """For each sample, `begin` and `end` of its data in the tar; `apart`: not to be read at once."""

    begin: np.ndarray
    end: np.ndarray
    apart: np.ndarray


class ShardMembers:
    """The member index of one shard, or what it says of some fields.

    `keys` has one key a sample. The members of sample `i` are `first[i]:first[i + 1]` of `fields`
    (codes of `field_names`), `offsets` and `sizes`: where the data start in the tar, in bytes.
    """

    def __init__(
        self,
        keys: pa.Array,
        first: np.ndarray,
        fields: np.ndarray,
        field_names: list[str],
        bounds: np.ndarray,
    ) -> None:
        self.keys = keys
        self.first = first
        self.fields = fields
        self.field_names = field_names
        self.bounds = bounds
        """Begin and end of each member's data: int64, one behind the other."""
        # Plain numbers come out of these several times as fast as out of an array.
        self.flat_bounds = bounds.reshape(-1).data
        self.flat_first = first.data
        self._subsets: dict[frozenset[str], ShardMembers] = {}

    @classmethod
    def of_table(cls, table: pa.Table, samples: int, size: int) -> ShardMembers:
        """Takes a table of `seal.MEMBER_INDEX` for a shard of so many samples and bytes.

        Raises DamagedIndex.
        """
        rows = table.num_rows
        names = table["field"].combine_chunks().dictionary_encode()
        if isinstance(names, pa.ChunkedArray):
            names = names.combine_chunks()
        offsets = table["offset"].to_numpy()
        bounds = np.empty((rows, 2), np.int64)
        bounds[:, 0], bounds[:, 1] = offsets, offsets + table["size"].to_numpy()
        keys = _one_array(table["key"])
        first = np.zeros(1, np.int64)
        if rows:
            new = pc.not_equal(keys.slice(1), keys.slice(0, rows - 1))
            starts = np.flatnonzero(new.to_numpy(zero_copy_only=False)) + 1
            first = np.concatenate([[0], starts, [rows]]).astype(np.int64)
            keys = keys.take(pa.array(first[:-1]))
        found = cls(keys, first, names.indices.to_numpy(), names.dictionary.to_pylist(), bounds)
        found._check(samples, size)
        return found

    def _check(self, samples: int, size: int) -> None:
        if len(self) != samples:
            raise DamagedIndex(f"found {len(self):,} samples; expected {samples:,}")
        begin, end = self.bounds[:, 0], self.bounds[:, 1]
        ordered = (end >= begin).all() and (begin[1:] >= end[:-1]).all()
        if len(begin) and not (ordered and begin[0] >= 0 and end[-1] <= size):
            raise DamagedIndex(f"found members outside of the {size:,} bytes, or one in another")
        kinds = max(len(self.field_names), 1)
        cells = np.repeat(np.arange(len(self)), np.diff(self.first)) * kinds + self.fields
        if len(self) * kinds <= 16 * len(cells):  # hardly ever more: a sixth of the time
            seen = np.zeros(len(self) * kinds, bool)
            seen[cells] = True
            different = int(np.count_nonzero(seen))
        else:
            different = len(np.unique(cells))
        if different < len(cells):
            raise DamagedIndex("found a field twice in one sample")

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def offsets(self) -> np.ndarray:
        """Where each member's data start in the tar, in bytes."""
        return self.bounds[:, 0]

    @property
    def sizes(self) -> np.ndarray:
        """How many bytes each member has."""
        return self.bounds[:, 1] - self.bounds[:, 0]

    @property
    def nbytes(self) -> int:
        """How much memory it takes, in bytes, about."""
        own = self.bounds.nbytes + self.first.nbytes + self.fields.nbytes
        return int(3 * own + self.keys.nbytes)

    @cached_property
    def key_text(self) -> tuple[memoryview, memoryview]:
        """The keys as UTF-8 one behind the other, and before it where each begins and ends."""
        wide = self.keys.cast(pa.large_string())
        wide = pa.concat_arrays([wide]) if wide.offset else wide
        _, offsets, data = wide.buffers()
        ends = np.frombuffer(offsets, np.int64, len(wide) + 1).data
        return ends, memoryview(data if data is not None else b"")

    def key(self, sample: int) -> str:
        """The key of a sample."""
        ends, data = self.key_text
        return str(data[ends[sample] : ends[sample + 1]], "utf-8")

    def key_list(self, start: int, stop: int) -> list[str]:
        """The keys of adjacent samples."""
        found: list[str] = self.keys.slice(start, stop - start).to_pylist()
        return found

    def find(self, key: str) -> int:
        """Which sample has this key; -1 if none has."""
        found: int = pc.index(self.keys, pa.scalar(key, self.keys.type)).as_py()
        return found

    def only(self, fields: Collection[str] | None) -> ShardMembers:
        """What it says of these fields alone: the samples are the same. All of them if None."""
        if fields is None:
            return self
        wanted = frozenset(fields)
        found = self._subsets.get(wanted)
        if found is None:
            codes = [code for code, name in enumerate(self.field_names) if name in wanted]
            taken = np.isin(self.fields, codes)
            first = np.concatenate([[0], np.cumsum(taken)])[self.first].astype(np.int64)
            bounds = np.ascontiguousarray(self.bounds[taken])
            found = ShardMembers(self.keys, first, self.fields[taken], self.field_names, bounds)
            while len(self._subsets) >= _SUBSETS:
                self._subsets.pop(next(iter(self._subsets)), None)
            self._subsets[wanted] = found
        return found

    def span(self, sample: int, fields: Collection[str] | None = None) -> tuple[int, int]:
        """Begin and end in the tar of what is wanted of a sample; both 0 if it has none of it."""
        part = self.only(fields)
        first, last = part.flat_first[sample], part.flat_first[sample + 1]
        if first == last:
            return 0, 0
        return part.flat_bounds[2 * first], part.flat_bounds[2 * last - 1]

    @cached_property
    def uniform(self) -> tuple[str, ...] | None:
        """The fields of each sample, in their order, if all have the same."""
        count = len(self)
        width = len(self.fields) // count if count else 0
        if width * count != len(self.fields) or not width:
            return None
        rows = self.fields.reshape(count, width)
        same = (self.first[1:] - self.first[:-1] == width).all() and (rows == rows[0]).all()
        return tuple(self.field_names[code] for code in rows[0]) if same else None

    def names(self, first: int, last: int) -> list[str]:
        """The fields of the members `first` up to `last`."""
        return [self.field_names[code] for code in self.fields[first:last].tolist()]

    @cached_property
    def extents(self) -> Extents:
        """Where each sample's data are."""
        filled = self.first[1:] > self.first[:-1]
        begin, end = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        begin[filled] = self.bounds[self.first[:-1][filled], 0]
        end[filled] = self.bounds[self.first[1:][filled] - 1, 1]
        wide = np.zeros(len(self.bounds) + 1, np.int64)  # [i]: a gap before the member i
        wide[1:-1] = self.bounds[1:, 0] - self.bounds[:-1, 1] > GAP
        wide[self.first] = 0  # before a sample's first member is none of its own
        gaps = np.concatenate([[0], np.cumsum(wide)])
        inner = gaps[self.first[1:]] - gaps[self.first[:-1]]
        return Extents(begin, end, ~filled | (inner > 0) | (end - begin > WHOLE))

    @cached_property
    def flat_apart(self) -> memoryview:
        """`extents.apart`, for plain numbers."""
        return self.extents.apart.data


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
