"""What each worker process is at: a line in shared memory, which is still there when the process is not."""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

_LINE = 512  # bytes: the process's id, and text


class Board:
    """Lines for so many processes. It goes to them when they are started; each takes a line then.

    There is no lock, which a process that is killed would hold for ever: a line belongs to the number that
    multiprocessing gave the process.
    """

    def __init__(self, context: multiprocessing.context.BaseContext, count: int) -> None:
        self._count = 4 * count  # other children of the driver's have numbers too
        self._lines: Any = context.RawArray("c", self._count * _LINE)
        self._at = 0

    def taken(self) -> Board:
        """The board, with a line for this process."""
        numbers = getattr(multiprocessing.current_process(), "_identity", ()) or (0,)
        self._at = numbers[-1] % self._count
        return self

    def write(self, what: str) -> None:
        """Puts this process's id and a text on its line."""
        line = f"{os.getpid()} {what}".encode(errors="backslashreplace")[: _LINE - 1]
        begin = self._at * _LINE
        self._lines[begin : begin + len(line) + 1] = line + b"\0"

    def read(self, pid: int) -> str:
        """What a process wrote last; "" if it wrote nothing."""
        data = bytes(self._lines[:])
        for begin in range(0, len(data), _LINE):
            line = data[begin : begin + _LINE].partition(b"\0")[0].decode(errors="replace")
            owner, _, what = line.partition(" ")
            if owner == str(pid):
                return what
        return ""
