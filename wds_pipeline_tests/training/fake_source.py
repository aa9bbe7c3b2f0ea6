"""Samples that are only numbers, as a stream draws from them: laws are tested on many of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from wds_pipeline.training.on_error import OnError
from wds_pipeline.training.order import Order, Shuffle


class Numbers:
    """Shards of `sizes` samples of 1,000 bytes."""

    named = "numbers: version 1"
    facts: dict[str, Any] = {"dataset": "numbers", "version": 1}  # noqa: RUF012
    decodes = False
    on_error: OnError = "raise"

    def __init__(self, sizes: Iterable[int], digest: str = "xxh3-128:0") -> None:
        self.sizes, self.digest = np.array([*sizes], np.int64), digest
        self.read: list[int] = []

    def order(self, seed: int, shuffle: Shuffle) -> Order:
        return Order(self.sizes, self.digest, seed, shuffle, 1000.0)

    def read_ahead(
        self, groups: Iterable[np.ndarray], ahead_bytes: int
    ) -> Iterator[dict[str, Any]]:
        for group in groups:
            for number in group.tolist():
                self.read.append(number)
                yield {"__index__": number}

    def decode(self, sample: dict[str, Any]) -> Any:
        return sample

    def close(self) -> None:
        pass
