"""Several datasets as one, by weight or temperature."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wds_pipeline.errors import ConfigError
from wds_pipeline.training.dataset import Dataset
from wds_pipeline.training.fork_lock import ForkLock
from wds_pipeline.training.mix_order import MixOrder, shares
from wds_pipeline.training.on_error import RAISE, ErrorPolicy, OnError
from wds_pipeline.training.order import GROUP_BYTES, Order, Shuffle
from wds_pipeline.training.permute import key_of
from wds_pipeline.training.source import DatasetSource, make_stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from wds_pipeline.training.stream import Options
    from wds_pipeline.training.torch_stream import TorchStream

Sample = dict[str, Any]


def mix(
    datasets: Mapping[str, Dataset] | Sequence[Dataset],
    *,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    temperature: float | None = None,
    samples_per_epoch: int | None = None,
) -> Mixture:
    """Several datasets as one, to be streamed; `datasets` by names, or by those that they have.

    `weights` are shares of samples. `temperature` T makes them the sizes to the power 1/T: 1 is as many
    as there are, more favours small datasets (N. Arivazhagan et al., Massively Multilingual Neural
    Machine Translation in the Wild, 2019). By default each sample comes once. `samples_per_epoch` is
    by default the number of all samples. A dataset that is drawn from more often than it has samples
    begins anew, in another order; one that is drawn from less goes on in the next epoch.

    Raises ConfigError.
    """
    if isinstance(datasets, Dataset):
        datasets = [datasets]
    for each in datasets.values() if isinstance(datasets, Mapping) else datasets:
        if not isinstance(each, Dataset):
            raise ConfigError(f"mix: found {each!r:.80}; expected datasets, from `open_dataset`")
    if not isinstance(datasets, Mapping):
        datasets = _by_name(datasets)
    if not datasets:
        raise ConfigError("mix: found no datasets; expected some")
    for name, dataset in datasets.items():
        if not len(dataset):
            raise ConfigError(f"mix: {name} ({dataset.catalog.named}) has no samples; leave it out")
    sizes = {name: len(dataset) for name, dataset in datasets.items()}
    whole = sum(sizes.values()) if samples_per_epoch is None else samples_per_epoch
    if not isinstance(whole, int) or whole < 1:
        raise ConfigError(f"mix: samples_per_epoch: found {whole!r}; expected a whole number")
    counts = _counts(_weights(sizes, weights, temperature), whole)
    return Mixture(dict(datasets), counts)


def _by_name(datasets: Sequence[Dataset]) -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for dataset in datasets:
        name = dataset.catalog.dataset
        if name in found:
            raise ConfigError(
                f"mix: two datasets are named {name}; expected names of their own: "
                '`mix({"one": …, "other": …})`'
            )
        found[name] = dataset
    return found


def _weights(
    sizes: dict[str, int],
    weights: Mapping[str, float] | Sequence[float] | None,
    temperature: float | None,
) -> dict[str, float]:
    if weights is not None and temperature is not None:
        raise ConfigError("mix: found weights and a temperature; expected one of them")
    if temperature is not None:
        if not temperature > 0:
            raise ConfigError(f"mix: temperature: found {temperature!r}; expected one above 0")
        largest = max(sizes.values())
        return {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    if weights is None:
        return {name: float(size) for name, size in sizes.items()}
    if not isinstance(weights, Mapping):
        if len(weights) != len(sizes):
            raise ConfigError(f"mix: weights: found {len(weights)}; expected {len(sizes)}")
        weights = dict(zip(sizes, weights, strict=True))
    if set(weights) != set(sizes):
        raise ConfigError(
            f"mix: weights: found {', '.join(weights)}; expected one for each of {', '.join(sizes)}"
        )
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ConfigError(
                f"mix: weights: {name}: found {weight!r}; expected a number above 0; leave a dataset out "
                "that is not wanted"
            )
    return {name: float(weights[name]) for name in sizes}


def _counts(weights: dict[str, float], whole: int) -> dict[str, int]:
    total = sum(weights.values())
    parts = np.array([round(weight / total * (1 << 52)) for weight in weights.values()], object)
    found = dict(zip(weights, shares(parts, whole).tolist(), strict=True))
    for name, count in found.items():
        if not count:
            raise ConfigError(
                f"mix: {name}: its share of {whole:,} samples is less than one; expected a larger weight or "
                "more samples_per_epoch"
            )
    return found


class Mixture:
    """Datasets that are streamed as one. Each sample also has `__dataset__`, its dataset's name."""

    def __init__(self, datasets: dict[str, Dataset], counts: dict[str, int]) -> None:
        self.datasets = datasets
        self.counts = counts
        """How many samples of each an epoch has."""

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __repr__(self) -> str:
        parts = (
            f"{name}: {count:,} of {len(self.datasets[name]):,} ({count / len(self):.1%})"
            for name, count in self.counts.items()
        )
        return f"<Mixture of {len(self):,} samples an epoch: {', '.join(parts)}>"

    def stream(self, **options: Unpack[Options]) -> TorchStream:
        """Its samples in the order of an epoch: as `Dataset.stream`, with the same options and laws."""
        return make_stream(MixSource(self), options)  # type: ignore[return-value]

    def close(self) -> None:
        """Closes the files of its datasets."""
        for dataset in self.datasets.values():
            dataset.close()


class MixSource:
    """A mixture, as a stream draws from it."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture
        self._sources = {name: DatasetSource(each) for name, each in mixture.datasets.items()}
        self._names = list(self._sources)

    @property
    def named(self) -> str:
        return f"mixture of {', '.join(self._names)}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"dataset": " + ".join(self._names)}

    @property
    def decodes(self) -> bool:
        return any(source.decodes for source in self._sources.values())

    @property
    def on_error(self) -> OnError | ErrorPolicy:
        for source in self._sources.values():
            if source.on_error != RAISE:
                return source.on_error
        return RAISE

    def order(self, seed: int, shuffle: Shuffle) -> MixOrder:
        orders: list[Order] = []
        for source in self._sources.values():
            made = source.order(seed, shuffle)
            same = sum(each.identity["digest"] == made.identity["digest"] for each in orders)
            if same:  # in one order, the same samples would come together
                again = source.order(key_of(seed, same), shuffle)
                again.identity = made.identity
                made = again
            orders.append(made)
        counts = [self.mixture.counts[name] for name in self._names]
        means = (source.mean_bytes for source in self._sources.values())
        share = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
        return MixOrder(orders, counts, seed, max(int(GROUP_BYTES / max(share, 1.0)), 1))

    def read_ahead(self, groups: Iterable[np.ndarray], ahead_bytes: int) -> Iterator[Sample]:
        """The samples of these numbers; each dataset reads ahead by itself."""
        dealt = _Dealt(groups, np.cumsum([0, *map(len, self.mixture.datasets.values())]))
        each_bytes = max(ahead_bytes // len(self._names), 1)
        streams = [
            source.read_ahead(dealt.groups_of(number), each_bytes)
            for number, source in enumerate(self._sources.values())
        ]
        for which in dealt:
            for number in which:
                sample = next(streams[number])
                sample["__dataset__"] = self._names[number]
                yield sample

    def decode(self, sample: Sample) -> Any:
        source = self._sources[sample["__dataset__"]]
        return source.decode(sample) if source.decodes else sample

    def close(self) -> None:
        self.mixture.close()


class _Dealt:
    """Groups of samples, dealt to their datasets; whoever wants more first has them dealt."""

    def __init__(self, groups: Iterable[np.ndarray], offsets: np.ndarray) -> None:
        self._groups = iter(groups)
        self._offsets = offsets
        self._whose: deque[list[int]] = deque()
        self._own: list[deque[np.ndarray]] = [deque() for _ in offsets[1:]]
        self._lock = ForkLock()

    def _deal(self) -> bool:
        group = next(self._groups, None)
        if group is None:
            return False
        which = np.searchsorted(self._offsets, group, side="right") - 1
        self._whose.append(which.tolist())
        for number, own in enumerate(self._own):
            own.append(group[which == number] - self._offsets[number])
        return True

    def __iter__(self) -> Iterator[list[int]]:
        """For each group, the datasets of its samples."""
        while True:
            with self._lock:
                if not self._whose and not self._deal():
                    return
                found = self._whose.popleft()
            yield found

    def groups_of(self, number: int) -> Iterator[np.ndarray]:
        """The groups of a dataset."""
        while True:
            with self._lock:
                if not self._own[number] and not self._deal():
                    return
                found = self._own[number].popleft()
            yield found
