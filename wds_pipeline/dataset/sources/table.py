"""A table as a source: a row a sample, a column a field; cells are contents, paths of files, or URLs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_source import ColumnConfig
from wds_pipeline.config_storage import Place, StorageConfig
from wds_pipeline.dataset.sources.base import Progress
from wds_pipeline.dataset.sources.declared import DATA, FILE, REMOTE, Declared, Names, names_of
from wds_pipeline.dataset.sources.download import Download, Downloader
from wds_pipeline.dataset.sources.fetch import fetch_all
from wds_pipeline.dataset.sources.kept import Kept
from wds_pipeline.dataset.sources.listed import ListedSource
from wds_pipeline.dataset.sources.read_table import KEY, Chunk, Wanted, read_table
from wds_pipeline.dataset.sources.table_files import TableFiles, find_table
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import open_storage

_KINDS = {"value": DATA, "path": FILE, "url": REMOTE}


class TableSource(ListedSource):
    """`source.table`. URLs are downloaded while scanning, and kept at the destination."""

    keeps = "downloads"
    fetches = ("URL", "URLs")

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        if config.source.table is None:
            raise ConfigError(f"{config.name}: source.table is missing")
        self._table = config.source.table
        for field in self._table.fields:
            _check_field(field, config.name)

    def check(self) -> None:
        """Whether the table is there. Raises SourceError, ConfigError."""
        self._find()

    def _find(self) -> TableFiles:
        return find_table(self.url, self._table.storage, self.dataset, self._table.format)

    def state(self) -> str:
        if any(column.holds == "path" for column in self._table.fields.values()):
            return ""
        found = self._find()
        files = [(file.path, file.state) for file in found.files]
        if found.format == "parquet":  # a cell may be the path of an image
            return ""
        return repr((self.url, self._table.model_dump_json(), self.config.samples.naming, files))

    def declare(self, progress: Progress | None = None) -> Declared:
        """Reads the rows. Raises SourceError, ConfigError, DataError."""
        found = self._find()
        self.skipped = {"other_format": found.others} if found.others else {}
        self.examples = {"other_format": found.examples} if found.others else {}
        self.bases, numbers = [], {}
        for field, column in self._table.fields.items():
            numbers[field] = self._base_number(column, found)
        self.opened = [found.storage, *self.bases]
        key = self._table.key or ("hash" if found.format == "txt" else "")
        columns = {field: column.column for field, column in self._table.fields.items()}
        wanted = Wanted(found, {**columns, **({KEY: key} if key else {})}, self.dataset)
        chunks: list[tuple[int, Chunk]] = []
        declared = Declared(lambda row: _where(chunks, row), put_away=self.put_away())
        first = 0
        for chunk in read_table(wanted):
            chunks.append((first, Chunk(chunk.file, chunk.noun, chunk.numbers, {}, {})))
            self._declare_chunk(chunk, first, declared, numbers)
            first += len(chunk)
            if progress is not None:
                progress("scan", first, 0)
        return declared

    def _base_number(self, column: ColumnConfig, found: TableFiles) -> int:
        """Which of the bases a column's paths start at; it is opened."""
        place = found.storage.place
        if column.base:
            url = self.config.resolve(column.base)
            same = url.partition("://")[0] == place.url.partition("://")[0]
            storage = self._table.storage if same or "://" not in place.url else StorageConfig()
            place = Place(url=url, storage=storage, dataset=self.dataset, part="source")
        for number, each in enumerate(self.bases):
            if each.place == place:
                return number
        self.bases.append(open_storage(place))
        return len(self.bases) - 1

    def _declare_chunk(
        self, chunk: Chunk, first: int, declared: Declared, bases: dict[str, int]
    ) -> None:
        lacking: list[tuple[int, str]] = []

        def note(row: int, stem: str) -> None:
            lacking.append((row, stem))

        escape = self.config.samples.naming != "escape"
        names: Names = names_of(chunk.cells.get(KEY), len(chunk), first, escape, note)
        declared.names(names)
        for row, stem in lacking:
            for field in self._table.fields:
                declared.details[f"{stem}.{field}"] = (
                    f"{chunk.where(row)} has no key in the column {self._table.key!r}"
                )
        for field, column in self._table.fields.items():
            declared.add(names, field, _KINDS[column.holds], chunk.cells[field], bases[field])
            if field in chunk.paths:
                declared.add(names, field, FILE, chunk.paths[field], bases[field])

    def fetch(
        self, table: pa.Table, rows: np.ndarray, kept: Kept, progress: Progress | None
    ) -> Counter[str]:
        """Downloads the URLs of these rows."""
        some = table.select(["text", "path"]).take(pa.array(rows))
        urls, paths = some["text"].to_pylist(), some["path"].to_pylist()
        jobs = (
            Download(url, path.rpartition("/")[2].partition(".")[2])
            for url, path in zip(urls, paths, strict=True)
        )
        return fetch_all(
            jobs, len(rows), Downloader(self._table.download, self.dataset), kept,
            concurrency=self._table.download.concurrency, what="download", progress=progress,
        )  # fmt: skip


def _where(chunks: list[tuple[int, Chunk]], row: int) -> str:
    first, chunk = next(each for each in reversed(chunks) if each[0] <= row)
    return chunk.where(row - first)


def _check_field(field: str, dataset: str) -> None:
    wrong = not field or field != field.strip(". ") or "/" in field or field.startswith("__")
    if wrong or not field.isprintable():
        raise ConfigError(
            f"{dataset}: source.table.fields: {field!r}: expected an extension such as jpg or seg.png"
        )
