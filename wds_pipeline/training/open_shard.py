"""One open shard on a local or mounted disk: `pread` by its member index, no tar parsing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from wds_pipeline.training import shard_checks
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.members import GAP, WHOLE, ShardMembers
from wds_pipeline.training.planning import Span, spans

_State = tuple[int, ...]  # of a file: another one, or one that was written to, has another
_LARGEST_READ = 1 << 30  # Linux gives at most two of it at once


class OpenShard:
    """A shard and what is wanted of it: all fields, or some. For threads.

    The file is closed when nobody holds the shard any more, so that a thread that reads keeps it open.
    """

    def __init__(
        self,
        catalog: Catalog,
        shard: int,
        fields: frozenset[str] | None,
        verified: set[_State] | None,
    ) -> None:
        """Looks whether the file is the one that the version names; by its digest too, unless that was
        done (`verified`, which is added to) or is not wanted (None).

        Raises VersionError when the version was removed, VerificationError when it is another.
        """
        self.fd = -1
        self._catalog, self._shard = catalog, shard
        self.members: ShardMembers = catalog.members(shard).only(fields)
        self.url, self.start = catalog.shards[shard].url, int(catalog.starts[shard])
        members = self.members
        self.names, self._first, self._bounds = (
            members.uniform,
            members.flat_first,
            members.flat_bounds,
        )
        self._apart, (self._key_ends, self._key_text) = members.flat_apart, members.key_text
        self._width = 2 * len(self.names or ())
        self._open(verified)

    def _open(self, verified: set[_State] | None) -> None:
        info = self._catalog.shards[self._shard]
        try:
            where = self._catalog.storage.locate(info.path)
            self.fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            stat = os.fstat(self.fd)
            found, state = (
                stat.st_size,
                (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns),
            )
            if found != info.bytes:
                what: str | None = (
                    f"found {found:,} bytes; expected {info.bytes:,}: it was cut short or replaced"
                )
            else:
                with open(self.fd, "rb", closefd=False) as stream:
                    what = shard_checks.looks_wrong(stream, self._catalog.members(self._shard))
                    if what is None and verified is not None and state not in verified:
                        what = shard_checks.other_digest(stream, info.digest)
                        if what is None:
                            verified.add(state)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._catalog.missing(self._shard, error)
        except OSError as error:
            raise self._catalog.damaged(self._shard, f"cannot be read: {error.strerror}") from error
        if what is not None:
            raise self._catalog.damaged(self._shard, what)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def sample(self, sample: int) -> dict[str, Any]:
        """A sample by its number in the shard."""
        ends = self._key_ends
        found: dict[str, Any] = {
            "__key__": str(self._key_text[ends[sample] : ends[sample + 1]], "utf-8"),
            "__url__": self.url,
            "__index__": self.start + sample,
        }
        names: Sequence[str] | None = self.names
        if names is not None:
            row = self._bounds[self._width * sample : self._width * (sample + 1)].tolist()
        else:
            first, last = self._first[sample], self._first[sample + 1]
            names = self.members.names(first, last)
            row = self._bounds[2 * first : 2 * last].tolist()
        if self._apart[sample]:
            self._read_apart(names, row, found)
            return found
        begin = row[0]
        size = row[-1] - begin
        data = os.pread(self.fd, size, begin)
        if len(data) != size:
            data = self.read_on(data, begin, size)
        at = iter(row)
        for name in names:
            found[name] = data[next(at) - begin : next(at) - begin]
        return found

    def _read_apart(self, names: Sequence[str], row: list[int], found: dict[str, Any]) -> None:
        """Reads large fields alone, so that their bytes need no second copy; small neighbours at once."""
        at, count = 0, len(names)
        while at < count:
            begin, end, last = row[2 * at], row[2 * at + 1], at + 1
            while (
                last < count and row[2 * last + 1] - begin <= WHOLE and row[2 * last] - end <= GAP
            ):
                end = row[2 * last + 1]
                last += 1
            data = self._pread(begin, end - begin)
            for each in range(at, last):  # a slice of all of it is no copy
                found[names[each]] = data[row[2 * each] - begin : row[2 * each + 1] - begin]
            at = last

    def samples(self, samples: np.ndarray) -> Iterator[dict[str, Any]]:
        """Samples by their numbers in the shard, in this order; neighbours are read at once."""
        for span in spans(self.members, samples):
            if span.last - span.first == 1:
                yield self.sample(int(samples[span.first]))
            else:
                yield from self._cut(samples[span.first : span.last], span)

    def _cut(self, samples: np.ndarray, span: Span) -> Iterator[dict[str, Any]]:
        """Reads ascending samples at once, and cuts them apart."""
        data = self._pread(span.begin, span.end - span.begin)
        members, first, last = self.members, int(samples[0]), int(samples[-1]) + 1
        bounds = members.bounds[members.flat_first[first] : members.flat_first[last]] - span.begin
        keys, url, start = members.key_list(first, last), self.url, self.start
        if self.names is not None:
            rows = bounds.reshape(last - first, self._width).tolist()
        else:
            flat = bounds.reshape(-1).tolist()
            firsts = (2 * (members.first[first : last + 1] - members.first[first])).tolist()
            rows = [flat[a:b] for a, b in pairwise(firsts)]
        for sample in samples.tolist():
            found: dict[str, Any] = {
                "__key__": keys[sample - first],
                "__url__": url,
                "__index__": start + sample,
            }
            at = iter(rows[sample - first])
            for name in self.names or members.names(self._first[sample], self._first[sample + 1]):
                found[name] = data[next(at) : next(at)]
            yield found

    def _pread(self, begin: int, size: int) -> bytes:
        data = os.pread(self.fd, size, begin)
        return data if len(data) == size else self.read_on(data, begin, size)

    def read_on(self, data: bytes, begin: int, size: int) -> bytes:
        """Reads what came in parts. Raises VerificationError when the file is shorter than it was."""
        parts, got = [data], len(data)
        while got < size:
            part = os.pread(self.fd, min(size - got, _LARGEST_READ), begin + got)
            if not part:
                found = os.fstat(self.fd).st_size
                raise self._catalog.damaged(
                    self._shard,
                    f"it was cut short while it was read: found {found:,} bytes; expected "
                    f"{self._catalog.shards[self._shard].bytes:,}",
                )
            parts.append(part)
            got += len(part)
        return b"".join(parts)
