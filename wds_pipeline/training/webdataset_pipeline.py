"""The samples as a pipeline of the `webdataset` package, each at one node and one worker.

Its shards are read by the member index, not by webdataset: so samples are shared out, not shards, and
more workers than shards is no difficulty.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from webdataset import DataPipeline
from webdataset.compat import FluidInterface
from webdataset.utils import pytorch_worker_info

from wds_pipeline.training.reading import in_turn

if TYPE_CHECKING:
    from wds_pipeline.training.dataset import Dataset


class Pipeline(DataPipeline, FluidInterface):  # type: ignore[misc]
    """A pipeline of webdataset's, with all its methods."""

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch comes next; the order of the shards depends on it."""
        self.pipeline[0].epoch = epoch


def pipeline(
    dataset: Dataset, *, shuffle_shards: bool = False, seed: int = 0, equal: bool = False
) -> Pipeline:
    """A pipeline whose samples are what webdataset yields: `__key__`, `__url__`, and fields as bytes.

    `shuffle_shards` permutes the shards by (seed, epoch). The samples in that order are cut into one
    stretch a node, and each of these into one a worker; sizes differ by one. `equal` leaves out up to
    one sample a node, so that all nodes get as many. Nodes are told by RANK and WORLD_SIZE or
    torch.distributed, workers by torch's DataLoader.

    Each pass over it in one process is another epoch; where worker processes start anew, say
    `set_epoch`.
    """
    return Pipeline(Source(dataset, shuffle_shards, seed, equal))


class Source:
    """The first stage: the samples of this node and worker."""

    def __init__(self, dataset: Dataset, shuffle_shards: bool, seed: int, equal: bool) -> None:
        self.dataset = dataset
        self.shuffle_shards = shuffle_shards
        self.seed = seed
        self.equal = equal
        self.epoch = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        order = self._order(self.epoch)
        self.epoch += 1
        rank, world_size, worker, workers = pytorch_worker_info()
        first, last = share(0, len(order), rank, world_size, equal=self.equal)
        first, last = share(first, last, worker, workers)
        found = in_turn(self.dataset.reader, order[first:last], self.dataset.fields)
        decode = self.dataset.decode
        return found if decode is None else self.dataset.errors.decoded(decode, found)

    def _order(self, epoch: int) -> np.ndarray:
        catalog, indices = self.dataset.catalog, self.dataset.indices
        numbers = np.arange(len(catalog), dtype=np.int64) if indices is None else indices
        if not self.shuffle_shards:
            return numbers
        text = f"{catalog.digest} {self.seed} {epoch}"
        random = np.random.default_rng(xxhash.xxh3_64_intdigest(text.encode()))
        rank_of = random.permutation(len(catalog.shards))
        shards = np.searchsorted(catalog.starts, numbers, side="right") - 1
        return numbers[np.argsort(rank_of[shards], kind="stable")]


def share(first: int, last: int, part: int, parts: int, *, equal: bool = False) -> tuple[int, int]:
    """Where the stretch of one of `parts` begins and ends; they differ by one at most, or not at all."""
    count = last - first
    if equal:
        count -= count % parts
    return first + count * part // parts, first + count * (part + 1) // parts
