"""Samples of shards on a local or mounted disk."""

from __future__ import annotations

import resource
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from wds_pipeline.training.bounded import Bounded, Shares
from wds_pipeline.training.catalog import MEMORY, Catalog
from wds_pipeline.training.open_shard import OpenShard
from wds_pipeline.training.planning import chunks, runs
from wds_pipeline.training.reading import AHEAD_BYTES
from wds_pipeline.training.scattered import scattered

_FEW = 4  # so few samples are not worth a plan
_PLANNED = 32  # samples of a shard, in no order, that are worth one
# glibc gives what is freed back to the system at once, and a batch of large samples then costs a page
# fault every 4 KB. It stops that, up to twice the size, when a block that it took from the system alone
# is freed: here one that is never touched. Batches of 64 samples of 100 KB take half the time.
_BLOCK = 16 * 1024 * 1024
_Fields = frozenset[str] | None
# A mixture of many datasets may not open more files than one.
_shares = Shares()


class LocalReader:
    """Reads samples with `pread`. For threads: they share the files, and the reads let others run."""

    def __init__(self, catalog: Catalog, *, verify: bool = False) -> None:
        self._catalog = catalog
        # There may be more shards than open files, and each is to be read for its digest once.
        self._verified: set[tuple[int, ...]] | None = set() if verify else None
        self._starts: list[int] = catalog.starts.tolist()
        self._count = len(catalog)
        block = bytes(_BLOCK)
        del block
        self._most = most = min(max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4, 16), 1024)
        self._shards: Bounded[tuple[int, _Fields], OpenShard] = Bounded(
            MEMORY, lambda each: max(each.members.nbytes, MEMORY // most)
        )
        _shares.join(self._shards, MEMORY)

    def read(
        self, indices: Sequence[int], fields: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """These samples, in the order asked. Raises as `Reader.read` says."""
        if len(indices) == 1:
            return [self._one(int(indices[0]), _frozen(fields))]
        return list(self.read_ahead([indices], fields))

    def read_ahead(
        self,
        groups: Iterable[Sequence[int] | np.ndarray],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """The samples of group after group, in the order asked. What is read ahead, the system does."""
        wanted = _frozen(fields)
        for chunk in chunks(groups):
            if chunk.min() < 0 or chunk.max() >= self._count:
                raise self._catalog.outside(int(chunk.min() if chunk.min() < 0 else chunk.max()))
            which = np.searchsorted(self._starts, chunk, side="right") - 1
            same = runs(which)
            if len(same) * _FEW > len(chunk):
                yield from self._in_no_order(chunk, which, wanted)
                continue
            for first, last in same:
                shard = int(which[first])
                samples = chunk[first:last] - self._starts[shard]
                yield from self._open(shard, wanted).samples(samples)

    def _in_no_order(
        self, chunk: np.ndarray, which: np.ndarray, fields: _Fields
    ) -> Iterator[dict[str, Any]]:
        numbers = np.unique(which).tolist()
        if len(numbers) * _PLANNED > len(chunk) or len(numbers) > self._most // 4:  # all stay open
            for index in chunk.tolist():
                yield self._one(index, fields)
            return
        shards = {number: self._open(number, fields) for number in numbers}
        yield from scattered(shards, which, chunk - self._catalog.starts[which])

    def close(self) -> None:
        """Closes the shards; they are opened again when they are asked for."""
        self._shards.clear()

    def _one(self, index: int, fields: _Fields) -> dict[str, Any]:
        if not 0 <= index < self._count:
            raise self._catalog.outside(index)
        shard = bisect_right(self._starts, index) - 1
        found = self._shards.get((shard, fields)) or self._open(shard, fields)
        return found.sample(index - self._starts[shard])

    def _open(self, shard: int, fields: _Fields) -> OpenShard:
        found = self._shards.get((shard, fields))
        if found is None:
            opened = OpenShard(self._catalog, shard, fields, self._verified)
            found = self._shards.add((shard, fields), opened)
        return found


def _frozen(fields: Collection[str] | None) -> _Fields:
    return None if fields is None else frozenset(fields)
