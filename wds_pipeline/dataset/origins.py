"""Where the bytes of a listing's files are, if not in files of their own below one folder.

A member of a tar is a range of it, a cell of a table has its bytes here. What tells the states of a file
apart is its fingerprint, as everywhere; where it lies is in no digest, so that what only moved is not packed
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import xxhash

from wds_pipeline.errors import SourceChanged, SourceError
from wds_pipeline.storage import (
    CONTENT,
    UNREADABLE,
    Place,
    Read,
    Reads,
    Storage,
    Usage,
    open_storage,
)
from wds_pipeline.storage.base import BLOCK, check_content

# One row a file of the listing, in its order. `store` is a number of `Origins.stores`, -1 where `data` are the
# bytes; `file` is relative to the store; the bytes begin at `offset`, or are the whole file if that is null.
ORIGINS = pa.schema(
    [
        pa.field("store", pa.int16(), nullable=False),
        pa.field("file", pa.dictionary(pa.int32(), pa.large_string())),
        pa.field("offset", pa.int64()),
        pa.field("data", pa.large_binary()),
    ]
)
GONE = -2  # in the place of a store: the source has no such content any more
_GAP = (
    64 * 1024
)  # bytes between two ranges of a store that are read along rather than asked for apart
_RUN = 4 * BLOCK  # bytes asked for at once


@dataclass(frozen=True)
class Origins:
    """Where each file of a listing is: `table` has the schema `ORIGINS`."""

    stores: tuple[Place, ...]
    table: pa.Table

    def take(self, rows: pa.Array) -> pa.Table:
        """The origins of these rows of the listing."""
        return self.table.take(rows)


class Origin(NamedTuple):
    """Where one file's bytes are."""

    store: int
    file: str
    offset: int | None
    data: bytes | None


@dataclass(frozen=True)
class _Piece:
    """Neighbouring ranges of one file that are read at once."""

    store: int
    file: str
    begin: int
    end: int
    reads: list[tuple[Read, int]] = field(default_factory=list)


class OriginReader:
    """Reads a recipe's members wherever they are. What `Storage` has of reading a source, it has too."""

    def __init__(self, stores: Sequence[Place], members: pa.Table) -> None:
        """`members` has the columns path and those of `ORIGINS`."""
        self._stores: list[Storage] = [open_storage(place) for place in stores]
        self._members = members
        first = self._stores[0] if self._stores else None
        self.windows = first.windows if first else 1
        self.window_bytes = max((each.window_bytes for each in self._stores), default=BLOCK // 2)

    @property
    def usage(self) -> Usage:
        """What was asked of all the stores."""
        total = Usage()
        for each in self._stores:
            total.add(each.usage)
        return total

    @cached_property
    def _origins(self) -> dict[str, Origin]:
        columns = [self._members[name].to_pylist() for name in ("path", *ORIGINS.names)]
        return {path: Origin(*rest) for path, *rest in zip(*columns, strict=True)}

    def _origin(self, path: str) -> Origin:
        found = self._origins[path]
        if found.store == GONE:
            raise SourceChanged(path, "the source has it no more, or with another content")
        return found

    def start_reads(self, reads: Sequence[Read]) -> Reads:
        """As `Storage.start_reads`. Neighbours in a tar are read at once."""
        whole: dict[int, list[tuple[Read, Read]]] = {}
        ranges: list[tuple[Read, Origin]] = []
        for read in reads:
            origin = self._origin(read.path)
            if origin.data is not None:
                _fill(read, origin.data)
            elif origin.offset is None:
                inner = Read(origin.file, read.view, read.fingerprint)
                whole.setdefault(origin.store, []).append((inner, read))
            else:
                ranges.append((read, origin))
        begun = [
            (self._stores[n].start_reads([each for each, _ in some]), some)
            for n, some in whole.items()
        ]
        pieces = list(_pieces(ranges))
        local = all(self._stores[piece.store].folders for piece in pieces)
        # A page cache is as fast one range after the other; a store is asked for all of them at once.
        coming = [] if local else [
            (piece, self._stores[piece.store].start(_fetch(self._stores[piece.store], piece)))
            for piece in pieces
        ]  # fmt: skip

        def wait() -> None:
            for each, some in begun:
                with _named(some):
                    each()
            if local:
                for piece in pieces:
                    _hand_out(piece, self._range(piece))
            for piece, future in coming:
                _hand_out(piece, _result(future.result, piece))

        def cancel() -> None:
            for each, _ in begun:
                each.cancel()
            for _, future in coming:
                future.cancel()

        return Reads(wait, cancel)

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        """As `Storage.read_chunks`."""
        origin = self._origin(path)
        if origin.data is not None:
            check_content(path, xxhash.xxh3_128_hexdigest(origin.data), fingerprint)
            yield memoryview(origin.data)
            return
        store = self._stores[origin.store]
        if origin.offset is None:
            try:
                yield from store.read_chunks(origin.file, size, fingerprint)
            except SourceChanged as error:
                raise SourceChanged(path, error.reason) from error
            return
        content = xxhash.xxh3_128()
        for at in range(0, size, BLOCK):
            part = min(BLOCK, size - at)
            piece = _Piece(origin.store, origin.file, origin.offset + at, origin.offset + at + part)
            data = _result(_fetch(store, piece), piece, path)
            content.update(data)
            yield data
        if fingerprint.startswith(CONTENT):
            check_content(path, content.hexdigest(), fingerprint)

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        """As `Storage.check_source`."""
        origin = self._origin(path)
        if origin.data is not None:
            return
        store = self._stores[origin.store]
        if origin.offset is None:
            try:
                store.check_source(origin.file, size, fingerprint)
            except SourceChanged as error:
                raise SourceChanged(path, error.reason) from error
        elif store.stat(origin.file) is None:
            raise SourceChanged(path, f"{store.locate(origin.file)} is gone")

    def _range(self, piece: _Piece) -> memoryview:
        return _result(_fetch(self._stores[piece.store], piece), piece)


class _named:
    """Errors of whole files under the paths that the recipe has for them."""

    def __init__(self, some: list[tuple[Read, Read]]) -> None:
        self._paths = {inner.path: outer.path for inner, outer in some}

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SourceChanged):
            raise SourceChanged(self._paths.get(error.path, error.path), error.reason) from error


def _fetch(store: Storage, piece: _Piece):  # type: ignore[no-untyped-def]
    def fetch() -> memoryview:
        return store.read_range(piece.file, piece.begin, piece.end - piece.begin)[0]

    return fetch


def _result(fetch, piece: _Piece, path: str = "") -> memoryview:  # type: ignore[no-untyped-def]
    path = path or (piece.reads[0][0].path if piece.reads else piece.file)
    try:
        return memoryview(fetch())
    except FileNotFoundError as error:
        raise SourceChanged(path, f"{piece.file} is gone") from error
    except SourceChanged as error:
        raise SourceChanged(path, f"{piece.file}: {error.reason}") from error
    except SourceError:
        raise
    except OSError as error:
        raise SourceChanged(path, f"{UNREADABLE}: {error.strerror}") from error


def _pieces(ranges: Sequence[tuple[Read, Origin]]) -> Iterator[_Piece]:
    order = sorted(ranges, key=lambda each: (each[1].store, each[1].file, each[1].offset))
    piece: _Piece | None = None
    for read, origin in order:
        begin = origin.offset or 0
        end = begin + len(read.view)
        near = piece is not None and (piece.store, piece.file) == (origin.store, origin.file)
        if piece is not None and near and begin - piece.end <= _GAP and end - piece.begin <= _RUN:
            piece = _Piece(piece.store, piece.file, piece.begin, max(end, piece.end), piece.reads)
        else:
            if piece is not None:
                yield piece
            piece = _Piece(origin.store, origin.file, begin, end)
        piece.reads.append((read, begin))
    if piece is not None:
        yield piece


def _hand_out(piece: _Piece, data: memoryview) -> None:
    for read, begin in piece.reads:
        at = begin - piece.begin
        _fill(read, data[at : at + len(read.view)])


def _fill(read: Read, data: bytes | memoryview) -> None:
    """Copies what was read, if it is still what the scan saw."""
    if len(data) != len(read.view):
        raise SourceChanged(
            read.path, f"found {len(data):,} bytes; {len(read.view):,} were scanned"
        )
    if read.fingerprint.startswith(CONTENT):
        check_content(read.path, xxhash.xxh3_128_hexdigest(data), read.fingerprint)
    read.view[:] = data
