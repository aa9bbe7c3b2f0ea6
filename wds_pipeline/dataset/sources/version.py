"""A published version of another dataset: its samples, where they lie in its shards.

What identifies a member is the digest of its content, which verification noted beside each shard. So a shard
of the other dataset that was packed anew marks only the samples that changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset import seal, shard_report, version
from wds_pipeline.dataset.listing import LISTING, PLACES, LateListing, Listing
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.dataset.origins import ORIGINS, Origins
from wds_pipeline.dataset.query import Query
from wds_pipeline.dataset.query_shard import ShardQuery, Unanswerable, Unknown
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.sources.content_digests import digest_array, fingerprints, read_digests
from wds_pipeline.dataset.sources.tidy import tidy
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    SourceChanged,
    SourceError,
    VerificationError,
    VersionError,
    may_pass,
)
from wds_pipeline.storage import open_storage

_AT_ONCE = 256  # shards between two signs of progress
_KEPT = "sources/digests/"
_FORMAT = "dataset-1"  # of the listing's digest
_DOT = pa.scalar(".", pa.large_string())


@dataclass(frozen=True)
class _Members:
    """The wanted members of one shard, in the tar's order; `digests` as `read_digests` gives them."""

    paths: pa.Array
    sizes: pa.Array
    offsets: pa.Array
    digests: np.ndarray
    positions: np.ndarray
    fields: frozenset[str]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class _Rows:
    """A member index as a query takes it."""

    keys: pa.Array
    first: np.ndarray
    fields: np.ndarray
    field_names: list[str]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


class VersionSource(Source):
    """`source.dataset`: the newest version of another dataset, or one that is pinned."""

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        assert config.source.dataset is not None
        self.spec = config.source.dataset
        place = config.upstream_place(self.spec)
        self.place = place.model_copy(update={"part": "source", "single_writer": False})
        self.upstream = open_storage(self.place)
        self.usage = self.upstream.usage
        self._kept: set[str] = set()
        self._where = ShardQuery()
        if self.spec.where is not None:
            try:
                self._where.add(Query(self.spec.where, "source.dataset.where"))
            except VersionError as error:
                raise ConfigError(str(error)) from None

    @property
    def url(self) -> str:
        """The other dataset, and where it is published."""
        return f"{self.spec.name} ({self.upstream.url})" if self.spec.name else self.upstream.url

    def check(self) -> None:
        """Whether the version is there. Raises SourceError."""
        self.manifest()

    def manifest(self) -> Manifest:
        """The version that a scan of this moment takes. Raises SourceError, ConfigError."""
        number = None if self.spec.version == "latest" else self.spec.version
        with self._told():
            self.upstream.contact()
            if number is None:
                found = version.latest(self.upstream)
            else:
                found = version.try_read(self.upstream, number)
        if found is None:
            with self._told():
                have = version.list_versions(self.upstream)
            raise SourceError(f"{self.dataset}: source.dataset: {self.url}: {self._missing(have)}")
        for split in self.spec.splits or []:
            if split not in found.splits:
                raise ConfigError(
                    f"{self.dataset}: source.dataset.splits: version {found.version} of {found.dataset} "
                    f"has no split {split!r}; it has {', '.join(found.splits)}"
                    f"{did_you_mean(split, found.splits)}"
                )
        return found

    def _missing(self, have: list[int]) -> str:
        if not have:
            build = f"run `wds-pipeline build {self.spec.name}`" if self.spec.name else "build it"
            return f"no version is published there; {build} first"
        known = ", ".join(map(str, have[-10:]))
        return (
            f"version {self.spec.version} is not there, or gc removed it; there are {known}: name one of "
            "them in source.dataset.version, or `latest`"
        )

    def scan(self, progress: Progress | None = None) -> Listing:
        """The version's members; its indexes are read when they are asked for. Raises SourceError,
        ConfigError, and later the same."""
        manifest = self.manifest()
        return LateListing(self._digest(manifest), lambda: self._load(manifest, progress))

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """Reads one small file: the manifest. `files` counts samples. Raises SourceError, ConfigError."""
        began = now()
        manifest = self.manifest()
        splits = [manifest.splits[name] for name in self._splits(manifest)]
        return Look(
            rules="dataset", device=0, began=began, ended=now(),
            files=sum(each.samples for each in splits), bytes=sum(each.bytes for each in splits),
            state=self._digest(manifest), place=None,
        )  # fmt: skip

    def _splits(self, manifest: Manifest) -> list[str]:
        wanted = self.spec.splits
        return [name for name in manifest.splits if wanted is None or name in wanted]

    def _digest(self, manifest: Manifest) -> str:
        """The same for versions with the same shards in these splits."""
        parts = [_FORMAT, self.spec.where or "", *sorted(self.spec.fields or ["*"])]
        parts += [f"{name} {manifest.splits[name].digest}" for name in self._splits(manifest)]
        return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())

    def _load(self, manifest: Manifest, progress: Progress | None) -> Listing:
        with self._told(manifest):
            shards = [each for name in self._splits(manifest) for each in manifest.of_split(name)]
            parts: list[_Members] = []
            for start in range(0, len(shards), _AT_ONCE):
                some = shards[start : start + _AT_ONCE]
                parts += self.upstream.at_once(self._members, some)
                if progress is not None:
                    progress("scan", len(parts), len(shards))
        self._check_known(manifest, parts)
        if self.keep is not None and self._kept and self.alone:
            tidy(self.keep, _KEPT, self._kept)
        counts = np.array([len(part) for part in parts], np.int64)
        files = pa.table(
            [
                pa.chunked_array([part.paths for part in parts], pa.large_string()),
                pa.chunked_array([part.sizes for part in parts], pa.int64()),
                fingerprints(np.concatenate([part.digests for part in parts])),
                pa.nulls(int(counts.sum()), pa.string()),
            ],
            schema=LISTING,
        )
        splits = _repeated([each.split for each in shards], counts, pa.string())
        places = None
        if self.config.shards.layout == "source":
            slots = np.array([each.slot for each in shards], np.int32)
            positions = np.concatenate([part.positions for part in parts])
            places = pa.table([splits, np.repeat(slots, counts), positions], schema=PLACES)
        return Listing(
            files,
            origins=Origins((self.place,), _origins(shards, parts, counts)),
            places=places,
            splits=splits,
            made_of={
                "dataset": manifest.dataset, "url": self.upstream.url,
                "version": manifest.version, "digest": manifest.digest,
            },
        )  # fmt: skip

    def _check_known(self, manifest: Manifest, parts: list[_Members]) -> None:
        """Raises ConfigError for fields that no sample has, and if no sample is left."""
        named = f"version {manifest.version} of {manifest.dataset}"
        known = sorted(frozenset[str]().union(*(part.fields for part in parts)))
        asked = {"where": sorted(self._where.fields), "fields": self.spec.fields or []}
        for key, fields in asked.items():
            for field in fields:
                if field not in known:
                    raise ConfigError(
                        f"{self.dataset}: source.dataset.{key}: no sample of {named} has a field "
                        f"{field!r}; there are {', '.join(known)}{did_you_mean(field, known)}"
                    )
        for name in self._where.without_values():
            field, _, column = name.rpartition(".")
            raise ConfigError(
                f"{self.dataset}: source.dataset.where: it asks for {name}, but no {field} of {named} has "
                f"a {column}"
            )
        if not any(map(len, parts)):
            raise ConfigError(
                f"{self.dataset}: source.dataset.where: no sample of {named} answers {self.spec.where!r}; "
                "expected one at least"
            )

    def _members(self, shard: ShardEntry) -> _Members:
        """What is wanted of one shard."""
        index = seal.read_member_index(self.upstream, shard.name).combine_chunks()
        count = index.num_rows
        names = index["field"].combine_chunks().dictionary_encode()
        codes, known = names.indices.to_numpy(), names.dictionary.to_pylist()
        keys = index["key"].combine_chunks()
        begins = np.ones(count, bool)
        begins[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
        sample = np.cumsum(begins) - 1
        taken = np.ones(count, bool)
        if self._where:
            first = np.append(np.flatnonzero(begins), count)
            sizes = index["size"].to_numpy()
            rows = _Rows(keys.filter(pa.array(begins)), first, codes, known, sizes)
            taken = np.isin(sample, self._answer(shard, rows))
        if self.spec.fields is not None:
            wanted = [code for code, name in enumerate(known) if name in self.spec.fields]
            taken &= np.isin(codes, wanted)
        digests = self._digests(shard, index)
        if not taken.all():
            index, digests, sample = index.filter(pa.array(taken)), digests[taken], sample[taken]
        paths = pc.binary_join_element_wise(
            index["key"].cast(pa.large_string()), index["field"].cast(pa.large_string()), _DOT
        )
        return _Members(
            paths.combine_chunks(), index["size"].combine_chunks(), index["offset"].combine_chunks(),
            digests, sample, frozenset(known),
        )  # fmt: skip

    def _answer(self, shard: ShardEntry, rows: _Rows) -> np.ndarray:
        at = f"{self.dataset}: source.dataset.where: "
        try:
            read = partial(shard_report.read_columns, self.upstream, shard.name)
            return self._where.choose(rows, read)
        except Unanswerable as error:
            raise ConfigError(f"{at}{error}") from error
        except Unknown as error:
            raise SourceError(
                f"{at}{self.upstream.locate(shard.path)}: {error.column} is not known: {error.why}; "
                f"`wds-pipeline verify {self.spec.name or 'NAME'} --level decode` of the other dataset "
                "finds it out"
            ) from error

    def _digests(self, shard: ShardEntry, index: pa.Table) -> np.ndarray:
        """The digests of all members of a shard: from its report, else by reading it once."""
        report = shard_report.read_columns(self.upstream, shard.name, ["size", "digest"])
        if (
            report is not None
            and report["digest"].null_count == 0
            and report["size"].equals(index["size"])
        ):
            return digest_array(report["digest"])
        kept = f"{_KEPT}{xxhash.xxh3_128_hexdigest(f'{shard.name} {shard.digest}'.encode())}"
        self._kept.add(kept)
        if self.keep is not None:
            try:
                data = self.keep.read(kept)
            except FileNotFoundError:
                data = b""
            if len(data) == 16 * index.num_rows:
                return np.frombuffer(data, np.uint8).reshape(-1, 16)
        offsets, sizes = index["offset"].to_numpy(), index["size"].to_numpy()
        found = read_digests(self.upstream, shard.path, offsets, sizes)
        if self.keep is not None:
            self.keep.put(kept, found.tobytes())
        return found

    @contextmanager
    def _told(self, manifest: Manifest | None = None) -> Iterator[None]:
        """Errors of the other dataset's files as errors of this one's source."""
        try:
            yield
        except (VersionError, VerificationError, DestinationError, SourceChanged, OSError) as error:
            what = f"{self.dataset}: source.dataset: {error}"
            passing = may_pass(error)
            if manifest is not None and self._is_gone(manifest):
                what = (
                    f"{self.dataset}: source.dataset: {self.url}: version {manifest.version} was removed "
                    "while it was read; build again, and keep versions longer (retention.versions, .days)"
                )
                passing = self.spec.version == "latest"
            told = SourceError(what)
            told.passing = passing
            raise told from error

    def _is_gone(self, manifest: Manifest) -> bool:
        try:
            where = version.folder(manifest.version) + "manifest.json"
            return self.upstream.stat(where) is None
        except (DestinationError, SourceError, OSError):
            return False


def _repeated(values: list[str], counts: np.ndarray, kind: pa.DataType) -> pa.DictionaryArray:
    """Each value so many times."""
    names = list(dict.fromkeys(values))
    number = {name: code for code, name in enumerate(names)}
    codes = np.array([number[value] for value in values], np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(np.repeat(codes, counts)), pa.array(names, kind))


def _origins(shards: list[ShardEntry], parts: list[_Members], counts: np.ndarray) -> pa.Table:
    total = int(counts.sum())
    offsets: list[Any] = [part.offsets for part in parts]
    return pa.table(
        [
            pa.array(np.zeros(total, np.int16)),
            _repeated([each.path for each in shards], counts, pa.large_string()),
            pa.concat_arrays(offsets),
            pa.nulls(total, pa.large_binary()),
        ],
        schema=ORIGINS,
    )
