"""Blocks of rows: arrays gathered to a number of rows, and the files that hold them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wds_pipeline.tokens.layouts import IDX, WRITTEN
from wds_pipeline.tokens.rows import Arrays

KEYS = "keys.json"
ABOUT = "tokens.json"
ARRAY = ".npy"


class Blocks:
    """Gathers rows, and gives them out by blocks of the same number; the last one has what is left."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._keys: list[str] = []
        self._arrays: list[Arrays] = []
        self._given = 0

    def add(self, keys: list[str], arrays: Arrays) -> Iterator[dict[str, Any]]:
        """Takes rows; yields the blocks that are full: keys and arrays, by the field's name."""
        if keys:
            self._keys += keys
            self._arrays.append(arrays)
        while len(self._keys) >= self._rows:
            yield self._take(self._rows)

    def rest(self) -> Iterator[dict[str, Any]]:
        """Yields what is left."""
        if self._keys:
            yield self._take(len(self._keys))

    def _take(self, count: int) -> dict[str, Any]:
        keys, self._keys = self._keys[:count], self._keys[count:]
        names = self._arrays[0]
        joined = {name: np.concatenate([each[name] for each in self._arrays]) for name in names}
        self._arrays = (
            [{name: values[count:] for name, values in joined.items()}] if self._keys else []
        )
        block: dict[str, Any] = {
            f"{name}{ARRAY}": npy_bytes(values[:count]) for name, values in joined.items()
        }
        first, self._given = self._given, self._given + count
        idx = np.arange(first, first + count, dtype="<i4").reshape(-1, 1)
        block[IDX + ARRAY] = npy_bytes(idx)
        block[WRITTEN + ARRAY] = npy_bytes(np.ones((count, 1), np.bool_))
        block[KEYS] = json.dumps(keys, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return block


def npy_bytes(values: NDArray[Any]) -> bytes:
    """An array as the bytes of a `.npy` file, the same for the same values."""
    sink = io.BytesIO()
    np.save(sink, np.ascontiguousarray(values), allow_pickle=False)
    return sink.getvalue()
