"""One shard in a cache's folder: the tar with holes, and beside it which blocks of it are there.

The table has eight bytes a block: 0 as long as the block is not there, then its xxh3 checksum. It is
written behind the block, so whenever a process or the machine dies, what the table says of a block is
either that it is not there or a checksum that its bytes have or have not. Nothing is renamed, synced or
locked, and two that write the same block write the same bytes.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

from wds_pipeline.dataset.tar_read import hasher

BLOCK = 32 * 1024
"""Bytes of a shard that are there or not. As many are read along by `remote_plan` too, and for the same
reason: asking for half of them is not cheaper. A checksum takes two microseconds."""
SHARD, TABLE, WHOLE = "shard.tar", "blocks", "whole"
TEMPORARY = ".tmp-"
_WINDOW = 128 * BLOCK
_TOUCH_SECONDS = 10.0
_TRIES = 5  # others may remove it meanwhile


class CachedShard:
    """A shard in the cache, open: it stays readable when another process removes it. For threads."""

    def __init__(self, folder: Path, size: int) -> None:
        """Opens it, with nothing in it if there is none. Raises OSError."""
        self.folder = folder
        self.size = size
        self._blocks = -(-size // BLOCK)
        self._fds: list[int] = []
        self._checked = bytearray(self._blocks)
        self._touched = -_TOUCH_SECONDS
        for _ in range(_TRIES):
            if self._open():
                return
            self._create()
        raise OSError(f"{folder}: cannot be made")

    def _open(self) -> bool:
        try:
            at = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        fds: list[int] = []
        try:  # both of the same folder, whatever takes its name meanwhile
            fds += [os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=at) for name in (SHARD, TABLE)]
            sizes = [os.fstat(fd).st_size for fd in fds]
        except FileNotFoundError:
            sizes = []
        finally:
            os.close(at)
        if sizes != [self.size, 8 * self._blocks]:  # somebody is removing it, or it is none of ours
            for fd in fds:
                os.close(fd)
            remove(self.folder)
            return False
        self._fds = fds
        return True

    def _create(self) -> None:
        made = self.folder.parent / f"{TEMPORARY}{uuid.uuid4().hex[:12]}"
        made.mkdir(parents=True)
        try:
            for name, size in ((SHARD, self.size), (TABLE, 8 * self._blocks)):
                with open(made / name, "wb") as file:
                    file.truncate(size)
            with suppress(FileExistsError, OSError):  # another process was first
                made.rename(self.folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def __del__(self) -> None:
        for fd in self._fds:
            os.close(fd)

    @property
    def removed(self) -> bool:
        """Whether it is no longer in the folder; its space is taken until it is closed."""
        return not os.fstat(self._fds[0]).st_nlink

    @property
    def path(self) -> str:
        """The tar, under a name that stays even when it is removed, as long as this object lives."""
        return f"/dev/fd/{self._fds[0]}"

    def touch(self) -> None:
        """Notes that it is in use."""
        now = time.monotonic()
        if now - self._touched > _TOUCH_SECONDS:
            self._touched = now
            os.utime(self._fds[1])

    def read(self, begin: int, end: int) -> tuple[memoryview, int, int]:
        """The bytes from one block's begin to another's end; and from where to where some are missing
        or damaged (the same: nowhere)."""
        first, last = begin // BLOCK, -(-end // BLOCK)
        sums = self._sums(first, last)
        if not sums.any():
            return memoryview(b""), begin, end
        data = bytearray(end - begin)
        view = memoryview(data)
        got = os.preadv(self._fds[0], [view], begin)
        missing = [
            block
            for block, expected in enumerate(sums.tolist(), first)
            if not self._is_right(block, expected, view[:got], begin)
        ]
        if not missing:
            return view.toreadonly(), end, end
        return view, missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, end)

    def _is_right(self, block: int, expected: int, view: memoryview, begin: int) -> bool:
        if not expected:
            return False
        if not self._checked[block]:
            at = block * BLOCK - begin
            if _sum(view[at : at + BLOCK]) != expected:
                return False
            self._checked[block] = 1
        return True

    def write(self, begin: int, data: memoryview) -> None:
        """Keeps whole blocks from `begin` on. Raises OSError; then some of them are not there."""
        sums = [_sum(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
        left, at = data, begin
        while left:
            written = os.pwrite(self._fds[0], left, at)
            left, at = left[written:], at + written
        table = np.array(sums, np.uint64).tobytes()
        os.pwrite(self._fds[1], table, begin // BLOCK * 8)

    @property
    def checked(self) -> bool:
        """Whether this process has held all of its blocks against their checksums."""
        return 0 not in self._checked

    def is_full(self) -> bool:
        """Whether all blocks are said to be there."""
        return bool(self._sums(0, self._blocks).all())

    def is_known_whole(self) -> bool:
        """Whether somebody held all of it against its digest."""
        return (self.folder / WHOLE).exists() and not self.removed

    def digest(self, algorithm: str) -> str | None:
        """The digest of its bytes, in the way that a digest of the version is; None if that is unknown."""
        state = hasher(algorithm)
        if state is None:
            return None
        for begin in range(0, self.size, _WINDOW):
            data = os.pread(self._fds[0], min(_WINDOW, self.size - begin), begin)
            state.update(memoryview(data))
        return f"{algorithm.partition(':')[0]}:{state.hexdigest()}"

    def note_whole(self, whole: bool) -> None:
        """Notes that all of it is there, and has its digest; or that this is not so any more."""
        if not self.removed:
            with suppress(OSError):
                (self.folder / WHOLE).touch() if whole else (self.folder / WHOLE).unlink()

    def _sums(self, first: int, last: int) -> np.ndarray:
        found = os.pread(self._fds[1], 8 * (last - first), 8 * first)
        return np.frombuffer(found.ljust(8 * (last - first), b"\0"), np.uint64)


def _sum(data: memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data) or 1


def remove(folder: Path) -> None:
    """Removes a shard's folder: at first its name, so that nobody finds a part of it."""
    gone = folder.parent / f"{TEMPORARY}{uuid.uuid4().hex[:12]}"
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
