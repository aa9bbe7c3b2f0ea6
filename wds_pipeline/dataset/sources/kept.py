"""What a source had to fetch, kept at the destination: tars of contents, beside each what became of items.

sources/<kind>/<batch>.tar      the contents, as members named by the items' ids
sources/<kind>/<batch>.parquet  one row an item (`STATUS`), written when the tar is whole

Nothing is written twice: a batch whose table is not there was cut short. Of several rows of one item the last
batch's counts. Removing the folder has everything fetched again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from wds_pipeline.dataset import tar
from wds_pipeline.dataset.seal import parquet_bytes
from wds_pipeline.errors import DestinationError
from wds_pipeline.storage import TEMPORARY, FileInfo, Storage, Writer

OK = "ok"
# `id` is xxh3-128 of what was asked for, in hex, `shown` that for people, without credentials; `status` is
# `ok` or what went wrong; `code` is HTTP's or a command's; `content` a fingerprint, `offset` where the
# content begins in the batch's tar; `tries` how often it was tried this time.
STATUS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("shown", pa.large_string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("detail", pa.large_string()),
        pa.field("code", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("content", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("tries", pa.int32(), nullable=False),
        pa.field("when", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)
_USED = ["id", "status", "detail", "bytes", "content", "offset"]
_BATCH_BYTES = 256_000_000
_BATCH_ROWS = 10_000
_BATCH_SECONDS = 60.0  # what a build that is killed loses at most, beside what is under way
TAR, TABLE = ".tar", ".parquet"


def id_of(wanted: str) -> str:
    """What an item is called: a hash of the URL or command."""
    return xxhash.xxh3_128_hexdigest(wanted.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Fetched:
    """What became of one item; `body` is the content of `size` bytes, None if there is none."""

    id: str
    shown: str
    status: str
    body: IO[bytes] | None = None
    size: int = 0
    content: str = ""
    code: int | None = None
    tries: int = 1
    detail: str = ""


@dataclass(frozen=True)
class Items:
    """What is known of items, by `rows`: `id`, `status`, `detail`, `bytes`, `content`, `offset`, and `part`,
    a number of `parts`, which are the tars' paths."""

    rows: pa.Table
    parts: list[str]

    def find(self, ids: pa.Array) -> np.ndarray:
        """The row of each of these ids, -1 where nothing is known of it."""
        at = pc.index_in(ids, value_set=self.rows["id"].combine_chunks())
        if isinstance(at, pa.ChunkedArray):
            at = at.combine_chunks()
        return pc.fill_null(at, -1).to_numpy(zero_copy_only=False)


class Kept:
    """A folder of such batches in a store."""

    def __init__(self, storage: Storage, kind: str) -> None:
        self.storage = storage
        self.folder = f"sources/{kind}/"

    def load(self) -> Items:
        """What is there, newest first, one row an item."""
        names = {file.path.removeprefix(self.folder) for file in self.files()}
        names = {name for name in names if not name.startswith(TEMPORARY)}
        batches = sorted((name for name in names if name.endswith(TABLE)), reverse=True)
        found = self.storage.at_once(self._table, batches)
        tables, parts = [_NOTHING], list[str]()
        for name, table in zip(batches, found, strict=True):
            if table is None:
                continue
            part = name.removesuffix(TABLE) + TAR
            if part not in names:  # somebody removed it
                table = table.filter(pc.not_equal(table["status"], OK))
            tables.append(table.append_column("part", pa.repeat(len(parts), table.num_rows)))
            parts.append(self.folder + part)
        rows = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        return Items(_first_of_each(rows), parts)

    def _table(self, name: str) -> pa.Table | None:
        try:
            data = self.storage.read(self.folder + name)
        except FileNotFoundError:
            return None
        try:
            return pq.read_table(pa.BufferReader(data), columns=_USED)
        except (pa.ArrowInvalid, OSError, KeyError) as error:
            raise DestinationError(
                f"{self.storage.locate(self.folder + name)}: not a table of what was fetched ({error}); "
                "remove it to have that fetched again"
            ) from error

    def files(self) -> Iterator[FileInfo]:
        """All files of the folder, also what is no batch."""
        return self.storage.list_files(self.folder.rstrip("/"))


_NOTHING = pa.schema(
    [*(STATUS.field(name) for name in _USED), pa.field("part", pa.int64())]
).empty_table()


def _first_of_each(rows: pa.Table) -> pa.Table:
    ids = rows["id"].combine_chunks()
    if pc.count_distinct(ids).as_py() == len(ids):
        return rows
    at = pc.index_in(ids, value_set=ids).to_numpy()
    return rows.take(pa.array(np.unique(at)))


@dataclass
class Batches:
    """Writes what was fetched, batch by batch; as a context, it closes the last one at the end, also of an
    interrupted one."""

    kept: Kept
    _rows: list[tuple[object, ...]] = field(default_factory=list)
    _open: ExitStack | None = None
    _file: Writer | None = None
    _name: str = ""
    _position: int = 0
    _began: float = 0.0

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        elif self._open is not None:
            self._open.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(self, item: Fetched) -> None:
        """Takes one; its body is read and closed. Raises DestinationError."""
        if not self._name:
            now = datetime.now(timezone.utc)
            self._name = f"{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:8]}"
            self._began, self._position = time.monotonic(), 0
        offset = None if item.body is None else self._put(item)
        now_ms = int(time.time() * 1000)
        content = item.content or None
        size = item.size if item.body is not None else None
        self._rows.append(
            (item.id, item.shown, item.status, item.detail or None, item.code, size, content,
             offset, item.tries, now_ms)
        )  # fmt: skip
        full = self._position >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS
        if full or time.monotonic() - self._began > _BATCH_SECONDS:
            self.close()

    def _put(self, item: Fetched) -> int:
        assert item.body is not None
        if self._file is None:
            self._open = ExitStack()
            self._file = self._open.enter_context(
                self.kept.storage.create(self.kept.folder + self._name + TAR)
            )
        head = tar.header(item.id, item.size)
        self._file.write(head)
        begin = self._position + len(head)
        with item.body as body:
            while data := body.read(tar.BLOCK * 2048):
                self._file.write(data)
        self._file.write(bytes(tar.padding(item.size)))
        self._position = begin + item.size + tar.padding(item.size)
        return begin

    def close(self) -> None:
        """Ends the batch under way: the tar, then its table."""
        if self._open is not None and self._file is not None:
            self._file.write(tar.end(self._position))
            stack, self._open, self._file = self._open, None, None
            stack.close()
        if self._rows:
            columns = [
                pa.array(values, kind.type)
                for values, kind in zip(zip(*self._rows, strict=True), STATUS, strict=True)
            ]
            table = pa.table(columns, schema=STATUS)
            self.kept.storage.put(self.kept.folder + self._name + TABLE, parquet_bytes(table))
        self._rows, self._name = [], ""
