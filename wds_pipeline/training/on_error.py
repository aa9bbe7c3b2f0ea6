"""What happens with a sample that does not decode: it is raised, left out and counted, or a function
decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from wds_pipeline.errors import ConfigError, DecodeError
from wds_pipeline.training.fork_lock import ForkLock

RAISE = "raise"
SKIP = "skip"
KEPT = 100
"""How many skipped samples are remembered; all are counted."""
IN_A_ROW = 1000
"""After so many without a sound one between them, it is not the samples that are wrong."""

OnError = str | Callable[[DecodeError], Any]
_log = logging.getLogger("wds_pipeline.training")


class Skipped(NamedTuple):
    """A sample that was left out; `field` is None where a function got the whole sample."""

    key: str | None
    url: str | None
    field: str | None
    message: str


class ErrorPolicy:
    """Applies a decoder to samples. For threads; in another process it counts anew.

    `raise` lets the DecodeError out. `skip` leaves the sample out, counts it, and logs the 1st, 2nd,
    4th, 8th, … one. A function gets the error: if it returns something true, the sample is left out
    and counted, else the error is raised (webdataset's handlers do just this). Other errors, such as a
    shard's damage, are always raised.
    """

    def __init__(self, on_error: OnError = RAISE) -> None:
        if on_error not in (RAISE, SKIP) and not callable(on_error):
            raise ConfigError(
                f"on_error={on_error!r}: expected {RAISE!r}, {SKIP!r}, or a function that gets the error "
                "and says whether to leave the sample out"
            )
        self.on_error = on_error
        self._start()

    def _start(self) -> None:
        self.count = 0
        """How many samples were left out."""
        self.first: list[Skipped] = []
        """The first of them, at most `KEPT`."""
        self._in_a_row = 0
        self._lock = ForkLock()

    @classmethod
    def of(cls, on_error: OnError | ErrorPolicy) -> ErrorPolicy:
        """The policy itself, or one by its name or function. Raises ConfigError."""
        return on_error if isinstance(on_error, ErrorPolicy) else cls(on_error)

    def __getstate__(self) -> dict[str, Any]:
        return {"on_error": self.on_error}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.on_error = state["on_error"]
        self._start()

    def apply(self, decode: Callable[[Any], Any], sample: Any) -> tuple[bool, Any]:
        """(True, the decoded sample), or (False, None) for one that is left out.

        Raises DecodeError where the policy says so, or after `IN_A_ROW` errors without a sound sample.
        """
        try:
            found = decode(sample)
        except DecodeError as error:
            self._judge(error)
            return False, None
        self._in_a_row = 0
        return True, found

    def decoded(self, decode: Callable[[Any], Any], samples: Iterable[Any]) -> Iterator[Any]:
        """The decoded samples, one after the other, without those that are left out."""
        if self.on_error == RAISE:
            yield from map(decode, samples)
            return
        for sample in samples:
            sound, found = self.apply(decode, sample)
            if sound:
                yield found

    def _judge(self, error: DecodeError) -> None:
        if self.on_error == RAISE:
            raise error
        if callable(self.on_error) and not self.on_error(error):
            raise error
        with self._lock:
            self.count += 1
            self._in_a_row += 1
            count, in_a_row = self.count, self._in_a_row
            if len(self.first) < KEPT:
                self.first.append(Skipped(error.key, error.url, error.field, str(error)))
        if self.on_error != SKIP:
            return
        if in_a_row >= IN_A_ROW:
            raise DecodeError(
                f"{error.dataset}: on_error={SKIP!r} left out {in_a_row:,} samples in a row: it seems that "
                f"decode= is not for these data; the last: {error}",
                dataset=error.dataset,
                url=error.url,
                key=error.key,
                field=error.field,
            ) from error
        if count & (count - 1) == 0:
            _log.warning("%d left out so far; the last: %s", count, error)

    def __repr__(self) -> str:
        return f"<ErrorPolicy {self.on_error!r}: {self.count:,} left out>"
