"""Samples of a version joined with overlays: each is read by its own reader, and put together by its key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain, tee
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wds_pipeline.training.bounded import Bounded
from wds_pipeline.training.catalog import MEMORY
from wds_pipeline.training.members import ShardMembers
from wds_pipeline.training.overlay import Joined, JoinedCatalog, Part
from wds_pipeline.training.reading import AHEAD_BYTES, Reader, open_reader

if TYPE_CHECKING:
    from wds_pipeline.training.reading import CacheSpec

_LEAST = 0.1  # of `ahead_bytes` is each reader's, however small its samples are
_Numbers = tuple[np.ndarray, ...]


class _Wanted(NamedTuple):
    """An overlay that is read, with these fields."""

    part: Part
    reader: Reader
    fields: frozenset[str] | None


class JoinedReader:
    """Reads samples of a base and of overlays. For threads; goes on in a forked process."""

    def __init__(
        self, catalog: JoinedCatalog, *, cache: CacheSpec | None = None, verify: bool = False
    ) -> None:
        self._joined: Joined = catalog.content
        self._catalog = catalog
        self._asked: tuple[frozenset[str] | None, list[_Wanted]] | None = None
        base = _BaseAlone(self._joined)
        self._base = open_reader(base, cache=cache, verify=verify)  # type: ignore[arg-type]
        self._overlays = [
            (part, open_reader(part.catalog, cache=cache, verify=verify))
            for part in self._joined.parts
        ]

    def read(
        self, indices: Sequence[int], fields: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """These samples, in the order asked. Raises as `Reader.read` says."""
        if len(indices) == 1:
            return [self._one(int(indices[0]), fields)]
        found = self._base.read(indices, fields)
        where = np.asarray(indices, np.int64)
        for part, reader, wanted in self._wanted(fields):
            numbers = part.numbers(where)
            rows = np.flatnonzero(numbers >= 0).tolist()
            others = reader.read(numbers[rows].tolist(), wanted) if rows else []
            for row, other in zip(rows, others, strict=True):
                found[row] = _put_on(found[row], other)
        return found

    def _one(self, index: int, fields: Collection[str] | None) -> dict[str, Any]:
        sample = self._base.read((index,), fields)[0]
        for part, reader, wanted in self._wanted(fields):
            number = part.number(index)
            if number >= 0:
                sample = _put_on(sample, reader.read((number,), wanted)[0])
        return sample

    def read_ahead(
        self,
        groups: Iterable[Sequence[int] | np.ndarray],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """The samples of group after group, in the order asked; `ahead_bytes` are shared out by size."""
        wanted = self._wanted(fields)
        if not wanted:
            yield from self._base.read_ahead(groups, fields, ahead_bytes=ahead_bytes)
            return
        shares = self._shares(wanted, ahead_bytes)
        copies = tee(self._numbered(groups, wanted), 1 + 2 * len(wanted))
        base = self._base.read_ahead(
            (group for group, _ in copies[0]), fields, ahead_bytes=shares[0]
        )
        with ExitStack() as stack:
            stack.enter_context(closing(base))  # type: ignore[type-var]
            there, others = [], []
            for at, each in enumerate(wanted):
                there.append(_flags(copies[1 + 2 * at], at))
                some = _those_there(copies[2 + 2 * at], at)
                coming = each.reader.read_ahead(some, each.fields, ahead_bytes=shares[1 + at])
                stack.enter_context(closing(coming))  # type: ignore[type-var]
                others.append(coming)
            if len(wanted) == 1:
                yield from _joined(base, there[0], others[0])
                return
            for sample in base:
                for has, other in zip(there, others, strict=True):
                    if next(has):
                        sample = _put_on(sample, next(other))
                yield sample

    def close(self) -> None:
        """Lets go of open files; they are opened again when they are asked for."""
        self._base.close()
        for _, reader in self._overlays:
            reader.close()

    def _wanted(self, fields: Collection[str] | None) -> list[_Wanted]:
        """The overlays that have something of these fields."""
        asked = None if fields is None else frozenset(fields)
        if self._asked is None or self._asked[0] != asked:
            self._asked = asked, self._find(asked)
        return self._asked[1]

    def _find(self, fields: frozenset[str] | None) -> list[_Wanted]:
        found = []
        for part, reader in self._overlays:
            some = part.fields
            if fields is not None:
                some = fields if some is None else some & fields
            if some is None or some:
                found.append(_Wanted(part, reader, some))
        return found

    def _numbered(
        self, groups: Iterable[Sequence[int] | np.ndarray], wanted: Sequence[_Wanted]
    ) -> Iterator[tuple[np.ndarray, _Numbers]]:
        """Each group as an array, and the numbers in the overlays of its samples."""
        for group in groups:
            indices = np.asarray(group, np.int64).reshape(-1)
            if len(indices) and not 0 <= indices.min() <= indices.max() < len(self._catalog):
                low = int(indices.min())
                raise self._catalog.outside(low if low < 0 else int(indices.max()))
            yield indices, tuple(each.part.numbers(indices) for each in wanted)

    def _shares(self, wanted: Sequence[_Wanted], ahead_bytes: int) -> list[int]:
        sizes = [self._joined.base.bytes, *(each.part.catalog.bytes for each in wanted)]
        parts = [max(size / max(sum(sizes), 1), _LEAST) for size in sizes]
        return [max(int(ahead_bytes * part / sum(parts)), 1) for part in parts]


def _joined(
    base: Iterator[dict[str, Any]], there: Iterator[bool], others: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The samples of a base with those of one overlay."""
    for sample in base:
        if next(there):
            # What the base has of the overlay's fields was not read: only what names the sample is in both.
            other = next(others)
            other.update(sample)
            yield other
        else:
            yield sample


def _put_on(sample: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A sample with another one's fields over its own."""
    return {
        **sample, **other,
        "__key__": sample["__key__"], "__url__": sample["__url__"], "__index__": sample["__index__"],
    }  # fmt: skip


def _flags(numbered: Iterator[tuple[np.ndarray, _Numbers]], at: int) -> Iterator[bool]:
    return chain.from_iterable((numbers[at] >= 0).tolist() for _, numbers in numbered)


def _those_there(numbered: Iterator[tuple[np.ndarray, _Numbers]], at: int) -> Iterator[np.ndarray]:
    for _, numbers in numbered:
        some = numbers[at]
        some = some[some >= 0]
        if len(some):
            yield some


class _BaseAlone:
    """The catalog of the base, whose members are those that no overlay takes the place of."""

    def __init__(self, joined: Joined) -> None:
        self._joined, self._base = joined, joined.base
        self._members: Bounded[int, ShardMembers] = Bounded(MEMORY, lambda each: each.nbytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def __len__(self) -> int:
        return len(self._base)

    def members(self, shard: int) -> ShardMembers:
        """What is to be read of a shard."""
        found = self._members.get(shard)
        if found is None:
            found = self._members.add(shard, self._joined.base_members(shard))
        return found

    def has_members(self, shard: int) -> bool:
        """Whether that is known, and no member index need be read."""
        return self._members.get(shard) is not None
