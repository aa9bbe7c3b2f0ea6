"""Several sources as one: each one's samples below a folder with its label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.config import DatasetConfig, SourceConfig
from wds_pipeline.config_source import KINDS, MergePart
from wds_pipeline.config_storage import Place
from wds_pipeline.dataset.listing import LISTING, LateListing, Listing
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.origins import ORIGINS, Origins
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline.storage import CONTENT, Usage

_FORMAT = "merge-1"  # of the listing's digest
_SPLIT = pa.dictionary(pa.int32(), pa.string())


class MergeSource(Source):
    """`source.merge`: parts of any other kind, whose keys their labels keep apart."""

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        assert config.source.merge is not None
        self.spec = config.source.merge
        self._check_field()
        self.parts: dict[str, Source] = {}
        self._counted = Usage()
        for part in self.spec.parts:
            with self._named(part.label):
                self.parts[part.label] = _open(config, part)

    def _check_field(self) -> None:
        field, fields = self.spec.label_field, self.config.samples.fields
        if not field:
            return
        if field != field.lower().strip(". ") or "/" in field or field.startswith("__"):
            raise ConfigError(
                f"source.merge.label_field: found {field!r}; expected a field such as source.txt"
            )
        if fields is not None and not any(field in (name, *exts) for name, exts in fields.items()):
            raise ConfigError(
                f"source.merge.label_field: {field!r} is not in samples.fields ({', '.join(fields)}); "
                "add it there"
            )

    def check(self) -> None:
        """Whether every part is there. Raises SourceError, ConfigError."""
        for label, part in self.parts.items():
            with self._named(label):
                part.check()

    def scan(self, progress: Progress | None = None) -> Listing:
        """Scans all parts; what is read late of one, is read late of the whole. Raises SourceError,
        ConfigError, DataError."""
        listings: dict[str, Listing] = {}
        for label, part in self.parts.items():
            part.keep, part.alone = self.keep, False
            with self._named(label):
                listings[label] = part.scan(progress)
        self.fetched = any(part.fetched for part in self.parts.values())
        self.warnings = [
            f"{label}: {each}" for label in self.parts for each in self.parts[label].warnings
        ]
        self._count()
        digest = self._digest({label: each.digest for label, each in listings.items()})
        return LateListing(digest, lambda: self._load(listings))

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """Looks at each part. Raises SourceError, ConfigError."""
        began = now()
        looks: dict[str, Look] = {}
        for label, part in self.parts.items():
            with self._named(label):
                looks[label] = part.look(seconds, now=now, clock=clock)
        return Look(
            rules="merge", device=0, began=began, ended=now(),
            files=sum(each.files for each in looks.values()),
            bytes=sum(each.bytes for each in looks.values()),
            state=self._digest({label: each.digest for label, each in looks.items()}), place=None,
        )  # fmt: skip

    def _digest(self, digests: dict[str, str]) -> str:
        parts = [_FORMAT, self.spec.label_field, *(f"{k} {v}" for k, v in sorted(digests.items()))]
        return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())

    def _load(self, listings: dict[str, Listing]) -> Listing:
        files: list[pa.Table] = []
        origins: list[pa.Table] = []
        splits: list[pa.Array] = []
        stores: list[Place] = []
        skipped: dict[str, int] = {}
        examples: dict[str, list[str]] = {}
        details: dict[str, str] = {}
        made_of: dict[str, Any] = {}
        for label, each in listings.items():
            with self._named(label):
                rows = each.files
            found = self._labelled(label, each, rows)
            files.append(found.files)
            assert found.origins is not None and found.splits is not None
            origins.append(_renumbered(found.origins.table, len(stores)))
            stores += found.origins.stores
            splits.append(found.splits)
            for code, count in each.skipped.items():
                skipped[code] = skipped.get(code, 0) + count
                examples.setdefault(code, []).extend(each.examples.get(code, [])[:1])
            details |= {f"{label}/{path}": text for path, text in each.details.items()}
            if each.made_of:
                made_of[label] = each.made_of
        self._count()
        return Listing(
            pa.concat_tables(files),
            [table.num_rows for table in files],
            skipped,
            examples,
            origins=Origins(
                tuple(stores), pa.concat_tables(origins).unify_dictionaries().combine_chunks()
            ),
            splits=_joined(splits),
            details=details,
            made_of=made_of,
        )

    def _labelled(self, label: str, found: Listing, rows: pa.Table) -> Listing:
        """One part's rows below its label, with the rows of the field that says it."""
        count = rows.num_rows
        assert found.origins is not None, label
        origins = found.origins.table.select(ORIGINS.names)
        splits = found.splits if found.splits is not None else pa.nulls(count, _SPLIT)
        paths = pc.binary_join_element_wise(
            _text(label), rows["path"], pa.scalar("/", pa.large_string())
        )
        files = rows.select(LISTING.names).set_column(0, LISTING.field("path"), paths)
        if self.spec.label_field:
            first, keys = self._samples(files)
            more = self._label_rows(label, keys)
            files = pa.concat_tables([files, more[0]])
            origins = pa.concat_tables([origins, more[1]])
            splits = _joined([splits, splits.take(first)])
        return Listing(files, origins=Origins(found.origins.stores, origins), splits=splits)

    def _samples(self, files: pa.Table) -> tuple[pa.Array, pa.Array]:
        """The first row of each sample, and its key as the names say it."""
        rules = self.config.samples.model_copy(update={"key": None, "fields": None})
        keys = assign(files, rules)["key"].combine_chunks()
        encoded = keys.dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy()
        numbers, first = np.unique(codes, return_index=True)
        first = pa.array(first[numbers >= 0])
        return first, keys.take(first)

    def _label_rows(self, label: str, keys: pa.Array) -> tuple[pa.Table, pa.Table]:
        data, count = label.encode(), len(keys)
        end = pa.scalar(f".{self.spec.label_field}", pa.large_string())
        files = [
            pc.binary_join_element_wise(keys, end, pa.scalar("", pa.large_string())),
            pa.array(np.full(count, len(data), np.int64)),
            pa.repeat(_text(f"{CONTENT}{xxhash.xxh3_128_hexdigest(data)}"), count),
            pa.nulls(count, pa.string()),
        ]
        origins = [
            pa.array(np.full(count, -1, np.int16)),
            pa.nulls(count, ORIGINS.field("file").type),
            pa.nulls(count, pa.int64()),
            pa.repeat(pa.scalar(data, pa.large_binary()), count),
        ]
        return pa.table(files, schema=LISTING), pa.table(origins, schema=ORIGINS)

    def _count(self) -> None:
        """Adds what the parts asked for since the last call."""
        total = Usage()
        for part in self.parts.values():
            total.add(part.usage)
        before = self._counted.values()
        self.usage.add(Usage(**{name: n - before[name] for name, n in total.values().items()}))
        self._counted = total

    @contextmanager
    def _named(self, label: str) -> Iterator[None]:
        """Errors of a part, with its label."""
        try:
            yield
        except (ConfigError, SourceError, DataError) as error:
            text = str(error).removeprefix(f"{self.dataset}: ")
            told = type(error)(f"{self.dataset}: source.merge: the part {label!r}: {text}")
            told.passing = error.passing
            raise told from error


def _open(config: DatasetConfig, part: MergePart) -> Source:
    from wds_pipeline.dataset.sources import open_source

    kind = next(each for each in KINDS if getattr(part, each, None) is not None)
    source = SourceConfig(**{kind: getattr(part, kind)})
    return open_source(config.model_copy(update={"source": source}))


def _renumbered(table: pa.Table, first: int) -> pa.Table:
    """Origins whose stores' numbers count on from those before."""
    store = table["store"].to_numpy()
    store = np.where(store >= 0, store + first, store).astype(np.int16)
    return table.set_column(0, ORIGINS.field("store"), pa.array(store))


def _joined(columns: list[pa.Array]) -> pa.DictionaryArray:
    """Dictionary columns as one array."""
    parts = [
        piece for each in columns for piece in (each.chunks if hasattr(each, "chunks") else [each])
    ]
    found = pa.chunked_array(parts, _SPLIT).unify_dictionaries().combine_chunks()
    return pa.concat_arrays(found.chunks) if isinstance(found, pa.ChunkedArray) else found


def _text(value: str) -> pa.Scalar:
    return pa.scalar(value, pa.large_string())
