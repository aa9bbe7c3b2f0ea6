"""Python's parser, from any thread; headers of `.npy` files are parsed by it too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_TRIES = 100
Parsed = TypeVar("Parsed")


def parsed(parse: Callable[[], Parsed]) -> Parsed:
    """What `parse` returns, which makes a syntax tree; it is tried again when another thread was in its way.

    CPython 3.11 counts the depth of all threads' trees as one, and raises SystemError when that does not come
    out even. No lock: a process that forks while one is held would leave it locked in its child.
    """
    for _ in range(_TRIES):
        try:
            return parse()
        except SystemError:
            time.sleep(0)
    return parse()
