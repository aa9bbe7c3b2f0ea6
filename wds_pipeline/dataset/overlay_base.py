"""The base of an overlay: a published version of another dataset, and where each of its samples is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.errors import (
    DestinationError,
    SourceError,
    VerificationError,
    VersionError,
    may_pass,
)
from wds_pipeline.storage import Storage, open_storage


class Base:
    """A version of the dataset that an overlay is of."""

    def __init__(self, config: DatasetConfig, number: int | None = None) -> None:
        """The version that the configuration names, or this one. Raises SourceError, ConfigError."""
        assert config.overlay is not None
        self._spec, self._config = config.overlay.base, config
        place = config.upstream_place(self._spec)
        place = place.model_copy(update={"part": "source", "single_writer": False})
        self.storage: Storage = open_storage(place)
        if number is None and self._spec.version != "latest":
            number = self._spec.version
        with self._told():
            self.storage.contact()
            self.manifest: Manifest = version.read(self.storage, number, self._spec.name or "base")

    @property
    def named(self) -> str:
        """How messages name it."""
        return f"{self.manifest.dataset} version {self.manifest.version}"

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says of it; its URL as the YAML file has it."""
        written = self._config.written.get("overlay", {}).get("base", {})
        url = written.get("url", "") if isinstance(written, dict) else ""
        found = {
            "dataset": self.manifest.dataset,
            "version": self.manifest.version,
            "digest": self.manifest.digest,
            "samples": self.manifest.total_samples,
        }
        return {**found, "url": url} if url else found

    @cached_property
    def places(self) -> pa.Table:
        """The columns key, split, slot and position (it orders the samples of a slot) of all its samples.

        Raises SourceError.
        """
        with self._told():
            if self.manifest.transforms:  # whose ledger has the keys of what went in
                return self._of_indexes()
            table = version.read_table(self.storage, self.manifest, version.LEDGER)
        return _places(table["key"], table["split"], table["slot"])

    def why_not(self, keys: pa.Array) -> dict[str, str]:
        """Of keys that it lacks, why those that it left out were. Raises SourceError."""
        if not self.manifest.quarantined:
            return {}
        with self._told():
            table = version.read_table(self.storage, self.manifest, version.QUARANTINE)
        here = table.filter(pc.is_in(table["key"], value_set=keys.cast(table["key"].type)))
        columns = (here["key"].to_pylist(), here["reason"].to_pylist())
        return dict(zip(*columns, strict=True))

    def _of_indexes(self) -> pa.Table:
        shards = self.manifest.shards

        def keys_of(name: str) -> pa.Array:
            return distinct(seal.read_member_index(self.storage, name)["key"])

        found = self.storage.at_once(keys_of, [shard.name for shard in shards])
        counts = [len(keys) for keys in found]
        splits = pa.array([shard.split for shard in shards], pa.string()).dictionary_encode()
        at = pa.array(np.repeat(np.arange(len(shards)), counts))
        slots = pa.array([shard.slot for shard in shards], pa.int32())
        keys = pa.chunked_array(found, pa.large_string())
        return _places(keys, splits.take(at), slots.take(at))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the base's files as errors of what this dataset is made of."""
        try:
            yield
        except (VersionError, VerificationError, DestinationError, OSError) as error:
            told = SourceError(f"{self._config.name}: overlay.base: {error}")
            told.passing = may_pass(error)
            raise told from error


def distinct(keys: pa.ChunkedArray) -> pa.Array:
    """A column of members' keys as one key a sample: a sample's members are adjacent."""
    wide = keys.cast(pa.large_string()).combine_chunks()
    array = pa.concat_arrays(wide.chunks) if isinstance(wide, pa.ChunkedArray) else wide
    if not len(array):
        return array
    new = pc.not_equal(array.slice(1), array.slice(0, len(array) - 1))
    return array.filter(pa.concat_arrays([pa.array([True]), new]))


def _places(keys: pa.ChunkedArray, splits: pa.ChunkedArray, slots: pa.ChunkedArray) -> pa.Table:
    positions = pa.array(np.arange(len(keys), dtype=np.int64))
    table = pa.table({"key": keys, "split": splits, "slot": slots, "position": positions})
    return table.combine_chunks()
