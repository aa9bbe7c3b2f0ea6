"""Transforms that go wrong in ways that are not an Exception each, for tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wds_pipeline.transforms import Context, Rejected, Sample


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Panic(BaseException):
    """As extensions in Rust raise them."""


REASONS: dict[str, BaseException] = {
    "exit": SystemExit("usage"),
    "panic": Panic("index out of bounds"),
    "generator": GeneratorExit(),
    "mute": Mute(),
    "long": Rejected("x" * 10_000_000),
    "terminal": Rejected("a\x1b[31mred\x00 \u202e b"),
    "surrogate": Rejected("\ud800"),
}


def raises(sample: Sample, what: str) -> Sample:
    raise REASONS[what]


def needs(sample: Sample, tool: str) -> Sample:
    """Uses a file that may not be there."""
    Path(tool).read_bytes()
    return sample


def dies(sample: Sample, how: str) -> Sample:
    print("this is at", sample["__key__"])
    if how == "exit":
        os._exit(5)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return sample


class NoLuck:
    def __init__(self) -> None:
        raise RuntimeError("no device")

    def __call__(self, sample: Sample) -> Sample:
        return sample


class NotCalled:
    """No transform."""


class Stream:
    """A transform of whole shards that does what it should not."""

    def __init__(self, what: str) -> None:
        self.what = what

    def stream(self, samples: Iterator[Sample], context: Context) -> Any:
        if self.what == "nothing":
            return iter(())
        return self._each(samples, context)

    def _each(self, samples: Iterator[Sample], context: Context) -> Iterator[Sample]:
        for sample in samples:
            key = sample["__key__"]
            if self.what == "exits":
                raise SystemExit(2)
            if self.what == "unknown":
                context.reject("no/such", "who?")
            yield {
                **sample,
                "__key__": {"foreign": f"z/{key}", "dot": f"{key}-0.5"}.get(self.what, key),
            }
            if self.what == "late":
                context.reject(key, "too late")
