"""The shards of a catalog in a store, and in the cache if there is one: their bytes, and whether they are
what the version says."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import NoReturn

from wds_pipeline.dataset.tar_read import hasher
from wds_pipeline.errors import DestinationError, SourceChanged, SourceError
from wds_pipeline.storage import Stored
from wds_pipeline.storage.base import REPLACED
from wds_pipeline.training import shard_checks
from wds_pipeline.training.cache import Cache
from wds_pipeline.training.cached_shard import BLOCK, CachedShard
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.fork_lock import ForkLock
from wds_pipeline.training.remote_plan import HEADER, PIECE, Limits, Piece

_VERIFYING = 8  # pieces of a shard under way while its digest is computed


class RemoteShards:
    """Reads pieces of shards. For threads.

    The first answer for a shard says which state of the object it is of, by its etag where there is one;
    from then on it must be that. What goes wrong is raised as `Reader.read` says.
    """

    def __init__(self, catalog: Catalog, cache: Cache | None, verify: bool) -> None:
        self._catalog = catalog
        self._cache = cache
        self._verify = verify
        self._states: dict[int, Stored] = {}
        self._looked_at: set[int] = set()
        self._verified: set[int] = set()
        self._verifying: dict[int, threading.Lock] = {}
        self._lock = ForkLock()

    @property
    def limits(self) -> Limits:
        """How ranges are to be cut."""
        return Limits() if self._cache is None else Limits(block=BLOCK)

    def read(self, piece: Piece) -> memoryview:
        """The bytes of a piece."""
        return self._read(piece.shard, piece.begin, piece.end, piece.member)

    def whole(self, shard: int) -> CachedShard | None:
        """The shard in the cache, if all of it is there, has its digest, and was read here before."""
        cached = self._cached(shard)
        if cached is None or not cached.checked or not cached.is_known_whole():
            return None
        cached.touch()
        return cached

    def verify(self, shard: int) -> None:
        """Holds a shard against its digest, once, if that is asked for."""
        if not self._verify or shard in self._verified:
            return
        with self._lock:
            lock = self._verifying.setdefault(shard, threading.Lock())
        with lock:
            if shard in self._verified:
                return
            cached = self._cached(shard)
            if cached is None or not cached.is_known_whole():
                self._check_all(shard)
            self._verified.add(shard)

    def after_fork(self) -> None:
        """Of what the parent's threads held, nothing is held here."""
        self._verifying = {}

    def _cached(self, shard: int) -> CachedShard | None:
        if self._cache is None:
            return None
        info = self._catalog.shards[shard]
        return self._cache.shard(info.digest, info.bytes)

    def _check_all(self, shard: int) -> None:
        """Reads all of a shard, through the cache if there is one."""
        info = self._catalog.shards[shard]
        state = hasher(info.digest)
        if state is None:
            raise self._catalog.damaged(
                shard,
                f"its digest {info.digest!r} is of a kind that this release does not know",
            )
        start = self._catalog.storage.start
        coming: deque[Future[memoryview]] = deque()
        begins = iter(range(0, info.bytes, PIECE))
        while True:
            while len(coming) < _VERIFYING and (at := next(begins, None)) is not None:
                end = min(at + PIECE, info.bytes)
                coming.append(start(lambda at=at, end=end: self._read(shard, at, end, None)))  # type: ignore[misc]
            if not coming:
                break
            state.update(coming.popleft().result())
        found = f"{info.digest.partition(':')[0]}:{state.hexdigest()}"
        if found != info.digest:
            self._other_digest(shard, found)

    def _other_digest(self, shard: int, found: str) -> NoReturn:
        cached = self._cached(shard)
        what = f"found the digest {found}; expected {self._catalog.shards[shard].digest}"
        if self._cache is not None and cached is not None:
            self._cache.drop(cached)
            what += "; what the cache had of it, maybe from before a repair, was removed: try again first"
        raise self._catalog.damaged(shard, what)

    def _read(self, shard: int, begin: int, end: int, member: tuple[int, int] | None) -> memoryview:
        cached = self._cached(shard)
        if cached is None or self._cache is None:
            return self._looked(shard, self._ask(shard, begin, end - begin), begin, member)
        cached.touch()
        try:
            data, first, last = cached.read(begin, end)
        except OSError:  # a bad disk is no reason not to train
            return self._looked(shard, self._ask(shard, begin, end - begin), begin, member)
        if first < last:
            asked = self._looked(shard, self._ask(shard, first, last - first), first, member)
            cached.note_whole(False)  # a block of it was damaged
            self._cache.keep(cached, first, asked)
            if cached.is_full():
                self._complete(shard, cached)
            if (first, last) == (begin, end):
                return asked
            data[first - begin : last - begin] = asked
        return data

    def _complete(self, shard: int, cached: CachedShard) -> None:
        """Holds a shard whose last block has come against its digest."""
        info = self._catalog.shards[shard]
        found = cached.digest(info.digest)
        if found is None:
            return
        if found != info.digest:
            self._other_digest(shard, found)
        cached.note_whole(True)

    def _looked(
        self, shard: int, data: memoryview, begin: int, member: tuple[int, int] | None
    ) -> memoryview:
        """Looks once whether a shard has a header where there should be one."""
        if member is not None and shard not in self._looked_at:
            offset, size = member
            at = offset - HEADER - begin
            if at >= 0 and at + HEADER <= len(data):
                what = shard_checks.no_header(bytes(data[at : at + HEADER]), offset, size)
                if what is not None:
                    raise self._catalog.damaged(shard, what)
                self._looked_at.add(shard)
        return data

    def _ask(self, shard: int, begin: int, size: int) -> memoryview:
        """Asks the store, which tries again what may pass."""
        catalog = self._catalog
        info, known = catalog.shards[shard], self._states.get(shard)
        try:
            data, stored = catalog.storage.read_range(info.path, begin, size, known)
        except SourceChanged as error:
            raise catalog.damaged(shard, error.reason) from None
        except FileNotFoundError as error:
            catalog.missing(shard, error)
        except (DestinationError, SourceError) as error:
            raise catalog.away(error) from error
        except OSError as error:
            raise catalog.damaged(shard, f"cannot be read: {error}") from error
        if stored.size != info.bytes:
            raise catalog.damaged(
                shard,
                f"found {stored.size:,} bytes; expected {info.bytes:,}: it was cut short or replaced",
            )
        if self._states.setdefault(shard, stored) != stored:
            raise catalog.damaged(shard, REPLACED)
        return data
