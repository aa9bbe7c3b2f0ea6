"""A stored file as a seekable stream: ranges of it, fetched ahead when it is read front to back."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from wds_pipeline.storage.base import BLOCK

_FIRST = 256 * 1024  # a read somewhere in the middle is mostly of one sample
_AHEAD = 3


class ReadAhead(io.RawIOBase):
    """Reads blocks by `fetch(offset, size)`, and from the second in a row some of them ahead.

    Memory: four blocks of 8 MB at most. What `fetch` raises is raised by the read that needs it.
    """

    def __init__(
        self, size: int, fetch: Callable[[int, int], bytes], threads: ThreadPoolExecutor
    ) -> None:
        super().__init__()
        self._size = size
        self._fetch = fetch
        self._threads = threads
        self._position = 0
        self._start, self._data = 0, memoryview(b"")
        self._coming: dict[int, tuple[int, Future[bytes]]] = {}  # offset → its size, and its bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"a seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size or not len(view):
            return 0
        if not self._start <= self._position < self._start + len(self._data):
            self._load(len(view))
        begin = self._position - self._start
        got = min(len(view), len(self._data) - begin)
        view[:got] = self._data[begin : begin + got]
        self._position += got
        return got

    def close(self) -> None:
        self._drop()
        super().close()

    def _load(self, wanted: int) -> None:
        """Has the block that the position is in."""
        end = self._start + len(self._data)
        onward = len(self._data) > 0 and self._position == end
        at = self._position
        if at in self._coming:
            _, coming = self._coming.pop(at)
            self._data = memoryview(coming.result())
        else:
            self._drop()
            size = BLOCK if onward or at == 0 else max(wanted, _FIRST)
            self._data = memoryview(self._fetch(at, min(size, self._size - at)))
        self._start = at
        if onward:
            self._look_ahead()

    def _look_ahead(self) -> None:
        at = self._start + len(self._data)
        for _ in range(_AHEAD):
            if at >= self._size:
                return
            if at not in self._coming:
                size = min(BLOCK, self._size - at)
                self._coming[at] = size, self._threads.submit(self._fetch, at, size)
            at += self._coming[at][0]

    def _drop(self) -> None:
        for _, coming in self._coming.values():
            coming.cancel()
        self._coming.clear()
