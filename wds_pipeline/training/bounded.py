"""A cache that forgets what came first, for threads, and for processes that fork."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from wds_pipeline.training.fork_lock import ForkLock

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(Generic[Key, Value]):
    """Values by key, up to a limit of their costs; the oldest go first, the newest always stays.

    `get` takes no lock. What is let go of lives on for who still holds it.
    """

    def __init__(self, limit: int, cost: Callable[[Value], int] = lambda value: 1) -> None:
        self._limit = limit
        self._cost = cost
        self._items: dict[Key, Value] = {}
        self.get = self._items.get
        self._used = 0
        self._lock = ForkLock()

    def add(self, key: Key, value: Value) -> Value:
        """Keeps a value; returns it, or the one that another thread was first to keep."""
        with self._lock:
            if key in self._items:
                return self._items[key]
            self._used += self._cost(value)
            self._items[key] = value
            self._shrink()
        return value

    def drop(self, which: Callable[[Value], bool]) -> None:
        """Lets go of some."""
        with self._lock:
            for key in [key for key, value in self._items.items() if which(value)]:
                self._used -= self._cost(self._items.pop(key))

    def clear(self) -> None:
        """Lets go of everything."""
        with self._lock:
            self._items.clear()
            self._used = 0

    def resize(self, limit: int) -> None:
        """From now on it keeps so much."""
        with self._lock:
            self._limit = limit
            self._shrink()

    def _shrink(self) -> None:
        while self._used > self._limit and len(self._items) > 1:
            self._used -= self._cost(self._items.pop(next(iter(self._items))))

    def __len__(self) -> int:
        return len(self._items)


class Shares:
    """A limit that caches of a process share evenly: all of them together keep no more."""

    def __init__(self) -> None:
        self._caches: WeakSet[Bounded[Any, Any]] = WeakSet()
        self._lock = ForkLock()

    def join(self, cache: Bounded[Any, Any], limit: int) -> None:
        """Gives a cache its part of the limit; the others' parts are smaller from now on."""
        with self._lock:
            self._caches.add(cache)
            caches = list(self._caches)
        for each in caches:
            each.resize(limit // len(caches))
