"""Progress bars on a terminal's stderr; elsewhere nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wds_pipeline.dataset.settle import Progress

_FILES = ("scan", "download", "pipe")  # are counted in files, all else in bytes


class _Bars:
    """One bar at a time: a new one when what is under way changes, or how much of it there is."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.now: tuple[str, int] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if (what, total) != self.now:
            self.close()
            self._open(what, total)
        self.bar.n = done
        self.bar.refresh() if total and done >= total else self.bar.update(0)

    def _open(self, what: str, total: int) -> None:
        from tqdm import tqdm

        self.now = (what, total)
        unit = " files" if what in _FILES else "B"
        self.bar = tqdm(
            desc=what, total=total or None, unit=unit, unit_scale=True, leave=False, file=sys.stderr
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = self.now = None


@contextmanager
def progress_bars() -> Iterator[Progress | None]:
    """What the library reports its progress to; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    bars = _Bars()
    try:
        yield bars
    finally:
        bars.close()
