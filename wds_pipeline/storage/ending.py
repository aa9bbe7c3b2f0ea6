"""Whether the interpreter ends: it waits for the threads of pools, which should then begin nothing more.

Else Ctrl-C, while a store is away, takes as long as its budget of tries.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # whose own hook, which waits, must come behind this one
import os
import threading

_events = [threading.Event()]


def _after_fork() -> None:
    _events[0] = threading.Event()  # another thread may have held the other


os.register_at_fork(after_in_child=_after_fork)
_at_exit = getattr(threading, "_register_atexit", None)  # `atexit` comes after the waiting
if _at_exit is not None:
    _at_exit(lambda: _events[0].set())


def is_ending() -> bool:
    """Whether it ends."""
    return _events[0].is_set()


def pause(seconds: float) -> None:
    """Sleeps, but not beyond the interpreter's end."""
    _events[0].wait(seconds)
