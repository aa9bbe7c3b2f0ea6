"""Plain names by column: `folder/stem.extension` without anything that a rule has a say in.

Almost all names of a large source are so. Splitting them as bytes of one buffer costs a tenth of
splitting them one by one, and leaves no Python object a file. What is plain here is less than what is
sound: all other names go through `naming.Namer`, which decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

_SLASH, _DOT, _UNDERSCORE, _PERCENT = b"/._%"
_LONGEST = 255  # bytes of a key and its field; longer ones are looked at part by part


@dataclass(frozen=True)
class Plain:
    """What a batch of paths is by its bytes. `row` are the plain ones, in order; `extension` are
    codes of `extensions`, of each of these."""

    row: np.ndarray
    extension: np.ndarray
    extensions: list[str]
    _data: np.ndarray
    _start: np.ndarray
    _dot: np.ndarray

    def short(self, field_lengths: np.ndarray) -> np.ndarray:
        """Which of the rows have room for a field's name of so many bytes (by extension) too."""
        found: np.ndarray = self._dot - self._start + 1 + field_lengths[self.extension] <= _LONGEST
        return found

    def keys(self, chosen: np.ndarray, rows: int) -> pa.Array:
        """The keys of the chosen of the plain rows, in a column of so many rows; null elsewhere."""
        start, dot = self._start[chosen], self._dot[chosen]
        lengths = np.zeros(rows, np.int64)
        lengths[self.row[chosen]] = dot - start
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        there = np.zeros(rows, bool)
        there[self.row[chosen]] = True
        buffers = [
            pa.py_buffer(np.packbits(there, bitorder="little").tobytes()),
            pa.py_buffer(offsets.tobytes()),
            pa.py_buffer(_parts(self._data, start, dot).tobytes()),
        ]
        return pa.Array.from_buffers(pa.large_string(), rows, buffers)


def plain(paths: pa.LargeStringArray, *, dotted: bool, percent: bool) -> Plain:
    """The plain paths of a batch.

    `dotted` and `percent`: whether an extension with dots, or a name with `%`, is plain.
    """
    data, offsets = _bytes(paths)
    start, end = offsets[:-1], offsets[1:]
    slash, dots = np.flatnonzero(data == _SLASH), np.flatnonzero(data == _DOT)
    folder = _last_before(slash, end, start - 1) + 1
    dot = np.append(dots, len(data))[np.searchsorted(dots, folder)]
    good = (dot > folder) & (dot < end - 1)
    if not dotted:
        good &= _last_before(dots, end, start) == dot
    suspect = _suspect(data, start)
    if not percent:
        suspect = np.append(suspect, np.flatnonzero(data == _PERCENT))
    good[np.searchsorted(offsets, suspect, side="right") - 1] = False
    row = np.flatnonzero(good)
    start, dot, end = start[row], dot[row], end[row]
    lengths = np.concatenate(([0], np.cumsum(end - dot - 1)))
    buffers = [None, pa.py_buffer(lengths), pa.py_buffer(_parts(data, dot + 1, end).tobytes())]
    column = pa.Array.from_buffers(pa.large_string(), len(row), buffers).dictionary_encode()
    return Plain(row, column.indices.to_numpy(), column.dictionary.to_pylist(), data, start, dot)


def _bytes(paths: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """All bytes of a column, and where each row's begin and the last one's end."""
    if not len(paths):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offset_buffer, data_buffer = paths.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, len(paths) + 1, 8 * paths.offset)
    if data_buffer is None or offsets[-1] == offsets[0]:
        return np.empty(0, np.uint8), np.zeros(len(paths) + 1, np.int64)
    size = int(offsets[-1] - offsets[0])
    return np.frombuffer(data_buffer, np.uint8, size, int(offsets[0])), offsets - offsets[0]


def _last_before(positions: np.ndarray, end: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The last of the positions before each end, or the least where that is smaller."""
    found = np.insert(positions, 0, -1)[np.searchsorted(positions, end)]
    return np.maximum(found, least)


def _suspect(data: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where bytes are that a tar or a reader may take amiss; see `naming._SUSPECT`."""
    first = np.zeros(len(data) + 1, bool)
    first[start] = True
    first = first[:-1]  # an empty last path begins behind the end
    slash, dot = data == _SLASH, data == _DOT
    begins = first.copy()
    begins[1:] |= slash[:-1] | dot[:-1]  # `first`, or behind a slash or a dot
    odd = (data < 0x20) | (data == 0x7F) | (first & (slash | dot))
    odd[1:] |= slash[:-1] & (slash[1:] | dot[1:])
    odd[:-1] |= begins[:-1] & (data[:-1] == _UNDERSCORE) & (data[1:] == _UNDERSCORE)
    return np.flatnonzero(odd)


def _parts(data: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """`data[start[0]:stop[0]]`, `data[start[1]:stop[1]]`, …, one behind the other.

    None of them is empty, and something lies between any two.
    """
    change = np.zeros(len(data) + 1, np.int8)
    change[start] = 1
    change[stop] = -1
    return data[np.cumsum(change[:-1], dtype=np.int8).view(bool)]
