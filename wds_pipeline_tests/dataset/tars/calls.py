"""Transforms for the tests, as users write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from wds_pipeline.transforms import Context, Sample


def louder(sample: Sample, mark: str = "!") -> Sample:
    sample["txt"] = sample["txt"].decode().upper() + mark
    return sample


def no_odd_ones(sample: Sample) -> Sample | None:
    return sample if int(sample["__key__"]) % 2 == 0 else None


def twice(sample: Sample) -> list[Sample]:
    return [{**sample, "__key__": f"{sample['__key__']}-{n}"} for n in range(2)]


def fails_on_3(sample: Sample) -> Sample:
    if sample["__key__"] == "3":
        raise ValueError("three is not wanted")
    return sample


def fails(sample: Sample) -> Sample:
    raise ValueError("nothing is wanted")


def dies(sample: Sample) -> Sample:
    os._exit(9)


class Numbered:
    """Over all samples."""

    def stream(self, samples: Iterator[Sample], context: Context) -> Iterator[dict[str, Any]]:
        for number, sample in enumerate(samples):
            if sample["__key__"] == "3":
                context.reject("3", "three is not wanted")
            else:
                yield {**sample, "n": str(number)}
