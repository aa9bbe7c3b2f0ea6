"""How well shuffles mix: scores of the order in which the samples of an epoch are read.

No sample is read: an order is an array that says for each position which stored sample is read there. The
samples lie in shards of the same size; the shuffles are those of the libraries themselves, on numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks import readers
from benchmarks.measure import Section, Settings, Table, log
from wds_pipeline.training.order import Order, Shuffle

_BATCH = 256
_CLASSES = 100
_NEAR = 100  # samples: how many in a row are neighbours
_DIGEST = "xxh3-128:00000000000000000000000000000000"


@dataclass(frozen=True)
class _Stored:
    """A dataset: shards of so many samples of so many bytes."""

    shards: int
    in_shard: int
    mean_bytes: int

    @property
    def count(self) -> int:
        return self.shards * self.in_shard

    @property
    def sizes(self) -> np.ndarray:
        return np.full(self.shards, self.in_shard, np.int64)


_STORED = {
    "typical": _Stored(200, 2500, 100_000),
    "small": _Stored(40, 25_000, 10_000),
}


def run(settings: Settings) -> Section:
    section = Section("How well shuffles mix")
    for name in settings.corpora:
        stored = _STORED[name]
        if settings.quick:
            stored = _Stored(stored.shards // 4, stored.in_shard, stored.mean_bytes)
        section.tables.append(_table(name, stored))
    section.notes += [
        '"moved": the mean distance from where a sample is stored to where it is read, as a share of that '
        "of a perfect shuffle (a third of the dataset).",
        f'"pairs of a shard": how many times as often two samples of a batch of {_BATCH} are of the same '
        f'shard as in a perfect shuffle; "pairs of neighbours": of the same {_NEAR} samples that are stored '
        "one after the other. 1 is perfect.",
        f'"classes in a batch": if the samples were stored class by class, {_CLASSES} of them, how many '
        f"would be in a batch of {_BATCH}.",
        '"again together": of the pairs of a batch, how many times as many as in a perfect shuffle are in '
        "one batch in the next epoch too.",
        '"held": how many samples lie in memory for it.',
    ]
    return section


def _table(name: str, stored: _Stored) -> Table:
    each = f"{stored.in_shard:,} samples of {stored.mean_bytes / 1000:.0f} KB"
    title = f"{name}: {stored.shards} shards of {each}"
    columns = [
        *("what", "moved", "pairs of a shard", "pairs of neighbours", "classes in a batch"),
        *("again together", "held"),
    ]
    table = Table(title, columns)
    for who, (order, held) in _orders(stored).items():
        log(who)
        first, second = order(0), order(1)
        if not (np.bincount(first, minlength=stored.count) == 1).all():
            raise RuntimeError(f"{who}: not every sample was read once")
        table.rows.append([who, *scores(first, second, stored.in_shard), held])
    return table


def _orders(stored: _Stored) -> dict[str, tuple[Callable[[int], np.ndarray], str]]:
    """By name, what gives the order of an epoch, and how many samples it holds in memory."""

    def ours(shuffle: Shuffle) -> Callable[[int], np.ndarray]:
        order = Order(stored.sizes, _DIGEST, 0, shuffle, stored.mean_bytes)
        return lambda epoch: order.at(epoch, np.arange(stored.count))

    usual = f"{int(128e6 / stored.mean_bytes):,}"
    found: dict[str, tuple[Callable[[int], np.ndarray], str]] = {
        "perfect: `np.random.permutation`": (
            lambda epoch: np.random.default_rng(epoch).permutation(stored.count),
            f"{stored.count:,}",
        ),
        'wds_pipeline, `shuffle="full"`': (ours(Shuffle("full")), "batches read ahead"),
        'wds_pipeline, `shuffle="window"` (128 MB)': (ours(Shuffle()), usual),
        "wds_pipeline, `Shuffle(window=1000)`": (ours(Shuffle(window=1000)), "1,000"),
        "wds_pipeline, `Shuffle(window=10_000)`": (ours(Shuffle(window=10_000)), "10,000"),
    }
    for buffer in (1000, 10_000):
        found[f"webdataset, shards shuffled, `.shuffle({buffer})`"] = (
            partial(_webdataset, stored, buffer),
            f"{buffer:,}",
        )
    if readers.here(readers.MOSAIC):
        found["MosaicML streaming, `py1e`, its default"] = (
            lambda epoch: _mosaic(stored, epoch),
            "shards on disk",
        )
    found["none: stored order"] = (lambda epoch: np.arange(stored.count), "0")
    return found


def _webdataset(stored: _Stored, buffer: int, epoch: int) -> np.ndarray:
    """The shuffles that `WebDataset(urls, shardshuffle=…).shuffle(…)` is made of, on numbers."""
    from webdataset import filters

    def samples(shards: Iterator[int]) -> Iterator[int]:
        for shard in shards:
            yield from range(shard * stored.in_shard, (shard + 1) * stored.in_shard)

    shards = filters.shuffle(stored.shards, seed=epoch)(iter(range(stored.shards)))
    mixed: Any = filters.shuffle(buffer, seed=epoch)(samples(shards))
    return np.fromiter(mixed, np.int64, stored.count)


def _mosaic(stored: _Stored, epoch: int) -> np.ndarray:
    """What StreamingDataset(shuffle=True) does with its own shards, of 67 MB, on one node."""
    readers.mend_torchvision()
    get_shuffle = import_module("streaming.base.shuffle").get_shuffle
    in_shard = (1 << 26) // stored.mean_bytes
    sizes = np.full(-(-stored.count // in_shard), in_shard, np.int64)
    sizes[-1] = stored.count - in_shard * (len(sizes) - 1)
    found: np.ndarray = get_shuffle("py1e", sizes, 1, 9176, epoch, max(4_000_000, 1 << 18))
    return found


def scores(order: np.ndarray, following: np.ndarray, in_shard: int) -> tuple[float, ...]:
    """Moved, pairs of a shard, pairs of neighbours, classes in a batch, again together: see `run`."""
    count = len(order)
    moved = float(np.abs(order - np.arange(count)).mean()) / ((count * count - 1) / (3 * count))
    place = np.empty(count, np.int64)
    place[following] = np.arange(count)
    return (
        moved,
        _pairs(order // in_shard, in_shard / count),
        _pairs(order // _NEAR, _NEAR / count),
        _distinct(order * _CLASSES // count),
        _pairs(place[order] // _BATCH, _BATCH / count),
    )


def _pairs(groups: np.ndarray, share: float) -> float:
    """How many pairs in a batch are of one group, in proportion to those of a perfect shuffle.

    `share`: how large a part of all samples a group is. Of two samples that are drawn one after the
    other, the second has one chance fewer to be of the first one's group.
    """
    number, counts = _in_batches(groups)
    pairs = int((counts * (counts - 1)).sum()) / (number * _BATCH * (_BATCH - 1))
    return pairs * (len(groups) - 1) / (share * len(groups) - 1)


def _distinct(groups: np.ndarray) -> float:
    """How many groups are in a batch."""
    number, counts = _in_batches(groups)
    return len(counts) / number


def _in_batches(groups: np.ndarray) -> tuple[int, np.ndarray]:
    """How many whole batches there are, and of each group that is in one how many samples."""
    number = len(groups) // _BATCH
    batch = np.arange(number * _BATCH) // _BATCH
    _, counts = np.unique(
        batch * (int(groups.max()) + 1) + groups[: len(batch)], return_counts=True
    )
    return number, counts
