"""How far a long step is, in its run's log."""

from __future__ import annotations

import time

import dagster as dg

from wds_pipeline.dataset.settle import Progress
from wds_pipeline.dataset.wording import human_bytes

_SECONDS = 30.0  # between two lines of progress: each is an event, which is stored for ever
_COUNTED = ("scan", "download", "pipe")  # all else is in bytes


def progress_lines(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, seconds: float = _SECONDS
) -> Progress:
    """Says in the run's log how far the work is, so many seconds after it said so last."""
    last = time.monotonic()

    def say(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < seconds or (total and done >= total):
            return
        last = now
        shown = "{:,}".format if what in _COUNTED else human_bytes
        if total:
            context.log.info(f"{what}: {shown(done)} of {shown(total)} done ({done / total:.0%})")
        else:
            context.log.info(f"{what}: {shown(done)} so far")

    return say
