"""Keys to samples: which sample has a key, and what is near to one that none has."""

from __future__ import annotations

import difflib
from bisect import bisect_left

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.errors import VersionError
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.fork_lock import ForkLock

_SCANS = 64  # so many look-ups cost about as much as sorting
_NEAR = 400  # keys that are compared with one that is not there


class KeyIndex:
    """Finds samples by their keys. The first look-ups go through all keys, then these are sorted."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        table = catalog.content.key_table()
        if table is None:
            table = _from_members(catalog)
        column = table["key"].cast(pa.large_string()).combine_chunks()
        empty = pa.array([], pa.large_string())
        self._keys: pa.Array = pa.concat_arrays([*getattr(column, "chunks", [column]), empty])
        self._shards = table["shard"].to_numpy()
        self._order: np.ndarray | None = None
        self._scans = 0
        self._lock = ForkLock()

    def find(self, key: str) -> int:
        """The number of the sample with this key.

        Raises VersionError when there is none, with what is known of it, or what is near.
        """
        row = self._row(key) if isinstance(key, str) else -1
        if row < 0:
            raise VersionError(self._unknown(key))
        shard = int(self._shards[row])
        sample = self._catalog.members(shard).find(key)
        if sample < 0:
            raise self._catalog.damaged(shard, f"its member index lacks the key {key!r}")
        return int(self._catalog.starts[shard]) + sample

    def _row(self, key: str) -> int:
        if self._order is None:
            with self._lock:
                self._scans += 1
                if self._scans > _SCANS and self._order is None:
                    self._order = pc.array_sort_indices(self._keys).to_numpy()
        if self._order is None:
            found: int = pc.index(self._keys, pa.scalar(key, pa.large_string())).as_py()
            return found
        # Arrow sorts by bytes, and so are they compared.
        wanted = key.encode()
        at = bisect_left(self._order, wanted, key=lambda row: self._bytes(int(row)))
        if at < len(self._order) and self._bytes(int(self._order[at])) == wanted:
            return int(self._order[at])
        return -1

    def _bytes(self, row: int) -> bytes:
        return bytes(self._keys[row].as_buffer())

    def _unknown(self, key: object) -> str:
        head = f"{self._catalog.named}: there is no sample {key!r}"
        if not isinstance(key, str):
            return f"{head}; a key is text; by number: dataset[number]"
        why = self._catalog.content.why_no_key(key)
        if why is not None:
            return f"{head}: {why}"
        folder, slash, name = key.rpartition("/")
        stem = folder + slash + name.partition(".")[0]
        if stem != key and self._row(stem) >= 0:
            return f"{head}; did you mean {stem!r}? A key has no extension"
        near = self._near(key)
        return f"{head}; the nearest keys: {', '.join(map(repr, near))}" if near else head

    def _near(self, key: str) -> list[str]:
        keys = self._keys
        last = key.rpartition("/")[2] or key
        alike = keys.filter(pc.match_substring(keys, last, ignore_case=True)).slice(0, _NEAR)
        begin = key[: max(len(key) // 2, 1)]
        neighbours = keys.filter(pc.starts_with(keys, begin)).slice(0, _NEAR)
        some = [*alike.to_pylist(), *neighbours.to_pylist(), *keys.slice(0, _NEAR).to_pylist()]
        return difflib.get_close_matches(key, dict.fromkeys(some), n=3, cutoff=0.3) or some[:1]


def _from_members(catalog: Catalog) -> pa.Table:
    parts = [catalog.members(shard).keys for shard in range(len(catalog.shards))]
    keys = pa.chunked_array([part.cast(pa.large_string()) for part in parts], pa.large_string())
    shards = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    return pa.table({"key": keys, "shard": shards})
