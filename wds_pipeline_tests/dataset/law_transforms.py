"""Transforms whose results are easily told, for the laws of chains; and what they do, in plain words."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from wds_pipeline.transforms import Context, Rejected, Sample


def drawn(key: str, of: int) -> int:
    """A number that a key stands for."""
    return zlib.crc32(key.encode()) % of


def mark(sample: Sample, text: str) -> Sample:
    sample["txt"] = sample.get("txt", b"").decode() + text
    return sample


def fan(sample: Sample, count: int) -> Iterator[Sample]:
    again: Sample = {}  # the same dict each time
    for number in range(count):
        again.clear()
        again.update(sample, __key__=f"{sample['__key__']}-{number}")
        yield again


def skip(sample: Sample, of: int) -> Sample | None:
    return sample if drawn(sample["__key__"], of) else None


def refuse(sample: Sample, of: int) -> Sample:
    if not drawn(sample["__key__"], of):
        raise Rejected("drawn")
    return sample


class Louder:
    """Of some fields, `times` exclamation marks behind each."""

    NARROWED_BY = "fields"

    def __init__(self, fields: list[str], times: int) -> None:
        self.fields, self.times = fields, times

    def __call__(self, sample: Sample) -> Sample:
        for name in self.fields:
            if name in sample:
                sample[name] += b"!" * self.times
        return sample


class Joined:
    """All texts of a shard become one sample."""

    def __init__(self, by: str) -> None:
        self.by = by

    def stream(self, samples: Iterator[Sample], context: Context) -> Iterator[Sample]:
        text = self.by.join(sample.get("txt", b"").decode() for sample in samples)
        yield {"__key__": f"{context.shard}/all", "txt": text}


# What each of them does to one sample: a list of samples, or None where it is refused.
PLAIN: dict[
    str, Callable[[str, dict[str, bytes], Any], list[tuple[str, dict[str, bytes]]] | None]
] = {
    "mark": lambda key, fields, p: [
        (key, {**fields, "txt": fields.get("txt", b"") + p["text"].encode()})
    ],
    "fan": lambda key, fields, p: [(f"{key}-{n}", fields) for n in range(p["count"])],
    "skip": lambda key, fields, p: [(key, fields)] if drawn(key, p["of"]) else [],
    "refuse": lambda key, fields, p: [(key, fields)] if drawn(key, p["of"]) else None,
    "Louder": lambda key, fields, p: [
        (key, {n: v + b"!" * (p["times"] if n in p["fields"] else 0) for n, v in fields.items()})
    ],
}
