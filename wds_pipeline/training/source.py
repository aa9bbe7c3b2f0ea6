"""A dataset, as a stream draws from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from wds_pipeline.training.on_error import ErrorPolicy, OnError
from wds_pipeline.training.order import Order, Shuffle
from wds_pipeline.training.stream import Options, Stream
from wds_pipeline.training.stream_source import Source

if TYPE_CHECKING:
    from wds_pipeline.training.dataset import Dataset


class DatasetSource:
    """A dataset or a selection of one."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    @property
    def named(self) -> str:
        return self.dataset.catalog.named

    @property
    def facts(self) -> dict[str, Any]:
        catalog = self.dataset.catalog
        found = {"dataset": catalog.dataset, "version": catalog.version, "split": catalog.split}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def decodes(self) -> bool:
        return self.dataset.decode is not None

    @property
    def on_error(self) -> OnError | ErrorPolicy:
        return self.dataset.on_error

    @property
    def mean_bytes(self) -> float:
        """Of a sample, tar and all."""
        catalog = self.dataset.catalog
        return catalog.bytes / max(len(catalog), 1)

    def order(self, seed: int, shuffle: Shuffle) -> Order:
        """Of the positions in the dataset, whose shards are those of its samples."""
        catalog, indices, mean = self.dataset.catalog, self.dataset.indices, self.mean_bytes
        if indices is None:
            return Order(np.diff(catalog.starts), catalog.digest, seed, shuffle, mean)
        shards = np.searchsorted(catalog.starts, indices, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        sizes = np.diff(np.concatenate([[0], cuts, [len(indices)]]))
        chosen = xxhash.xxh3_64_hexdigest(indices.tobytes())
        return Order(sizes, f"{catalog.digest}+{chosen}", seed, shuffle, mean)

    def read_ahead(
        self, groups: Iterable[np.ndarray], ahead_bytes: int
    ) -> Iterator[dict[str, Any]]:
        """The samples at these positions in the dataset."""
        indices = self.dataset.indices
        if indices is not None:
            groups = (indices[group] for group in groups)
        return self.dataset.reader.read_ahead(groups, self.dataset.fields, ahead_bytes=ahead_bytes)

    def decode(self, sample: dict[str, Any]) -> Any:
        assert self.dataset.decode is not None
        return self.dataset.decode(sample)

    def close(self) -> None:
        self.dataset.close()


def make_stream(source: Source, options: Options) -> Stream:
    """A stream: an `IterableDataset` of torch's where torch is installed."""
    try:
        from wds_pipeline.training.torch_stream import TorchStream
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return Stream(source, **options)
    return TorchStream(source, **options)
