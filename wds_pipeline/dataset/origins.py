"""Where the bytes of a listing's files are, if not in files of their own below one folder.

A member of a tar is a range of it, a cell of a table has its bytes here. What tells the states of a file
apart is its fingerprint, as everywhere; where it lies is in no digest, so that what only moved is not packed
again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
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

# One row a file of the listing, in its order. `store` is a number of `Origins.stores`, -1 where `data` are
# the bytes; `file` is relative to the store; the bytes begin at `offset`, or are the whole file if that is
# null.
ORIGINS = pa.schema(
    [
        pa.field("store", pa.int16(), nullable=False),
        pa.field("file", pa.dictionary(pa.int32(), pa.large_string())),
        pa.field("offset", pa.int64()),
        pa.field("data", pa.large_binary()),
    ]
)
GONE = -2  # in the place of a store: the source has no such content any more
# Bytes between two ranges that are read along, rather than the ranges one by one.
_GAP = 16 * 1024
_RUN = 4 * BLOCK  # bytes asked of a store at once
_VECTORS = 1000  # of one system call; Linux takes 1,024
_MEND = "a published dataset's shard is packed anew by `wds-pipeline verify NAME --repair`"
_OPEN = 64  # files of this machine at a time


@dataclass(frozen=True)
class Origins:
    """Where each file of a listing is: `table` has the schema `ORIGINS`."""

    stores: tuple[Place, ...]
    table: pa.Table

    def take(self, rows: pa.Array) -> pa.Table:
        """The origins of these rows of the listing; of the files' names only those that are used."""
        table = self.table.take(rows)
        file = _one_array(table["file"])
        used = pc.unique(file.indices.drop_null())
        codes = pc.index_in(file.indices, value_set=used, skip_nulls=True)
        names = pa.DictionaryArray.from_arrays(codes, file.dictionary.take(used))
        return table.set_column(table.schema.get_field_index("file"), ORIGINS.field("file"), names)


class Origin(NamedTuple):
    """Where one file's bytes are."""

    store: int
    file: str
    offset: int | None
    data: bytes | None


_Range = tuple[int, str, int, Read]
_WHERE = itemgetter(0, 1, 2)


@dataclass
class _Piece:
    """Neighbouring ranges of one file that are read at once; `reads` have each one's begin."""

    store: int
    file: str
    begin: int
    end: int
    reads: list[tuple[Read, int]] = field(default_factory=list)


class OriginReader:
    """Reads a recipe's members wherever they are. What `Storage` has of reading a source, it has too.

    Raises SourceChanged, under a member's path, when a tar is gone or what is read is not what was scanned.
    """

    def __init__(self, stores: Sequence[Place], members: pa.Table) -> None:
        """`members` has the columns path and those of `ORIGINS`."""
        self._stores: list[Storage] = [open_storage(place) for place in stores]
        self._local = [each.folders for each in self._stores]
        self._members = members
        self._files = _OpenFiles()
        self._between = memoryview(bytearray(_GAP))
        self._checked: dict[tuple[int, str], bool] = {}
        # A page cache is as fast one range after the other; a store is asked for many at once.
        self.windows = max((each.windows for each in self._stores), default=1)
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
        members = self._members
        file = _one_array(members["file"])
        names = [*file.dictionary.to_pylist(), ""]
        codes = pc.fill_null(file.indices, len(names) - 1).to_pylist()
        data = members["data"]
        every = zip(
            members["store"].to_pylist(),
            map(names.__getitem__, codes),
            members["offset"].to_pylist(),
            data.to_pylist() if data.null_count < len(data) else repeat(None, len(data)),
            strict=True,
        )
        return dict(zip(members["path"].to_pylist(), map(Origin._make, every), strict=True))

    def _origin(self, path: str) -> Origin:
        found = self._origins[path]
        if found.store == GONE:
            raise SourceChanged(path, "the source has it no more, or with another content")
        return found

    def start_reads(self, reads: Sequence[Read]) -> Reads:
        """As `Storage.start_reads`. Neighbours in a tar are read at once."""
        whole: dict[int, list[tuple[Read, Read]]] = {}
        near: list[_Range] = []
        far: list[_Range] = []
        for read in reads:
            store, file, offset, data = self._origin(read.path)
            if data is not None:
                _fill(read, data)
            elif offset is None:
                inner = Read(file, read.view, read.fingerprint)
                whole.setdefault(store, []).append((inner, read))
            else:
                (near if self._local[store] else far).append((store, file, offset, read))
        begun = [
            (self._stores[n].start_reads([each for each, _ in some]), some)
            for n, some in whole.items()
        ]
        coming = [
            (piece, self._stores[piece.store].start(_fetch(self._stores[piece.store], piece)))
            for piece in _pieces(far)
        ]

        def wait() -> None:
            for each, some in begun:
                with _named(some):
                    each()
            self._read_near(near)
            for piece, future in coming:
                with _told(piece.reads[0][0].path, self._stores[piece.store], piece.file):
                    data = memoryview(future.result())
                for read, begin in piece.reads:
                    at = begin - piece.begin
                    _fill(read, data[at : at + len(read.view)])

        def cancel() -> None:
            for each, _ in begun:
                each.cancel()
            for _, future in coming:
                future.cancel()

        return Reads(wait, cancel)

    def _read_near(self, ranges: list[_Range]) -> None:
        """Reads ranges of files of this machine straight to where they belong: one call for neighbours."""
        ranges.sort(key=_WHERE)
        first = 0
        while first < len(ranges):
            store, file, begin, read = ranges[first]
            views: list[memoryview] = []
            at, stop = begin, first
            while stop < len(ranges) and len(views) < _VECTORS:
                other_store, other_file, offset, other = ranges[stop]
                gap = offset - at
                if other_file != file or other_store != store or not 0 <= gap <= _GAP:
                    break
                if gap:
                    views.append(self._between[:gap])
                views.append(other.view)
                at = offset + len(other.view)
                stop += 1
            with _told(read.path, self._stores[store], file):
                fd = self._files.open(self._stores[store].locate(file))
                got = os.preadv(fd, views, begin)
                if got != at - begin:
                    _read_rest(fd, views, begin, got)
            for *_, each in ranges[first:stop]:
                _check(each, each.view, file)
            first = stop

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        """As `Storage.read_chunks`."""
        origin = self._origin(path)
        if origin.data is not None:
            check_content(path, xxhash.xxh3_128_hexdigest(origin.data), fingerprint)
            yield memoryview(origin.data)
            return
        if origin.offset is None:
            try:
                yield from self._stores[origin.store].read_chunks(origin.file, size, fingerprint)
            except SourceChanged as error:
                raise SourceChanged(path, error.reason) from error
            return
        content = xxhash.xxh3_128()
        for data in self._range_in_parts(path, origin, size):
            content.update(data)
            yield data
        if fingerprint.startswith(CONTENT) and CONTENT + content.hexdigest() != fingerprint:
            raise _other_content(path, origin.file)

    def _range_in_parts(self, path: str, origin: Origin, size: int) -> Iterator[memoryview]:
        """A range, a few MB at a time; the next part may be where the last one was."""
        store, begin = self._stores[origin.store], origin.offset or 0
        local = self._local[origin.store]
        buffer = memoryview(bytearray(min(BLOCK, size) if local else 0))
        for at in range(0, size, BLOCK):
            part = min(BLOCK, size - at)
            with _told(path, store, origin.file):
                if local:
                    data = buffer[:part]
                    fd = self._files.open(store.locate(origin.file))
                    _read_rest(fd, [data], begin + at, 0)
                else:
                    data = store.read_range(origin.file, begin + at, part)[0]
            yield data

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        """As `Storage.check_source`; ranges of files of this machine are read for it."""
        origin = self._origin(path)
        if origin.data is not None:
            return
        store = self._stores[origin.store]
        if origin.offset is None:
            try:
                store.check_source(origin.file, size, fingerprint)
            except SourceChanged as error:
                raise SourceChanged(path, error.reason) from error
            return
        file = (origin.store, origin.file)
        if file not in self._checked:  # a store is asked once for each tar
            self._checked[file] = store.stat(origin.file) is not None
        if not self._checked[file]:
            raise _gone(path, store, origin.file)
        if self._local[origin.store]:
            for _ in self.read_chunks(path, size, fingerprint):
                pass


class _OpenFiles:
    """Files of this machine that were read last, open."""

    def __init__(self) -> None:
        self._fds: OrderedDict[str, int] = OrderedDict()

    def open(self, path: str) -> int:
        """Raises OSError."""
        fd = self._fds.get(path)
        if fd is None:
            if len(self._fds) >= _OPEN:
                os.close(self._fds.popitem(last=False)[1])
            # Without O_NONBLOCK, a pipe that took the file's place would keep us waiting.
            fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            self._fds.move_to_end(path)
        return fd

    def __del__(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


def _one_array(column: pa.ChunkedArray) -> pa.DictionaryArray:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # without a row
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array


class _named:
    """Errors of whole files under the paths that the recipe has for them."""

    def __init__(self, some: list[tuple[Read, Read]]) -> None:
        self._paths = {inner.path: outer.path for inner, outer in some}

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SourceChanged):
            raise SourceChanged(self._paths.get(error.path, error.path), error.reason) from error


def _fetch(store: Storage, piece: _Piece) -> Callable[[], memoryview]:
    def fetch() -> memoryview:
        return store.read_range(piece.file, piece.begin, piece.end - piece.begin)[0]

    return fetch


@contextmanager
def _told(path: str, store: Storage, file: str) -> Iterator[None]:
    """What reading a part of a tar raises, as a SourceChanged of the member."""
    try:
        yield
    except FileNotFoundError as error:
        raise _gone(path, store, file) from error
    except SourceChanged as error:
        raise SourceChanged(path, f"{file}: {error.reason}") from error
    except SourceError:
        raise
    except OSError as error:
        raise SourceChanged(path, f"{UNREADABLE}: {file}: {error.strerror}") from error


def _read_rest(fd: int, views: Sequence[memoryview], begin: int, got: int) -> None:
    """Fills views, one behind the other, with what begins at a place of a file; of it `got` bytes are there.

    Raises SourceChanged when the file ends before.
    """
    for view in views:
        done = min(got, len(view))
        got -= done
        while done < len(view):
            more = os.preadv(fd, [view[done:]], begin + done)
            if not more:
                raise SourceChanged("", f"found {begin + done:,} bytes; more were scanned")
            done += more
        begin += len(view)


def _pieces(ranges: list[_Range]) -> Iterator[_Piece]:
    """The ranges, sorted, neighbours as one."""
    piece: _Piece | None = None
    for store, file, begin, read in sorted(ranges, key=_WHERE):
        end = begin + len(read.view)
        if (
            piece is not None
            and (piece.store, piece.file) == (store, file)
            and begin - piece.end <= _GAP
            and end - piece.begin <= _RUN
        ):
            piece.end = max(end, piece.end)
        else:
            if piece is not None:
                yield piece
            piece = _Piece(store, file, begin, end)
        piece.reads.append((read, begin))
    if piece is not None:
        yield piece


def _fill(read: Read, data: bytes | memoryview) -> None:
    """Copies what was read, if it is still what the scan saw."""
    if len(data) != len(read.view):
        raise SourceChanged(
            read.path, f"found {len(data):,} bytes; {len(read.view):,} were scanned"
        )
    _check(read, data)
    read.view[:] = data


def _check(read: Read, data: bytes | memoryview, file: str = "") -> None:
    """Raises SourceChanged for content that is not what the scan saw, where the fingerprint says it."""
    wanted = read.fingerprint
    if wanted != CONTENT + xxhash.xxh3_128_hexdigest(data) and wanted.startswith(CONTENT):
        raise _other_content(read.path, file)


def _gone(path: str, store: Storage, file: str) -> SourceChanged:
    return SourceChanged(path, f"{store.locate(file)} is gone; {_MEND}")


def _other_content(path: str, file: str) -> SourceChanged:
    where = f"{file}: " if file else ""
    return SourceChanged(
        path, f"{where}its content is not what was scanned; it was replaced, or is damaged; {_MEND}"
    )
