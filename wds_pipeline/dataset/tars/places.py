"""Where each sample of some tars lies, and reading them in another order.

What is held in memory is each sample's key and the places of its members, some 200 bytes; contents stay where
they are. What is no file of this machine goes to a temporary one.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.inputs import Tar
from wds_pipeline.dataset.tars.keys import UniqueKeys
from wds_pipeline.dataset.tars.read import LARGE, Spool
from wds_pipeline.dataset.tars.sample import Data, Member, Sample
from wds_pipeline.errors import DataError, SourceError

MERGE = "merge"  # beside `keys.POLICIES`: samples of one key, without a common field, are one
_OPEN = 100  # files at a time
_GAP = 64 * 1024  # bytes between members that are read along


class Places:
    """Samples by their number, from 0, in the order in which they were read."""

    def __init__(self, tars: Sequence[Tar]) -> None:
        self._tars = tars
        self._spools: dict[int, Spool] = {}
        self._fields: dict[str, int] = {}
        self.keys: list[str] = []
        self.parts: dict[int, list[int]] = {}
        """Where parts of samples are merged: the numbers of the further ones, by that of the first."""
        self._tar = array("i")
        self._first = array("q", [0])  # of a sample's members, by its number
        self._field, self._offset, self._size = array("i"), array("q"), array("q")
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def read(
        self, account: Account, *, duplicates: str = "error", keep_whole: bool = False
    ) -> Iterator[Sample]:
        """Reads all tars once, and yields each sample when it has its place.

        `duplicates` of `keys.POLICIES`, or MERGE. Raises DataError, SourceError.
        """
        samples = self._all(account, keep_whole)
        if duplicates == MERGE:
            samples = self._merging(samples, account)
        else:
            samples = UniqueKeys(duplicates, account).of(samples)
        for sample in samples:
            self._add(sample)
            yield sample
        for spool in self._spools.values():
            spool.flush()

    def _merging(self, samples: Iterator[Sample], account: Account) -> Iterator[Sample]:
        """What comes of a key again becomes a part of the first. Raises DataError for a field that it has."""
        numbers: dict[str, int] = {}
        for number, sample in enumerate(samples):
            first = numbers.setdefault(sample.key, number)
            if first != number:
                names = list(self._fields)
                parts = (first, *self.parts.get(first, ()))
                codes = [
                    code for n in parts for code in self._field[self._first[n] : self._first[n + 1]]
                ]
                has = {names[code].lower() for code in codes}
                for field, _, _ in sample.members:
                    if field.lower() in has:
                        raise DataError(
                            f"{sample.where}: {sample.key!r} has the field {field!r} again, so it is not one "
                            "sample in parts; choose --duplicates rename or keep-first"
                        )
                self.parts.setdefault(first, []).append(number)
                account.note("parts of samples joined to the first", sample.key)
            yield sample

    def _all(self, account: Account, keep_whole: bool) -> Iterator[Sample]:
        for number, tar in enumerate(self._tars):
            copy = None
            if not tar.seekable:
                copy = self._spools[number] = Spool()
            self._now = number
            yield from tar.samples(account, keep_whole=keep_whole, copy=copy)

    def _add(self, sample: Sample) -> None:
        """Notes where a sample lies that was just read."""
        self.keys.append(sample.key)
        self._tar.append(self._now)
        codes = self._fields
        for field, data, offset in sample.members:
            self._field.append(codes.setdefault(field, len(codes)))
            self._offset.append(offset)
            self._size.append(len(data))
        self._first.append(len(self._field))

    def samples(self, order: Iterable[int]) -> Iterator[Sample]:
        """The samples of these numbers. Raises SourceError when a tar was changed meanwhile."""
        names = list(self._fields)
        try:
            for number in order:
                members = self._members(number, names)
                for part in self.parts.get(number, ()):
                    members += self._members(part, names)
                yield Sample(self.keys[number], members, self._tars[self._tar[number]].where)
            for tar in self._tars:
                tar.check_unchanged()
        finally:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _members(self, number: int, names: Sequence[str]) -> list[Member]:
        first, last = self._first[number], self._first[number + 1]
        contents = self._contents(
            self._tar[number], self._offset[first:last], self._size[first:last]
        )
        codes = self._field[first:last]
        return [Member(names[code], data) for code, data in zip(codes, contents, strict=True)]

    def _contents(self, tar: int, offsets: array[int], sizes: array[int]) -> list[Data]:
        """A sample's contents: read at once if they lie together, as they nearly always do."""
        start, stop = offsets[0], offsets[-1] + sizes[-1]
        if stop - start <= min(LARGE, 2 * sum(sizes) + _GAP):
            view = memoryview(self._range(tar, start, stop - start))
            return [
                view[offset - start : offset - start + size]
                for offset, size in zip(offsets, sizes, strict=True)
            ]
        found: list[Data] = []
        held = 0
        for offset, size in zip(offsets, sizes, strict=True):
            if held + size > LARGE:
                spool = self._spools.get(tar)
                found.append(
                    spool.part(offset, size) if spool else self._tars[tar].range(offset, size)
                )
            else:
                found.append(self._range(tar, offset, size))
                held += size
        return found

    def _range(self, tar: int, offset: int, size: int) -> bytes:
        spool = self._spools.get(tar)
        if spool is not None:
            data = spool.read(offset, size)
        else:
            file = self._file(tar)
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            self._tars[tar].check_unchanged()
            raise SourceError(
                f"{self._tars[tar].where}: found {len(data):,} bytes of {size:,} read before"
            )
        return data

    def _file(self, tar: int) -> BinaryIO:
        """A tar, open; those that were not used for the longest time are closed."""
        if tar in self._files:
            self._files.move_to_end(tar)
        else:
            if len(self._files) >= _OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[tar] = self._tars[tar].open()
        return self._files[tar]
