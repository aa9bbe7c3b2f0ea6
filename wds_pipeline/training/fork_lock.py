"""A lock that a forked process finds open, whatever a thread of its parent was doing at the fork."""

from __future__ import annotations

import os
import threading


class ForkLock:
    """Like `threading.Lock` in a `with` statement. What it guards must be right between two lines of
    Python, since a fork may come there."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        process = os.getpid()
        lock = self._locks.get(process)
        # Of threads that make one at once, all take the same.
        (lock or self._locks.setdefault(process, threading.Lock())).acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()
