"""Cells of large tables that would not fit into memory, put away at the destination until they are packed."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset.sources.kept import OK, Batches, Fetched, Items, Kept
from wds_pipeline.dataset.sources.tidy_kept import tidy_kept
from wds_pipeline.storage import CONTENT, Storage


class PutAway:
    """Keeps cells by their content: what was put away by an earlier scan is not written again."""

    def __init__(self, storage: Storage, writes: bool) -> None:
        """`writes` is False where nothing may be written: then the cells have no place, only a content."""
        self._kept = Kept(storage, "cells")
        self._writes = writes
        self._batches = Batches(self._kept)
        self._known: Items | None = None
        self._new: set[str] = set()

    @property
    def used(self) -> bool:
        """Whether there was anything to put away."""
        return self._known is not None

    def __call__(self, cells: pa.Array, fingerprints: pa.Array) -> None:
        """Takes cells (large_binary). Raises DestinationError."""
        if self._known is None:
            self._known = self._kept.load()
        if not self._writes:
            return
        ids = ids_of(fingerprints)
        for row in np.flatnonzero(self._known.find(ids) < 0).tolist():
            name = ids[row].as_py()
            if name not in self._new:
                self._new.add(name)
                data = cells[row].as_buffer()
                self._batches.add(
                    Fetched(name, "", OK, io.BytesIO(data), data.size, CONTENT + name)
                )

    def items(self, used: pa.Array | None, seconds: float) -> Items:
        """All that is there, when the last is written, after `tidy_kept`. Raises DestinationError."""
        self._batches.close()
        items = self._kept.load()
        return tidy_kept(self._kept, items, used, seconds) if self._writes else items


def ids_of(fingerprints: pa.Array) -> pa.Array:
    """What cells are called, by their fingerprints."""
    return pc.utf8_slice_codeunits(fingerprints, len(CONTENT)).cast(pa.string())
