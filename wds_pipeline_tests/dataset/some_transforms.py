"""Transforms that tests name in a dataset's `transforms:`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from wds_pipeline.transforms import Context, Rejected, Sample


def number(sample: Sample) -> int:
    return int(sample["__key__"].rpartition("/")[2].partition("-")[0])


def upper(sample: Sample) -> Sample:
    return {**sample, "txt": sample["txt"].decode().upper()}


def mixed(sample: Sample, log: str = "") -> Any:
    """Of seven samples one is unusable, one left out, one becomes three; each call is noted."""
    if log:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {sample['__key__']}\n")
    kind = number(sample) % 7
    if kind == 3:
        raise Rejected(f"number {number(sample)}")
    if kind == 4:
        return None
    if kind == 5:
        return ({**sample, "__key__": f"{sample['__key__']}-{part}"} for part in range(3))
    return upper(sample)


class Blocks:
    """Many samples become one: their captions, three at a time."""

    def __init__(self, size: int = 3) -> None:
        self.size = size

    def stream(self, samples: Iterator[Sample], context: Context) -> Iterator[Sample]:
        lines: list[str] = []
        block = 0
        for sample in samples:
            if "txt" not in sample or number(sample) == 6:
                context.reject(sample["__key__"], "no caption")
                continue
            lines.append(sample["txt"].decode())
            if len(lines) == self.size:
                yield {"__key__": f"{context.shard}/{block:04d}", "txt": "\n".join(lines)}
                lines, block = [], block + 1
        if lines:
            yield {"__key__": f"{context.shard}/{block:04d}", "txt": "\n".join(lines)}


def fails(sample: Sample) -> Sample:
    raise RuntimeError(f"no\nway: {len(sample)}")


def gives(sample: Sample, what: str) -> Any:
    """What no transform may give."""
    return {
        "number": 3,
        "no key": {"txt": b"x"},
        "other key": {**sample, "__key__": "z" + sample["__key__"]},
        "longer key": {**sample, "__key__": sample["__key__"] + "0"},
        "dotted key": {**sample, "__key__": sample["__key__"] + "-0.5"},
        "one key twice": [sample, sample],
        "no field": {"__key__": sample["__key__"]},
        "upper case": {**sample, "TXT": b"x"},
        "a folder": {**sample, "a/b": b"x"},
        "no encoder": {**sample, "bin": object()},
    }[what]


class Stream:
    """A transform of whole shards that goes wrong."""

    def __init__(self, what: str) -> None:
        self.what = what

    def stream(self, samples: Iterator[Sample], context: Context) -> Iterator[Sample]:
        for sample in samples:
            if self.what == "fails":
                raise RuntimeError("out of memory")
            same = {**sample, "__key__": f"{context.shard}/same"}
            yield same if self.what == "same key" else sample


def unseeded(sample: Sample) -> Sample:
    return {**sample, "txt": os.urandom(8).hex()}


not_a_function = 3
