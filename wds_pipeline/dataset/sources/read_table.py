"""Tables row by row, a chunk at a time, whatever their format: only the columns that are asked for."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import xxhash

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.sources.cells import (
    cell,
    holds_number,
    is_image,
    split_image,
    to_binary,
)
from wds_pipeline.dataset.sources.table_files import TableFiles
from wds_pipeline.errors import ConfigError, DataError

KEY = ""  # among the fields of a chunk: the column with the keys
TXT_COLUMNS = ("url", "hash", "stem")
_ROWS = 50_000
_BYTES = 32 * 1024 * 1024  # of a chunk, about
_EXAMPLES = 3
_MOST_COLUMNS = 1000  # of a file of json whose names are kept for messages
_scan_json: Any = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring rows of one file. `cells` are large_binary arrays by field; `paths` are those of structs
    of bytes and path, for the rows without bytes. `numbers` are the rows' in the file, as `noun` counts."""

    file: str
    noun: str
    numbers: np.ndarray
    cells: Mapping[str, pa.Array]
    paths: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """How messages name a row: `captions.jsonl, line 12`."""
        return f"{self.file}, {self.noun} {self.numbers[row]:,}"


class Wanted:
    """Which column is which field, and what a table without one of them is told."""

    def __init__(self, table: TableFiles, columns: Mapping[str, str], dataset: str) -> None:
        """`columns` are by field; that of the keys, if any, is under `KEY`."""
        self.table = table
        self.columns = dict(columns)
        self.dataset = dataset
        self.numbers = {field: field == KEY or holds_number(field) for field in columns}

    def check(self, path: str, found: list[str]) -> None:
        """Raises ConfigError when a file has not all the columns, or one of them twice."""
        for field, column in self.columns.items():
            setting = "key" if field == KEY else f"fields.{field}"
            head = f"{self.dataset}: source.table.{setting}: {self.table.named(path)}"
            if column not in found:
                raise ConfigError(
                    f"{head}: no column {column!r}; its columns: "
                    f"{', '.join(map(repr, found[:50]))}{did_you_mean(column, found)}"
                )
            if found.count(column) > 1:
                raise ConfigError(f"{head}: two columns are called {column!r}; rename one")

    def binary(self, field: str, array: pa.Array, path: str) -> pa.Array:
        """A column's cells as bytes. Raises DataError."""
        try:
            return to_binary(array, self.numbers[field])
        except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{self.dataset}: {self.table.named(path)}: column {self.columns[field]!r} of type "
                f"{array.type} cannot be the field {field!r}: {error}; expected text, bytes, numbers, or "
                "lists and structs of these but bytes"
            ) from error

    def bad(self, path: str, what: str) -> DataError:
        """The error for a file that is not of its format."""
        return DataError(
            f"{self.dataset}: {self.table.named(path)}: {what}. Mend the table; nothing was published"
        )


def read_table(wanted: Wanted) -> Iterator[Chunk]:
    """All rows, in order. Raises ConfigError, DataError, SourceError."""
    reader = {"jsonl": _jsonl, "parquet": _parquet, "txt": _txt}.get(wanted.table.format, _csv)
    for file in wanted.table.files:
        yield from reader(wanted, file.path)


def _chunk(
    wanted: Wanted, path: str, noun: str, numbers: Any, columns: Mapping[str, pa.Array]
) -> Chunk:
    cells, paths = {}, {}
    for field, array in columns.items():
        if field != KEY and is_image(array.type):
            cells[field], paths[field] = split_image(array)
        else:
            cells[field] = wanted.binary(field, array, path)
    return Chunk(wanted.table.named(path), noun, np.asarray(numbers, np.int64), cells, paths)


def _jsonl(wanted: Wanted, path: str) -> Iterator[Chunk]:
    seen: dict[str, None] = {}
    missing = set(wanted.columns.values())
    columns: dict[str, list[bytes | None]] = {field: [] for field in wanted.columns}
    numbers: list[int] = []
    size = 0
    each = [
        (column, columns[field].append, wanted.numbers[field])
        for field, column in wanted.columns.items()
    ]

    def take() -> Chunk:
        arrays = {field: pa.array(values, pa.large_binary()) for field, values in columns.items()}
        found = _chunk(wanted, path, "line", numbers, arrays)
        for values in columns.values():
            values.clear()
        numbers.clear()
        return found

    with wanted.table.open(path) as file:
        for number, line in enumerate(_buffered(file), 1):
            row = _quick(line)
            if row is None and (row := _parse(wanted, path, number, line)) is None:
                continue
            if missing:
                missing -= row.keys()
                if len(seen) < _MOST_COLUMNS:
                    seen.update(dict.fromkeys(row))
            try:
                for column, add, is_number in each:
                    add(cell(row.get(column), is_number))
            except (TypeError, ValueError, RecursionError) as error:
                raise wanted.bad(path, f"line {number:,}: {column!r}: {error}") from None
            numbers.append(number)
            size += len(line)
            if len(numbers) >= _ROWS or size >= _BYTES:
                yield take()
                size = 0
    if seen and missing:  # an empty file says nothing of columns
        wanted.check(path, list(seen))
    if numbers:
        yield take()


def _quick(line: bytes) -> dict[str, Any] | None:
    """The object of a line that is nothing but one, in half the time; None for any other."""
    try:
        text = line.decode()
        row, end = _scan_json(text, 0)
    except (ValueError, StopIteration, RecursionError):
        return None
    if isinstance(row, dict) and (end == len(text) or text[end:] in ("\n", "\r\n")):
        return row
    return None


def _parse(wanted: Wanted, path: str, number: int, line: bytes) -> dict[str, Any] | None:
    """A line's object; None for a blank one. Raises DataError."""
    try:
        text = line.decode()
        if number == 1:
            text = text.removeprefix("\ufeff")
        row = json.loads(text) if not text.isspace() else None
    except UnicodeDecodeError as error:
        raise wanted.bad(
            path,
            f"line {number:,}: not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1:,}",
        ) from None
    except (ValueError, RecursionError) as error:
        raise wanted.bad(path, f"line {number:,}: no json: {error}") from None
    if row is not None and not isinstance(row, dict):
        raise wanted.bad(
            path, f"line {number:,}: found {text.strip()[:40]}; expected an object, {{…}}"
        )
    return row


def _csv(wanted: Wanted, path: str) -> Iterator[Chunk]:
    delimiter = "\t" if wanted.table.format == "tsv" else ","
    wanted.check(path, _header(wanted, path, delimiter))
    names = list(dict.fromkeys(wanted.columns.values()))
    convert = pacsv.ConvertOptions(
        include_columns=names,
        column_types=dict.fromkeys(names, pa.large_binary()),  # 0001 is no number
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    broken: list[str] = []

    def note(row: Any) -> str:
        broken.append(
            f"row {row.number:,} has {row.actual_columns:,} cells, the header {row.expected_columns:,}"
        )
        return "skip"  # all of a batch are told at once

    parse = pacsv.ParseOptions(
        delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
    )
    read = pacsv.ReadOptions(use_threads=False, block_size=_BYTES // 2)  # threads count no rows
    at = 2  # the header is row 1
    with wanted.table.open(path) as file:
        try:
            for batch in pacsv.open_csv(file, read, parse, convert):
                _refuse_broken(wanted, path, broken)
                columns = {field: batch.column(name) for field, name in wanted.columns.items()}
                yield _chunk(wanted, path, "row", range(at, at + batch.num_rows), columns)
                at += batch.num_rows
        except pa.ArrowInvalid as error:
            _refuse_broken(wanted, path, broken)
            if "Empty CSV" not in str(error):
                raise wanted.bad(path, f"no {wanted.table.format}: {error}") from None
        _refuse_broken(wanted, path, broken)


def _refuse_broken(wanted: Wanted, path: str, broken: list[str]) -> None:
    if broken:
        more = f" and {len(broken) - _EXAMPLES:,} more" if len(broken) > _EXAMPLES else ""
        raise wanted.bad(path, "; ".join(broken[:_EXAMPLES]) + more)


def _header(wanted: Wanted, path: str, delimiter: str) -> list[str]:
    """The names of the columns: the first row that is not empty."""
    with wanted.table.open(path) as file:
        text = io.TextIOWrapper(_buffered(file), "utf-8-sig", "replace", newline="")
        try:
            found = next((row for row in csv.reader(text, delimiter=delimiter) if row), None)
        except csv.Error as error:
            raise wanted.bad(path, f"its header cannot be read: {error}") from None
        text.detach()
    if found is None:
        raise wanted.bad(path, "it is empty; expected a header with the columns' names")
    return found


def _parquet(wanted: Wanted, path: str) -> Iterator[Chunk]:
    with wanted.table.open(path) as file:
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise wanted.bad(path, f"no parquet: {str(error).splitlines()[0]}") from None
        wanted.check(path, table.schema_arrow.names)
        names = list(dict.fromkeys(wanted.columns.values()))
        at = 1
        try:
            for batch in table.iter_batches(_batch_rows(table.metadata), columns=names):
                columns = {field: batch.column(name) for field, name in wanted.columns.items()}
                yield _chunk(wanted, path, "row", range(at, at + batch.num_rows), columns)
                at += batch.num_rows
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            what = f"row {at:,} or after it cannot be read: {str(error).splitlines()[0]}"
            raise wanted.bad(path, what) from None


def _batch_rows(facts: Any) -> int:
    """How many rows are about a chunk's bytes."""
    size = sum(facts.row_group(n).total_byte_size for n in range(facts.num_row_groups))
    return max(1, min(_ROWS, _BYTES * max(facts.num_rows, 1) // max(size, 1)))


def _txt(wanted: Wanted, path: str) -> Iterator[Chunk]:
    wanted.check(path, list(TXT_COLUMNS))
    urls: list[bytes] = []
    numbers: list[int] = []

    def take() -> Chunk:
        made = {
            "url": lambda: urls,
            "hash": lambda: [xxhash.xxh3_128_hexdigest(url).encode() for url in urls],
            "stem": lambda: [_stem(url) for url in urls],
        }
        columns = {
            field: pa.array(made[name](), pa.large_binary())
            for field, name in wanted.columns.items()
        }
        found = _chunk(wanted, path, "line", numbers, columns)
        urls.clear()
        numbers.clear()
        return found

    with wanted.table.open(path) as file:
        for number, line in enumerate(_buffered(file), 1):
            url = line.strip()
            if url and not url.startswith(b"#"):
                urls.append(url)
                numbers.append(number)
            if len(urls) >= _ROWS:
                yield take()
    if urls:
        yield take()


def _stem(url: bytes) -> bytes:
    """The name of a URL's file, without what follows its last dot."""
    try:
        path = urlsplit(url).path
    except ValueError:  # http://[ is no URL
        path = url
    name = unquote_to_bytes(path).rstrip(b"/").rpartition(b"/")[2]
    return name.rpartition(b".")[0] or name


def _buffered(file: Any) -> Any:
    """The file, to be read line by line."""
    return file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
