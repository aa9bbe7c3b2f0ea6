"""What requests of this process share: the threads that wait for stores, and the connections to them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache

from fsspec.spec import AbstractFileSystem

from wds_pipeline.storage.asking import explain

_MOST_THREADS = 64


@lru_cache(8)
def _threads(number: int, work: str, pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix=f"wds-{work}")


def threads(concurrency: int, work: str = "requests") -> ThreadPoolExecutor:
    """The threads that wait for stores, of this process.

    Those of one kind of work never wait for others of it: listing a folder may be many requests.
    """
    return _threads(min(concurrency, _MOST_THREADS), work, os.getpid())


class Connections:
    """Filesystems to borrow: one for all where it is asynchronous, else one for each request."""

    def __init__(self, connect: Callable[[], AbstractFileSystem], most: int) -> None:
        self._connect = connect
        self._free: queue.LifoQueue[AbstractFileSystem | None] = queue.LifoQueue()
        self._lock = threading.Lock()
        self._shared: AbstractFileSystem | None = None
        for _ in range(most):
            self._free.put(None)

    @contextmanager
    def borrow(self, drop: Callable[[AbstractFileSystem], None]) -> Iterator[AbstractFileSystem]:
        """A filesystem that nobody else uses meanwhile, unless it is made for that; one whose
        connection failed is dropped, and another made when it is needed."""
        if self._shared is not None:
            yield self._shared
            return
        fs = self._free.get()
        try:
            fs = fs or self._made()
            yield fs
        except Exception as error:
            if fs is not None and fs is not self._shared and explain(error).passing:
                with suppress(Exception):
                    drop(fs)
                fs = None
            raise
        finally:
            self._free.put(None if fs is self._shared else fs)

    def _made(self) -> AbstractFileSystem:
        with self._lock:
            fs = self._shared or self._connect()
            if fs.async_impl:
                self._shared = fs
            return fs


_of_process: dict[Hashable, Connections] = {}
_of_process_lock = threading.Lock()
# So that no thread has it at a fork: the child would wait for that thread for ever.
os.register_at_fork(
    before=_of_process_lock.acquire,
    after_in_parent=_of_process_lock.release,
    after_in_child=_of_process_lock.release,
)


def connections(key: Hashable, connect: Callable[[], AbstractFileSystem], most: int) -> Connections:
    """The connections of this process to one place, whoever asks for it."""
    key = (os.getpid(), key)
    with _of_process_lock:
        if key not in _of_process:
            _of_process[key] = Connections(connect, most)
        return _of_process[key]
