"""Which local files the system has in its page cache, and making it forget them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

_PROBES = 400


def drop(paths: Iterable[str]) -> None:
    """Has the system forget what it holds of these files, as far as it will."""
    for path in paths:
        number = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(number)


def can_drop() -> bool:
    """Whether this system can be asked to."""
    return hasattr(os, "posix_fadvise")


def cached(paths: Sequence[str]) -> float | None:
    """Which part of these files is in the page cache, from 0 to 1, told by reads that would not wait at
    some places in them; None where nobody knows."""
    if not paths or not hasattr(os, "RWF_NOWAIT"):
        return None
    chosen = paths[:: max(len(paths) // _PROBES, 1)]
    each, there, asked = max(_PROBES // len(chosen), 1), 0, 0
    for path in chosen:
        number = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(number).st_size
            for part in range(each):
                asked += 1
                with suppress(BlockingIOError):
                    at = size * part // each
                    there += os.preadv(number, [bytearray(1)], at, os.RWF_NOWAIT)
        except OSError:  # a filesystem that cannot say
            return None
        finally:
            os.close(number)
    return there / asked
