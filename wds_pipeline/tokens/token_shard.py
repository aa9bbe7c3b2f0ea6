"""A published shard of blocks: which rows it has, and its rows copied with its digest checked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.digests import DIGESTS, Digest
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.dataset.syntax import parsed
from wds_pipeline.errors import DataError, SourceChanged, VerificationError, VersionError
from wds_pipeline.storage import Storage
from wds_pipeline.tokens.blocks import ABOUT, ARRAY, KEYS
from wds_pipeline.tokens.combined import CHUNK, Column
from wds_pipeline.tokens.layouts import FILL, IDX, WRITTEN
from wds_pipeline.tokens.target import Sink

_HEADER = 4096  # bytes, more than a .npy header of a few dimensions has
IDENTITY = np.dtype([("half", "<u8"), ("rest", "<u8")])  # a hash of 128 bits
_OWN = (IDX + ARRAY, WRITTEN + ARRAY)


class Member(NamedTuple):
    """A file of a block: where its data are in the tar."""

    block: str
    field: str
    offset: int
    size: int


@dataclass(frozen=True)
class TokenShard:
    """A shard of a token data set."""

    storage: Storage
    entry: ShardEntry
    title: str
    """How messages name the version that it is of."""

    @property
    def where(self) -> str:
        """Where its tar is."""
        return self.storage.locate(self.entry.path)

    def problem(self) -> str | None:
        """Why it cannot be used, as far as can be said without reading it; None if it can."""
        try:
            found = seal.read_seal(self.storage, self.entry.name)
        except (VerificationError, VersionError) as error:
            return str(error)
        if found is None:
            return f"{self.where}: not sealed"
        tar = self.storage.stat(self.entry.path)
        if tar is None:
            return f"{self.where}: missing"
        if tar.size != self.entry.bytes or found.digest != self.entry.digest:
            return f"{self.where}: damaged: {tar.size:,} bytes, {self.entry.bytes:,} were published"
        if self.storage.stat(seal.path(self.entry.name, seal.MEMBERS)) is None:
            return f"{self.where}: its member index is missing"
        return None

    def members(self) -> list[Member]:
        """All files, in the tar's order. Raises VerificationError when the member index is not readable."""
        try:
            table = seal.read_member_index(self.storage, self.entry.name)
        except FileNotFoundError:
            raise VerificationError(f"{self.where}: its member index is missing") from None
        table = table.take(pc.sort_indices(table["offset"]))
        columns = (table[name].to_pylist() for name in ("key", "field", "offset", "size"))
        return list(map(Member._make, zip(*columns, strict=True)))

    def head(self) -> tuple[dict[str, Column], dict[str, Any]] | None:
        """The columns, and what `tokens.json` says, of the first block; None if there is no block.

        Raises DataError when the shard has no blocks of tokens.
        """
        members = self.members()
        first = [each for each in members if each.block == members[0].block]
        if not first:
            return None
        fields = {each.field for each in first}
        if IDX + ARRAY not in fields:
            raise DataError(
                f"{self.title}: {self.where}: found the fields {', '.join(sorted(fields))}; expected blocks "
                f"of tokens with {IDX}{ARRAY}, as the transform `tokenize` makes them"
            )
        columns, about = {}, {}
        for each in first:
            if each.field == ABOUT:
                about = json.loads(bytes(self._read(each)))
            elif each.field.endswith(ARRAY):
                header = io.BytesIO(self._read(each, _HEADER))
                shape, dtype = read_header(header, f"{self.where}: {each.block}.{each.field}")
                columns[each.field.removesuffix(ARRAY)] = Column(shape[1:], dtype)
        columns[IDX] = Column((1,), "int32")
        columns[WRITTEN] = Column((1,), "bool")
        return columns, about

    def _read(self, member: Member, most: int | None = None) -> memoryview:
        size = min(member.size, most or member.size)
        return self.storage.read_range(self.entry.path, member.offset, size)[0]

    def rows(self) -> Rows:
        """Which rows it has. Raises VerificationError, DataError."""
        parts = []
        try:
            for members in _by_block(self.members()):
                named = {each.field: each for each in members}
                if IDX + ARRAY not in named:
                    raise DataError(
                        f"{self.title}: {self.where}: the block {members[0].block} has no {IDX}{ARRAY}"
                    )
                parts.append(self._block_rows(named, members[0].block))
        except (FileNotFoundError, SourceChanged, ValueError) as error:
            raise VerificationError(f"{self.where}: damaged: {error}") from error
        if not parts:
            return Rows(np.zeros(0, np.bool_), np.zeros(0, IDENTITY))
        written, identities = zip(*parts, strict=True)
        return Rows(np.concatenate(written), np.concatenate(identities))

    def _block_rows(
        self, members: Mapping[str, Member], block: str
    ) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        idx = _array(self._read(members[IDX + ARRAY])).reshape(-1)
        written = idx != FILL
        if WRITTEN + ARRAY in members:
            flag = _array(self._read(members[WRITTEN + ARRAY]))
            written &= flag.reshape(-1) != 0
        if KEYS in members:
            keys = json.loads(bytes(self._read(members[KEYS])).decode("utf-8", "surrogatepass"))
            names, seed = [key.encode("utf-8", "surrogatepass") for key in keys], 0
        else:  # within the shard, then
            names, seed = [f"{self.entry.name}\0{number}".encode() for number in idx.tolist()], 1
        if len(names) != len(idx):
            raise ValueError(f"the block {block} has {len(idx)} rows and {len(names)} keys")
        hashes = [xxhash.xxh3_128_digest(each, seed) for each in names]
        return written, np.frombuffer(b"".join(hashes), IDENTITY)

    def copy(
        self, columns: Mapping[str, Column], sink: Sink, kept: NDArray[np.bool_] | None
    ) -> None:
        """Copies the rows, all or those that are kept, front to back, with the digest of the whole tar.

        A damaged shard's rows may be written by then; they are not done until this returns. Holds one
        piece of `CHUNK` bytes, or one row. Raises VerificationError, DataError.
        """
        members = self.members()
        algorithm = self.entry.digest.partition(":")[0]
        try:
            with self.storage.open(self.entry.path) as file:
                source = _Source(file, DIGESTS[algorithm]())
                first = 0
                for block in _by_block(members):
                    first += self._copy_block(block, source, columns, sink, kept, first)
                source.skip_to(None)
            _number(sink)
            sink.finished()
        except (FileNotFoundError, ValueError) as error:
            raise VerificationError(f"{self.where}: damaged: {error}") from error
        found = f"{algorithm}:{source.digest.hexdigest()}"
        if found != self.entry.digest:
            raise VerificationError(
                f"{self.where}: damaged: its digest is {found}, {self.entry.digest} was published"
            )

    def _copy_block(
        self,
        members: list[Member],
        source: _Source,
        columns: Mapping[str, Column],
        sink: Sink,
        kept: NDArray[np.bool_] | None,
        first: int,
    ) -> int:
        arrays = {each.field.removesuffix(ARRAY) for each in members if each.field.endswith(ARRAY)}
        wanted = set(columns) - {WRITTEN, IDX}
        if arrays - {WRITTEN, IDX} != wanted:
            raise DataError(
                f"{self.where}: the block {members[0].block} has the arrays {', '.join(sorted(arrays))}; "
                f"others have {', '.join(sorted(columns))}"
            )
        rows_here = set()
        for each in members:
            source.skip_to(each.offset)
            name = each.field.removesuffix(ARRAY)
            if each.field in _OWN or name not in wanted:
                continue
            where = f"{self.where}: {each.block}.{each.field}"
            shape, dtype = read_header(source, where)
            column = Column(shape[1:], dtype)
            if column != columns[name]:
                raise DataError(f"{where}: found {column}; other blocks have {columns[name]}")
            size = shape[0] * column.row_bytes
            if source.at + size != each.offset + each.size:
                raise ValueError(f"{each.block}.{each.field} has not the size that its header says")
            mask = None if kept is None else kept[first : first + shape[0]]
            for rows in source.rows(shape[0], column.row_bytes, mask):
                sink.write(name, rows)
            rows_here.add(shape[0])
        if len(rows_here) != 1:
            raise ValueError(
                f"the arrays of the block {members[0].block} have different numbers of rows"
            )
        return rows_here.pop()


@dataclass(frozen=True)
class Rows:
    """Of each row, in the shard's order: whether it is written, and a hash of what it is known by, its
    sample's key (without keys, its idx in this shard)."""

    written: NDArray[np.bool_]
    identities: NDArray[Any]


class _Source:
    """A tar read front to back, all of it through its digest."""

    def __init__(self, file: IO[bytes], digest: Digest) -> None:
        self._file = file
        self.digest = digest
        self.at = 0
        self._buffer = memoryview(bytearray(CHUNK))

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        self.at += len(data)
        return data

    def skip_to(self, offset: int | None) -> None:
        """Goes on to an offset, or to the end."""
        while offset is None or self.at < offset:
            data = self.read(CHUNK if offset is None else min(CHUNK, offset - self.at))
            if not data:
                if offset is not None:
                    raise ValueError(f"it ends at {self.at:,}, where more should be")
                return

    def rows(
        self, count: int, size: int, kept: NDArray[np.bool_] | None
    ) -> Iterator[bytes | memoryview]:
        """The next `count` rows of `size` bytes each, some at a time; only those that are kept."""
        many = max(1, CHUNK // max(1, size))
        if many * size > len(self._buffer):
            self._buffer = memoryview(bytearray(many * size))
        for first in range(0, count, many):
            some = min(many, count - first)
            view = self._buffer[: some * size]
            self._fill(view)
            if kept is None:
                yield view
            else:
                rows = np.frombuffer(view, np.uint8).reshape(some, size)
                yield rows[kept[first : first + some]].tobytes()

    def _fill(self, view: memoryview) -> None:
        got = 0
        while got < len(view):
            now = self._file.readinto(view[got:])  # type: ignore[attr-defined]
            if not now:
                raise ValueError(f"it ends at {self.at + got:,}, where more should be")
            got += now
        self.digest.update(view)
        self.at += len(view)


def _number(sink: Sink) -> None:
    """Writes the rows' own numbers in the whole, and that they are written."""
    first, end = sink.piece.offset, sink.piece.offset + sink.piece.rows
    for start in range(first, end, CHUNK):
        rows = np.arange(start, min(start + CHUNK, end), dtype="<i4")
        sink.write(IDX, rows.tobytes())
        sink.write(WRITTEN, bytes([1]) * len(rows))


def _by_block(members: list[Member]) -> Iterator[list[Member]]:
    block: list[Member] = []
    for each in members:
        if block and each.block != block[0].block:
            yield block
            block = []
        block.append(each)
    if block:
        yield block


def _array(data: memoryview) -> NDArray[Any]:
    found: NDArray[Any] = parsed(lambda: np.load(io.BytesIO(data), allow_pickle=False))
    return found


def read_header(file: Any, where: str) -> tuple[tuple[int, ...], str]:
    """Shape and type by the header of a `.npy` file. Raises ValueError; DataError for a type that a
    tensor cannot have."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"{where}: .npy version {version}")
    # Not straight from the file, which is read once, where the parser may have to try again.
    length = file.read(2 if version == (1, 0) else 4)
    size = int.from_bytes(length, "little")
    if size > _HEADER:
        raise ValueError(f"{where}: a header of {size:,} bytes; expected at most {_HEADER:,}")
    header = length + file.read(size)
    shape, fortran, dtype = parsed(lambda: read[version](io.BytesIO(header)))
    if not shape or fortran or dtype.kind not in "biuf" or dtype.str[0] == ">":
        raise DataError(
            f"{where}: found {dtype} {shape}{', columns first' if fortran else ''}; expected rows of "
            "numbers or bools, little-endian, rows first"
        )
    return shape, str(dtype)
