"""The listing: what a walk over the source saw, and its digest, which can be made part by part."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.dataset.origins import Origins

# `problem` is null but for files that have no usable name.
LISTING = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.large_string(), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
# Where the source wants each file's sample: `position` orders the samples of a slot.
PLACES = pa.schema(
    [
        pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
    ]
)
# The digest is made of parts: so many files, fewer at the end of a folder. Hashing each file by itself
# would cost a tenth of the scan; much larger ones would be lost when a look ends within a folder.
PART = 256
NOTHING = bytes(16)  # the digest's state before the first part
_PARTS_AT_ONCE = 256
_END = pa.scalar("\0", pa.large_string())


class Listing:
    """What a scan saw: `files` has the schema `LISTING`; `folders` says how many of them are in each
    folder, in order; `skipped` counts what was left out, `examples` names some.

    `origins` says where the files' bytes are, if not in files of their names below one folder. `places`
    gives each file the split, slot and position (schema `PLACES`) that its sample has to have, if the
    source decides that; `splits` the split alone (null: it says none), for datasets that do not say
    themselves how they are split.
    """

    def __init__(
        self,
        files: pa.Table,
        folders: Sequence[int] = (),
        skipped: Mapping[str, int] | None = None,
        examples: Mapping[str, list[str]] | None = None,
        *,
        origins: Origins | None = None,
        places: pa.Table | None = None,
        splits: pa.DictionaryArray | None = None,
        details: Mapping[str, str] | None = None,
        made_of: Mapping[str, Any] | None = None,
        overlay: Mapping[str, Any] | None = None,
        digest: str = "",
    ) -> None:
        """`digest` is given where it is known by other means than folding the files; `details` says more of
        files with a problem, by path; `made_of` which version of another dataset this is, `overlay` of
        which base its places are."""
        self.files = files
        self.folders = folders or [files.num_rows]
        self.skipped = dict(skipped or {})
        self.examples = dict(examples or {})
        self.origins = origins
        self.places = places
        self.splits = splits
        self.details = dict(details or {})
        self.made_of = dict(made_of or {})
        self.overlay = dict(overlay or {})
        if digest:
            self.__dict__["digest"] = digest

    @property
    def bytes(self) -> int:
        """The files' sizes, summed."""
        return int(np.sum(self.files["size"].to_numpy()))

    @cached_property
    def digest(self) -> str:
        """The same for the same files, sizes and fingerprints."""
        return fold(NOTHING, self.files, self.folders).hex()


class LateListing(Listing):
    """A listing whose digest is known before its files are, which are read when they are asked for."""

    def __init__(self, digest: str, load: Callable[[], Listing]) -> None:
        """What `load` gives is this listing; its own digest is not looked at."""
        self.__dict__["digest"] = digest
        self._load = load

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is missing.
        if name.startswith("_") or "files" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = self._load()
        self.__dict__.update(found.__dict__ | {"digest": self.digest})
        return getattr(self, name)


def fold(state: bytes, files: pa.Table, folders: Sequence[int]) -> bytes:
    """The digest's state after these files too, which are the next in the order of the walk.

    `folders` as in `Listing`; a folder may go on in the next call, after a multiple of `PART` files.
    """
    bounds = list(_bounds(folders))
    digest = xxhash.xxh3_128_digest
    for number in range(0, len(bounds) - 1, _PARTS_AT_ONCE):
        ends = np.asarray(bounds[number : number + _PARTS_AT_ONCE + 1])
        lines = _lines(files.slice(ends[0], ends[-1] - ends[0]))
        # A part's lines lie one behind the other, so one slice of the column's bytes is hashed.
        offsets = np.frombuffer(lines.buffers()[1], np.int64)[lines.offset :]
        data = memoryview(lines.buffers()[2])
        for start, stop in pairwise(offsets[ends - ends[0]].tolist()):
            state = digest(state + digest(data[start:stop]))
    return state


def _bounds(folders: Sequence[int]) -> Iterator[int]:
    """The rows where parts begin, and the end."""
    start = 0
    for count in folders:
        yield from range(start, start + count, PART)
        start += count
    yield start


def _lines(files: pa.Table) -> pa.LargeStringArray:
    """What is hashed of each file. No path has the separator in it."""
    size = files["size"].cast(pa.large_string())
    problem = files["problem"].cast(pa.large_string())
    columns = (files["path"], size, files["fingerprint"], problem)
    lines = pc.binary_join_element_wise(
        *(each.combine_chunks() for each in columns),
        pa.scalar("", pa.large_string()),
        _END,
        null_handling="replace",
        null_replacement="",
    )
    return pa.concat_arrays(lines.chunks) if isinstance(lines, pa.ChunkedArray) else lines


class Rows:
    """The listing under way, column by column: a tuple for each file would cost more than its stat."""

    def __init__(self) -> None:
        self.chunks: list[pa.Table] = []
        self.folders: list[int] = []
        self.newest_ns = 0
        self._clear()

    def _clear(self) -> None:
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.times: list[int] = []
        self._counted = 0

    def end_folder(self) -> None:
        """Counts the files since the last call as one folder's."""
        if len(self.paths) > self._counted:
            self.folders.append(len(self.paths) - self._counted)
            self._counted = len(self.paths)

    def drop_begun_part(self) -> bool:
        """Leaves only whole parts of the folder under way; False, and all stays, if it has none."""
        taken = len(self.paths) - self._counted
        begun = taken % PART
        if begun == taken != 0:
            return False
        for column in (self.paths, self.sizes, self.times):
            del column[len(column) - begun :]
        return True

    def close_chunk(self) -> None:
        """Turns what was collected since the last call, whole folders, into Arrow columns."""
        problems = pa.nulls(len(self.paths), pa.string())
        try:
            paths = pa.array(self.paths, pa.large_string())
        except UnicodeEncodeError:  # bytes that are not UTF-8 reach us as lone surrogates
            broken = [not _is_utf8(path) for path in self.paths]
            paths = pa.array(map(printable_path, self.paths), pa.large_string())
            problems = pa.array(["name_not_utf8" if each else None for each in broken], pa.string())
        times = pa.array(self.times, pa.int64())
        self.newest_ns = max(self.newest_ns, pc.max(times).as_py() or 0)
        columns = [paths, pa.array(self.sizes, pa.int64()), times.cast(pa.large_string()), problems]
        self.chunks.append(pa.table(columns, schema=LISTING))
        self._clear()

    def take(self) -> tuple[pa.Table, list[int]]:
        """The rows since the last call, whole folders or whole parts, and how many are in each."""
        table, folders = self.table(), self.folders
        self.chunks, self.folders = [], []
        return table, folders

    def table(self) -> pa.Table:
        """All of it."""
        self.close_chunk()
        return pa.concat_tables(self.chunks)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_path(path: str) -> str:
    """A path with what is not UTF-8 in it written as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
