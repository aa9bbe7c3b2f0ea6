"""Ctrl-C and SIGTERM while workers are busy: they are ended, and the user hears what is left."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The user, or the system, stopped the command."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Terminated(KeyboardInterrupt):
    """SIGTERM: what stops a job in CI, or a container."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Turns both signals into `Interrupted`, once the block has cleaned up."""
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main_thread else None
    try:
        yield
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        head = "terminated" if terminated else "interrupted"
        raise Interrupted(f"{head}: {message}", 143 if terminated else 130) from None
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
