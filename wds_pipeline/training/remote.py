"""Samples of shards in a store: ranges by the member index, hundreds of them under way, in bounded memory."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from wds_pipeline.storage.connections import threads
from wds_pipeline.training.cache import Cache
from wds_pipeline.training.cached_shard import CachedShard
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.fetching import Fetcher
from wds_pipeline.training.local import LocalReader
from wds_pipeline.training.reading import AHEAD_BYTES
from wds_pipeline.training.remote_plan import LEAST_PIECE, Limits, Piece, Unit, plan
from wds_pipeline.training.remote_shards import RemoteShards

_PLANNERS = 4  # threads of this process that plan
_INDEXES = 16  # member indexes that are read at a time
_UNITS = 8  # planned ahead; and small groups are put together to an eighth of what may be held
_MOST_SAMPLES = 8192  # of a unit
_RENEWED = 60.0  # seconds: what is removed from the cache takes space as long as it is open
_Fields = frozenset[str] | None


class RemoteReader:
    """Reads samples by ranges of their shards. For threads; goes on in a forked process."""

    def __init__(
        self, catalog: Catalog, *, cache: Cache | None = None, verify: bool = False
    ) -> None:
        self._catalog = catalog
        self._cache = cache
        self._shards = RemoteShards(catalog, cache, verify)
        self._mirror = _Mirror(catalog)
        self._local = LocalReader(self._mirror)  # type: ignore[arg-type]
        self._process = os.getpid()
        self._renewed = time.monotonic()

    def read(
        self, indices: Sequence[int], fields: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """These samples, in the order asked. Raises as `Reader.read` says."""
        if len(indices) == 1:
            unit = self._plan_one(self._checked(indices), _frozen(fields))
            if len(unit.pieces) <= 1:
                return list(unit.samples(_Direct(self._shards)))
        return list(self.read_ahead([indices], fields))

    def read_ahead(
        self,
        groups: Iterable[Sequence[int] | np.ndarray],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """The samples of group after group, in the order asked, each as soon as its bytes are there.

        What is asked for and not given out is `ahead_bytes` at most; a group of more is read in parts,
        so give twice a group's bytes to have the next one come meanwhile. Raises as `Reader.read` says.
        """
        run = _Run(self, _frozen(fields), ahead_bytes)
        try:
            for units in run.planned(groups):
                for unit in units:
                    if isinstance(unit, Unit):
                        yield from unit.samples(run.fetcher)
                    else:
                        self._mirror.use(unit.files)
                        yield from self._local.read_ahead([unit.indices], fields)
        finally:
            run.close()

    def close(self) -> None:
        """Closes what it has open in the cache; reading opens it again."""
        self._local.close()
        if self._cache is not None:
            self._cache.let_go()

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The numbers as an array. Raises IndexError for one that there is not."""
        found = np.asarray(indices, np.int64).reshape(-1)
        if len(found):
            low, high = int(found.min()), int(found.max())
            if low < 0 or high >= len(self._catalog):
                raise self._catalog.outside(low if low < 0 else high)
        return found

    def _plan_one(self, indices: np.ndarray, fields: _Fields) -> Unit:
        self._prepare(indices)
        return plan(self._catalog, indices, fields, self._shards.limits)

    def _plan(self, indices: np.ndarray, fields: _Fields, ahead_bytes: int) -> list[Unit | _Kept]:
        """Plans samples to be read: as one unit, or as several of which each fits."""
        shards = self._prepare(indices)
        whole = self._whole(shards)
        if whole:
            return [_Kept(indices, whole)]
        limits = self._shards.limits
        most = max(min(limits.piece, ahead_bytes // 4), LEAST_PIECE)
        limits = Limits(most // limits.block * limits.block, limits.block)
        found: list[Unit | _Kept] = []
        left = deque([indices])
        while left:
            part = left.popleft()
            unit = plan(self._catalog, part, fields, limits)
            if unit.bytes <= ahead_bytes or len(part) == 1:
                found.append(unit)
            else:
                count = min(-(-unit.bytes // ahead_bytes), len(part))
                left.extendleft(reversed(np.array_split(part, count)))
        return found

    def _prepare(self, indices: np.ndarray) -> list[int]:
        """Has the member indexes that are needed, and the shards' digests, if they are to be checked."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._shards.after_fork()
        catalog = self._catalog
        numbers = np.unique(np.searchsorted(catalog.starts, indices, side="right") - 1).tolist()
        new = [each for each in numbers if not catalog.has_members(each)]
        if len(new) > 1:
            for _ in threads(_INDEXES, "indexes").map(catalog.members, new):
                pass
        for each in numbers:
            self._shards.verify(each)
        return numbers

    def _whole(self, shards: list[int]) -> dict[int, CachedShard] | None:
        """The shards in the cache, if all of all of them is there."""
        if self._cache is None:
            return None
        if time.monotonic() - self._renewed > _RENEWED:
            self._renewed = time.monotonic()
            self._local.close()
            self._cache.let_go_of_removed()
        found = {}
        for each in shards:
            whole = self._shards.whole(each)
            if whole is None:
                return None
            found[each] = whole
        return found


class _Kept(NamedTuple):
    """Samples of shards that are in the cache; which stay there as long as this holds them open."""

    indices: np.ndarray
    files: dict[int, CachedShard]


class _Run:
    """One `read_ahead`: plans some units ahead, in their order, and fetches what they need."""

    def __init__(self, reader: RemoteReader, fields: _Fields, ahead_bytes: int) -> None:
        storage = reader._catalog.storage
        self.fetcher = Fetcher(reader._shards.read, storage.start, storage.ranges, ahead_bytes)
        self._reader = reader
        self._fields = fields
        self._ahead = ahead_bytes
        self._to_plan: deque[np.ndarray] = deque()
        self._ready: SimpleQueue[list[Unit | _Kept] | BaseException] = SimpleQueue()
        self._planning = threading.Lock()
        shards = reader._catalog.shards
        self._sample_bytes = sum(each.bytes for each in shards) / max(len(reader._catalog), 1)

    def close(self) -> None:
        """Plans and reads no more."""
        self._to_plan.clear()
        self.fetcher.close()

    def planned(self, groups: Iterable[Sequence[int] | np.ndarray]) -> Iterator[list[Unit | _Kept]]:
        """The units, planned, while others are planned and fetched behind them."""
        coming = self._units(groups)
        planner = threads(_PLANNERS, "plan")
        ended: BaseException | None = None
        under_way = 0
        while True:
            while ended is None and under_way < _UNITS:
                try:
                    self._to_plan.append(next(coming))
                except BaseException as error:  # what comes before it is given out first
                    ended = error
                else:
                    under_way += 1
                    planner.submit(self._plan_next)
            if not under_way:
                break
            found = self._ready.get()
            under_way -= 1
            if isinstance(found, BaseException):
                raise found
            yield found
        if ended is not None and not isinstance(ended, StopIteration):
            raise ended

    def _units(self, groups: Iterable[Sequence[int] | np.ndarray]) -> Iterator[np.ndarray]:
        """Groups, of which small ones are put together; but the first, which is waited for."""
        coming = map(self._reader._checked, groups)
        held: list[np.ndarray] = []
        count = 0
        first = True
        while True:
            try:
                each = next(coming)
            except Exception as error:  # the end, or what comes behind the samples that are held
                if count:
                    yield np.concatenate(held)
                if isinstance(error, StopIteration):
                    return
                raise
            held.append(each)
            count += len(each)
            enough = count * self._sample_bytes * _UNITS > self._ahead or count > _MOST_SAMPLES
            if count and (first or enough):
                yield np.concatenate(held)
                held, count, first = [], 0, False

    def _plan_next(self) -> None:
        with self._planning:  # one after the other, so that they are fetched in their order
            try:
                indices = self._to_plan.popleft()
            except IndexError:  # closed
                return
            try:
                units = self._reader._plan(indices, self._fields, self._ahead)
            except BaseException as error:
                self._ready.put(error)
                return
            pieces = [unit.pieces for unit in units if isinstance(unit, Unit)]
            if pieces:
                asked = sum(unit.bytes for unit in units if isinstance(unit, Unit))
                self._sample_bytes = max(asked / len(indices), 1.0)
            self.fetcher.add(chain.from_iterable(pieces))
            self._ready.put(units)


class _Direct:
    """Reads a piece when it is waited for."""

    def __init__(self, shards: RemoteShards) -> None:
        self._shards = shards

    def wait(self, piece: Piece) -> memoryview:
        return self._shards.read(piece)

    def release(self, piece: Piece) -> None:
        """Nothing is held."""


class _Mirror:
    """A catalog whose shards are files in the cache, for the reader of local shards."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._files: WeakValueDictionary[str, CachedShard] = WeakValueDictionary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)

    def __len__(self) -> int:
        return len(self._catalog)

    @property
    def storage(self) -> _Mirror:
        """Where the files are."""
        return self

    def locate(self, path: str) -> str:
        """The name of the open file."""
        return self._files[path].path

    def use(self, shards: dict[int, CachedShard]) -> None:
        """These are there."""
        for number, shard in shards.items():
            self._files[self._catalog.shards[number].path] = shard


def _frozen(fields: Collection[str] | None) -> _Fields:
    return None if fields is None else frozenset(fields)
