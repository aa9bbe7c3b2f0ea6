"""Samples of shards in a store, one read after the other: right, not fast."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from wds_pipeline.training import shard_checks
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.fork_lock import ForkLock
from wds_pipeline.training.members import GAP
from wds_pipeline.training.reading import AHEAD_BYTES

_OPEN = 16


class PlainRemoteReader:
    """Reads samples through the storage's seekable files, a few of which stay open."""

    def __init__(self, catalog: Catalog, *, verify: bool = False) -> None:
        self._catalog = catalog
        self._verify = verify
        self._start_over()

    def _start_over(self) -> None:
        self._process = os.getpid()
        self._lock = ForkLock()
        self._files: dict[int, BinaryIO] = {}

    def read(
        self, indices: Sequence[int], fields: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """These samples, in the order asked. Raises as `Reader.read` says."""
        return list(self.stream(indices, fields))

    def stream(
        self,
        indices: Iterable[int],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """These samples, one after the other."""
        starts = self._catalog.starts
        for index in map(int, indices):
            if not 0 <= index < len(self._catalog):
                raise self._catalog.outside(index)
            shard = int(starts.searchsorted(index, side="right")) - 1
            yield self._sample(shard, index - int(starts[shard]), fields)

    def close(self) -> None:
        """Closes the shards; they are opened again when they are asked for."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def _sample(self, shard: int, sample: int, fields: Collection[str] | None) -> dict[str, Any]:
        members = self._catalog.members(shard).only(fields)
        first, last = members.flat_first[sample], members.flat_first[sample + 1]
        names, bounds = members.names(first, last), members.bounds[first:last].tolist()
        found: dict[str, Any] = {
            "__key__": members.key(sample),
            "__url__": self._catalog.shards[shard].url,
            "__index__": int(self._catalog.starts[shard]) + sample,
        }
        at = 0
        while at < len(bounds):
            until = at + 1
            while until < len(bounds) and bounds[until][0] - bounds[until - 1][1] <= GAP:
                until += 1
            begin = bounds[at][0]
            data = self._range(shard, begin, bounds[until - 1][1] - begin)
            for name, (start, end) in zip(names[at:until], bounds[at:until], strict=True):
                found[name] = data[start - begin : end - begin]
            at = until
        return found

    def _range(self, shard: int, begin: int, size: int) -> bytes:
        if self._process != os.getpid():  # connections do not outlive a fork
            self._start_over()
        with self._lock:
            try:
                file = self._files.get(shard) or self._open(shard)
                file.seek(begin)
                data = file.read(size)
            except FileNotFoundError as error:
                self._catalog.missing(shard, error)
            except OSError as error:
                raise self._catalog.damaged(shard, f"cannot be read: {error}") from error
        if len(data) != size:
            raise self._catalog.damaged(shard, "it was cut short while it was read")
        return data

    def _open(self, shard: int) -> BinaryIO:
        info = self._catalog.shards[shard]
        file = self._catalog.storage.open(info.path)
        found = file.seek(0, os.SEEK_END)
        what: str | None = None
        if found != info.bytes:
            what = f"found {found:,} bytes; expected {info.bytes:,}: it was cut short or replaced"
        elif self._verify:
            what = shard_checks.other_digest(file, info.digest)
        if what is not None:
            file.close()
            raise self._catalog.damaged(shard, what)
        if len(self._files) >= _OPEN:
            with suppress(OSError):
                self._files.pop(next(iter(self._files))).close()
        self._files[shard] = file
        return file
