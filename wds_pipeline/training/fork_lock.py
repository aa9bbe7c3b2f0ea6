"""A lock that a forked process finds open, whatever a thread of its parent was doing at the fork."""

from __future__ import annotations

import os
import threading


class ForkLock:
    """Like `threading.Lock` in a `with` statement. What it guards must be right between two lines of
    Python, since a fork may come there."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
