"""A stage for pipelines of webdataset's: adds overlays to samples that it reads of the base's tars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wds_pipeline.dataset import view
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.training.overlay import JoinedCatalog, Part
from wds_pipeline.training.reading import Reader, open_reader

if TYPE_CHECKING:
    from wds_pipeline.training.dataset import Dataset

_NAMES = ("__key__", "__url__", "__index__")


def join_shards(dataset: Dataset, missing: Literal["keep", "skip", "error"] = "keep") -> JoinShards:
    """A stage that adds the overlays of a dataset to samples that webdataset reads of its shards.

        dataset = open_dataset(base, split="train", overlays=[captions])
        wds.WebDataset(dataset.urls).compose(join_shards(dataset)).decode("pil")

    It belongs right behind the reading: a sample says by `__url__` of which shard it is. What each node and
    worker has of the shards is webdataset's affair. The overlays' samples (of `fields`, if `open_dataset` was
    given some) are read by their member index, in the base's order, some MB ahead; out of that order one by
    one. Fields that both have are the overlay's.

    Raises ConfigError for a dataset without overlays. Iterating raises VersionError for a sample that is not
    of these shards; or that an overlay lacks, with `missing="error"`.
    """
    if not isinstance(dataset.catalog, JoinedCatalog):
        raise ConfigError(
            f"{dataset.catalog.named}: join_shards: it has no overlays; open it with overlays=[…]"
        )
    if dataset.indices is not None:
        raise ConfigError(
            f"{dataset.catalog.named}: join_shards: it is a selection; expected the whole dataset or split "
            "(to leave out samples that an overlay lacks: join_shards(dataset, missing='skip'))"
        )
    if missing not in ("keep", "skip", "error"):
        raise ConfigError(
            f"{dataset.catalog.named}: join_shards: missing: found {missing!r}; expected keep, skip or error"
        )
    return JoinShards(dataset, missing)


class JoinShards:
    """The stage: called with an iterator of samples. Goes to worker processes small."""

    def __init__(self, dataset: Dataset, missing: str) -> None:
        self._dataset, self._missing = dataset, missing
        self._start_over()

    def _start_over(self) -> None:
        self._readers: list[tuple[Part, Reader]] | None = None
        self._shards: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": self._dataset, "_missing": self._missing}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_over()

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The samples with the overlays' fields."""
        url: str | None = None
        coming: list[_Coming] = []
        rows: dict[str, int] = {}
        try:
            for sample in samples:
                if sample.get("__url__") != url:
                    for each in coming:
                        each.close()
                    url = sample.get("__url__")
                    coming, rows = self._begin(url)
                found = self._joined(sample, coming, rows)
                if found is not None:
                    yield found
        finally:
            for each in coming:
                each.close()

    def _joined(
        self, sample: dict[str, Any], coming: list[_Coming], rows: dict[str, int]
    ) -> dict[str, Any] | None:
        row = rows.get(sample["__key__"])
        if row is None:
            raise VersionError(
                f"{self._dataset.catalog.named}: join_shards: {sample['__url__']}: found a sample "
                f"{sample['__key__']!r} that its member index lacks; put this stage before those that "
                "change keys"
            )
        for each in coming:
            other = each.take(row)
            if other is None:
                if self._missing == "skip":
                    return None
                if self._missing == "error":
                    raise VersionError(
                        f"{each.part.catalog.named} has nothing for {sample['__key__']!r}, a sample of "
                        f"{self._dataset.catalog.named}"
                    )
                continue
            fields = {name: value for name, value in other.items() if name not in _NAMES}
            sample = {**sample, **fields}
        return sample

    def _begin(self, url: str | None) -> tuple[list[_Coming], dict[str, int]]:
        """What the overlays have for the samples of a shard, and each key's place in it."""
        catalog = self._dataset.catalog
        assert isinstance(catalog, JoinedCatalog)
        joined = catalog.content
        shard = self._shard(url)
        start, stop = (int(each) for each in joined.base.starts[shard : shard + 2])
        if self._readers is None:
            options = {"cache": self._dataset.cache, "verify": self._dataset.verify}
            self._readers = [(part, open_reader(part.catalog, **options)) for part in joined.parts]
        indices = np.arange(start, stop)
        coming = [
            _Coming(part, reader, part.numbers(indices), _both(part.fields, self._dataset.fields))
            for part, reader in self._readers
        ]
        keys = joined.base.members(shard).key_list(0, stop - start)
        return coming, {key: row for row, key in enumerate(keys)}

    def _shard(self, url: str | None) -> int:
        """The number of the shard that a URL names: as `urls` gives it, or by its name in a view."""
        catalog = self._dataset.catalog
        if not self._shards:
            numbers = {each.path: number for number, each in enumerate(catalog.shards)}
            self._shards = {each.url: number for number, each in enumerate(catalog.shards)}
            manifest = catalog.content.manifest  # type: ignore[attr-defined]
            if isinstance(manifest, Manifest):
                for path, shard in view.view_names(manifest):
                    if shard.path in numbers:
                        self._shards[catalog.storage.locate(path)] = numbers[shard.path]
        for part in str(url).removeprefix("file:").split(" "):  # `pipe:aws s3 cp URL -`
            if part in self._shards:
                return self._shards[part]
        raise VersionError(
            f"{catalog.named}: join_shards: found a sample of {url}; expected one of its shards, such as "
            f"{next(iter(self._shards), 'none')}: take the URLs of the same open_dataset, and put this "
            "stage right behind the reading"
        )


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """The fields that both name; None is all."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


class _Coming:
    """An overlay's samples for a shard of the base, in its order."""

    def __init__(
        self, part: Part, reader: Reader, numbers: np.ndarray, fields: frozenset[str] | None
    ) -> None:
        self.part, self._reader, self._fields = part, reader, fields
        self._numbers = numbers
        self._left = self._read(0)

    def _read(self, row: int) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = row + np.flatnonzero(self._numbers[row:] >= 0)
        if not len(rows):
            return
        found = self._reader.read_ahead([self._numbers[rows]], self._fields)
        with closing(found):  # type: ignore[type-var]
            yield from zip(rows.tolist(), found, strict=True)

    def take(self, row: int) -> dict[str, Any] | None:
        """What belongs to the sample at this place of the shard; None if nothing does."""
        number = int(self._numbers[row])
        if number < 0:
            return None
        for at, sample in self._left:
            if at == row:
                return sample
            if at > row:  # asked for out of order: from here on, each alone
                self._left = iter(())
        return self._reader.read([number], self._fields)[0]

    def close(self) -> None:
        """Reads no more."""
        close = getattr(self._left, "close", None)
        if close is not None:
            close()
