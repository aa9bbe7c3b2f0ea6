"""A local cache of what was read of shards in a store: shared by the processes of a machine.

What is kept are blocks of shards, not whole shards: an epoch in shuffled order begins at once, nothing is
fetched twice, and captions alone do not bring their images. They are found by the shard's digest, so that
versions and datasets share what they have in common, and two that have only a name in common do not meet.
When the last block of a shard has come, all of it is held against the digest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from wds_pipeline.config_values import Size
from wds_pipeline.errors import ConfigError
from wds_pipeline.training.bounded import Bounded, Shares
from wds_pipeline.training.cached_shard import SHARD, TABLE, TEMPORARY, CachedShard, remove
from wds_pipeline.training.fork_lock import ForkLock

_OPEN = (
    256  # shards of a cache that are open in a process, with two files each; but no more files than
)
_FILES = 4  # this part of what the system allows: connections need some too
_shares = Shares()
_ABANDONED = 3600.0  # seconds: a temporary folder that is older is nobody's
_KEPT = 0.95  # of `max_bytes` is what is left when something is removed
_LOOKS = 100  # times that a process looks at the whole cache while it fills it once
_DIGEST = re.compile(r"[a-z0-9-]+:[0-9a-f]{16,}")


class CacheConfig(BaseModel):
    """Where to keep what was read, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    """On a disk of this machine; made when it is not there."""
    max_bytes: Size = Field(default=ByteSize(100_000_000_000), gt=0)
    """How much it may take: bytes, or a size such as 200GB. What was not used for longest goes first.
    Each process that writes may go beyond it by one percent for a moment."""

    @classmethod
    def of(cls, given: CacheConfig | Mapping[str, Any] | str | os.PathLike[str]) -> CacheConfig:
        """What users write: a folder, a mapping, or one of these. Raises ConfigError."""
        if isinstance(given, cls):
            return given
        values = dict(given) if isinstance(given, Mapping) else {"folder": given}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("cache", *first["loc"])))
            raise ConfigError(
                f"{where}: {first['msg'].removeprefix('Value error, ')}; expected a folder, or "
                "{'folder': …, 'max_bytes': '200GB'}"
            ) from None


@dataclass
class _State:
    """Of this process: bytes kept since it last looked; whether it has stopped to write."""

    written: int = 0
    stopped: bool = False


class Cache:
    """The cache of a folder, as this process sees it. For threads; goes on in a forked process."""

    def __init__(self, config: CacheConfig) -> None:
        """Raises ConfigError when the folder cannot be written."""
        self.config = config
        self.folder = config.folder.expanduser().absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                pass
        except OSError as error:
            raise ConfigError(
                f"cache.folder: {self.folder}: {error.strerror or error}; expected a folder that this "
                "user may write"
            ) from error
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _FILES
        self._open: Bounded[str, CachedShard] = Bounded(_OPEN)
        _shares.join(self._open, min(files // 2, _OPEN))
        self._state = _State()
        self._lock = ForkLock()

    def shard(self, digest: str, size: int) -> CachedShard | None:
        """What there is of the shard with this digest; None if it cannot be kept."""
        found = self._open.get(digest)
        if found is not None and not found.removed:
            return found
        if not _DIGEST.fullmatch(digest) or size > self.config.max_bytes:
            return None
        if found is not None:
            self.let_go_of_removed()
        name = digest.replace(":", "-")
        try:
            opened = CachedShard(self.folder / name.rpartition("-")[2][:2] / name, size)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.let_go()  # the folder is well
            else:
                self._stop(error)
            return None
        return self._open.add(digest, opened)

    def keep(self, shard: CachedShard, begin: int, data: memoryview) -> None:
        """Keeps blocks of a shard. When that cannot be, says so once, and keeps nothing from now on."""
        if self._state.stopped:
            return
        try:
            shard.write(begin, data)
        except OSError as error:
            self._stop(error)
            return
        with self._lock:
            self._state.written += len(data)
            look = self._state.written > self.config.max_bytes // _LOOKS
            if look:
                self._state.written = 0
        if look:
            self.trim()

    def let_go(self) -> None:
        """Closes all shards."""
        self._open.clear()

    def let_go_of_removed(self) -> None:
        """Closes what another process removed: it takes space as long as it is open."""
        self._open.drop(lambda each: each.removed)

    def drop(self, shard: CachedShard) -> None:
        """Removes a shard whose bytes are not what they should be."""
        remove(shard.folder)
        self.let_go_of_removed()

    def _stop(self, error: OSError) -> None:
        with self._lock:
            told, self._state.stopped = self._state.stopped, True
        if not told:
            warnings.warn(
                f"cache: {self.folder}: {error.strerror or error}; nothing more is kept there by this "
                "process: free some space, or give another cache.folder or a smaller cache.max_bytes",
                stacklevel=2,
            )

    def trim(self) -> None:
        """Removes what was not used for longest, if there is more than there may be."""
        with suppress(OSError), self._alone() as alone:
            if not alone:
                return  # another process is at it
            found = sorted(self._kept(), key=lambda each: each.used)
            total = sum(each.bytes for each in found)
            if total <= self.config.max_bytes:
                return
            for each in found:
                remove(each.folder)
                total -= each.bytes
                if total <= _KEPT * self.config.max_bytes:
                    break

    def _kept(self) -> Iterator[_Kept]:
        for group in self.folder.iterdir():
            if not group.is_dir():
                continue
            for folder in group.iterdir():
                try:
                    stats = [os.stat(folder / name) for name in (SHARD, TABLE)]
                except OSError:
                    continue
                finally:
                    _remove_abandoned(folder)
                yield _Kept(folder, sum(each.st_blocks * 512 for each in stats), stats[1].st_mtime)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process is in here; a lock that ends with the process."""
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)


class _Kept(NamedTuple):
    folder: Path
    bytes: int
    used: float


def _remove_abandoned(folder: Path) -> None:
    if folder.name.startswith(TEMPORARY):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
