"""Trying again what may pass: growing, random pauses, within a budget of time."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from wds_pipeline.errors import may_pass
from wds_pipeline.storage.base import Usage
from wds_pipeline.storage.ending import is_ending, pause

_FIRST_PAUSE = 0.1  # seconds, at most; then twice as long each time
_LONGEST_PAUSE = 10.0
_QUIET = 5.0  # seconds of trying before anybody is told
_BETWEEN = 30.0  # seconds between two such words of a process, whatever it does at a time
_log = logging.getLogger(__name__)
_last_told = [float("-inf")]
Result = TypeVar("Result")


def _tell(what: str, seconds: float) -> None:
    now = time.monotonic()
    if now - _last_told[0] > _BETWEEN:
        _last_told[0] = now
        _log.warning("%s (tried again for %.0f s in all)", what, seconds)


def persist(
    work: Callable[[], Result],
    seconds: float,
    usage: Usage,
    explain: Callable[[Exception], Exception],
) -> Result:
    """Does the work, again while what it raises may pass and less than `seconds` are over.

    The pauses are random below a limit that doubles ("full jitter"), so that many workers do not come
    back at once. When the interpreter ends, nothing is tried again. `explain` turns what was raised into
    what the user is told, which says by `errors.may_pass` whether trying again may help; the last one is
    raised.
    """

    def attempt() -> Result:
        try:
            return work()
        except Exception as error:
            told = explain(error)
            if told is error:
                raise
            raise told from error

    def count(state: RetryCallState) -> None:
        usage.count("retries")
        if state.seconds_since_start and state.seconds_since_start > _QUIET and state.outcome:
            _tell(str(state.outcome.exception()), seconds)

    start = time.monotonic()
    try:  # nearly all is well at once, and the machinery below costs more than the answer's bytes
        return attempt()
    except Exception as error:
        if not may_pass(error) or seconds <= 0 or is_ending():
            raise
    usage.count("retries")
    pause(random.uniform(0, _FIRST_PAUSE))
    seconds -= time.monotonic() - start

    over = stop_after_delay(seconds)
    trying = Retrying(
        stop=lambda state: is_ending() or over(state),
        sleep=pause,
        wait=wait_random_exponential(_FIRST_PAUSE, _LONGEST_PAUSE),
        retry=retry_if_exception(may_pass),
        before_sleep=count,
        reraise=True,
    )
    return trying(attempt)
