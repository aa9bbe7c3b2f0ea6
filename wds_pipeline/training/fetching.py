"""Pieces under way: as many at a time as the store takes, and as the memory allows."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from wds_pipeline.storage.ending import is_ending
from wds_pipeline.training.remote_plan import Piece

# So many pieces are begun with, and as many more for each that came: all at once would share the line, and
# the first one, which is waited for, would come with the last.
_FIRST = 4


class Fetcher:
    """Reads pieces in the order in which they were added, for one thread that waits for them.

    `ahead_bytes` bounds what was asked for and not released. The next piece waits until it fits, so
    what has to be there at a time must have been added in that order, and fit.
    """

    def __init__(
        self,
        read: Callable[[Piece], memoryview],
        start: Callable[[Callable[[], None]], Future[None]],
        most: int,
        ahead_bytes: int,
    ) -> None:
        """`read` gets a piece's bytes; `start` runs something in a thread, `most` at a time."""
        self._read = read
        self._start = start
        self._most = most
        self._ahead = ahead_bytes
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Piece] = deque()
        self._held = 0
        self._running = 0
        self._most_now = min(_FIRST, most)
        self._awaited: Piece | None = None
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes that were asked for and not released."""
        return self._held

    def add(self, pieces: Iterable[Piece]) -> None:
        """Reads them, after those that were added before."""
        with self._changed:
            self._queue.extend(pieces)
        self._go_on()

    def wait(self, piece: Piece) -> memoryview:
        """A piece's bytes, once they are there. Raises what reading it raised."""
        if not piece.done:
            self._await(piece)
        if piece.error is not None:
            raise piece.error
        assert piece.data is not None
        return piece.data

    def _await(self, piece: Piece) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "an iterator over samples was begun before this process was forked, and its reads are the "
                "parent's; begin another one here"
            )
        with self._changed:
            self._awaited = piece
            while not piece.done:
                self._changed.wait()
            self._awaited = None

    def release(self, piece: Piece) -> None:
        """Lets go of a piece, in whose place others are read."""
        if not piece.done:
            self._await(piece)
        piece.data = None
        with self._changed:
            self._held -= piece.size
        self._go_on()

    def close(self) -> None:
        """Reads no more; what is under way is not waited for."""
        if self._process == os.getpid():
            with self._changed:
                self._closed = True
                self._queue.clear()

    def _go_on(self) -> None:
        """Has as many threads at work as there are pieces that fit."""
        while True:
            with self._changed:
                # No more than one thread for a piece, and each takes what it can.
                piece = self._next() if self._running < self._most_now else None
                if piece is None:
                    return
                self._running += 1
            self._start(lambda piece=piece: self._work(piece))  # type: ignore[misc]

    def _next(self) -> Piece | None:
        """Takes the next piece, if it fits; the lock is held."""
        if self._closed or not self._queue or is_ending():
            return None
        size = self._queue[0].size
        if self._held and self._held + size > self._ahead:
            return None
        self._held += size
        return self._queue.popleft()

    def _work(self, piece: Piece | None) -> None:
        while piece is not None:
            try:
                piece.data = self._read(piece)
            except BaseException as error:
                piece.error = error
            with self._changed:
                piece.done = True
                if piece.error is not None:  # who would wait for a later one meets this one first
                    self._closed = True
                if piece is self._awaited:
                    self._changed.notify_all()
                piece = self._next()
                if piece is None:
                    self._running -= 1
                more = self._most_now < self._most
                self._most_now = min(self._most_now + _FIRST, self._most)
            if more:
                self._go_on()
