"""Commands that people gave, and their end: by themselves, by the clock, or with us."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from wds_pipeline.errors import Ended


class Commands:
    """The commands under way. Each leads a session of its own, so that what it started ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    @contextmanager
    def run(
        self, arguments: Sequence[str], seconds: float | None = None, **options: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a command, with options of `subprocess.Popen`; waits for it at the block's end.

        After so many seconds it is killed. Raises OSError, and Ended after `stop`.
        """
        with self._lock:
            if self._stopped:
                raise Ended
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, start_new_session=True, **options
            )
            self._running.add(process)
        clock = threading.Timer(seconds or 0, _kill, [process])
        clock.daemon = True
        try:
            if seconds is not None:
                clock.start()
            yield process
            process.wait()
        finally:
            clock.cancel()
            with self._lock:
                self._running.discard(process)
                _kill(process)  # also what it left running
            process.wait()

    def stop(self) -> None:
        """Kills the commands that run, with all that they started; no other begins."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
