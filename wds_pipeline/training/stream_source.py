"""What a stream draws from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from wds_pipeline.training.on_error import ErrorPolicy, OnError
from wds_pipeline.training.order import Ordered, Shuffle

Sample = dict[str, Any]


class Source(Protocol):
    """What a stream draws from: a dataset, or a mixture of some."""

    @property
    def named(self) -> str:
        """How messages name it."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, for people who look into a state."""
        ...

    @property
    def decodes(self) -> bool:
        """Whether `decode` does anything."""
        ...

    @property
    def on_error(self) -> OnError | ErrorPolicy:
        """What is done with samples that do not decode, where the stream says nothing else."""
        ...

    def order(self, seed: int, shuffle: Shuffle) -> Ordered: ...

    def read_ahead(self, groups: Iterable[np.ndarray], ahead_bytes: int) -> Iterator[Sample]:
        """The samples of these numbers, as `Reader.read_ahead`."""
        ...

    def decode(self, sample: Sample) -> Any: ...

    def close(self) -> None: ...
