"""What a table or list declares, as columns: each member's name, and its bytes or where they are to be had.

A key becomes a name that WebDataset's rule splits again as it was made: in its last part, `.` becomes `%2E`
and `%` becomes `%25`, as with `samples.naming: escape`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.dataset.sources.content_digests import fingerprints

DATA, FILE, REMOTE, AWAY = 0, 1, 2, 3
# One row a member. `kind` says what it is: its bytes in `data`; the file `text`, relative to the base of
# number `base`; what `text`, a URL or command, gives; or bytes that were put away. `problem` as in a listing.
DECLARED = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("problem", pa.string()),
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("base", pa.int16(), nullable=False),
        pa.field("text", pa.large_string()),
        pa.field("data", pa.large_binary()),
        pa.field("fingerprint", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
_HELD_BYTES = 512 * 1024 * 1024  # of cells in memory; the others are put away
_SMALL = 1024  # bytes of a cell, on the average, that are not worth it
_NO_KEY = "__no_key__/"  # no sample can be called so: readers skip such names


@dataclass
class Declared:
    """What was collected so far. `where` says of a row, by its number, how messages name it."""

    where: Callable[[int], str]
    tables: list[pa.Table] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)
    stems: list[pa.Array] = field(default_factory=list)
    put_away: Callable[[pa.Array, pa.Array], None] | None = None
    held: int = 0

    def names(self, names: Names) -> None:
        """Adds rows, whose fields follow."""
        self.stems.append(names.stems)

    def add(self, names: Names, field: str, kind: int, cells: pa.Array, base: int = -1) -> None:
        """Adds one field of neighbouring rows; those whose cell is null have none."""
        paths, problems = names.of(field)
        rows = pa.array(np.arange(names.first, names.first + len(cells)))
        columns = [paths, problems, cells, rows]
        if cells.null_count:
            keep = pc.is_valid(cells)
            columns = [each.filter(keep) for each in columns]
        paths, problems, cells, rows = columns
        count = len(cells)
        if not count:
            return
        if kind == DATA:
            text, data = pa.nulls(count, pa.large_string()), cells
            prints, sizes = content_fingerprints(cells)
            if self._is_too_much(cells):
                assert self.put_away is not None
                self.put_away(cells, prints)
                kind, data = AWAY, pa.nulls(count, pa.large_binary())
        else:
            text, data = as_text(cells)[0], pa.nulls(count, pa.large_binary())
            prints = pa.repeat(pa.scalar("", pa.large_string()), count)
            sizes = pa.array(np.zeros(count, np.int64))
        self.tables.append(
            pa.table(
                [paths, problems, _same(kind, count, pa.int8()), _same(base, count, pa.int16()),
                 text, data, prints, sizes, rows],
                schema=DECLARED,
            )
        )  # fmt: skip

    def _is_too_much(self, cells: pa.Array) -> bool:
        size = cells.nbytes
        if self.put_away is None or size < _SMALL * len(cells) or self.held + size <= _HELD_BYTES:
            self.held += size
            return False
        return True

    def table(self) -> pa.Table:
        """All of it (schema `DECLARED`), and in `details` which rows have the same name or none."""
        found = pa.concat_tables([DECLARED.empty_table(), *self.tables]).combine_chunks()
        stems = pa.chunked_array(self.stems, pa.large_string())
        if pc.count_distinct(stems).as_py() < len(stems):
            self._note_twice(found)
        return found

    def _note_twice(self, found: pa.Table) -> None:
        counts = pc.value_counts(found["path"].combine_chunks())
        twice = counts.field(0).filter(pc.greater(counts.field(1), 1))
        some = found.select(["path", "row"]).filter(pc.is_in(found["path"], value_set=twice))
        rows: dict[str, list[int]] = {}
        for path, row in zip(some["path"].to_pylist(), some["row"].to_pylist(), strict=True):
            rows.setdefault(path, []).append(row)
        for path, numbers in rows.items():
            named = " and ".join(self.where(row) for row in numbers[:3])
            more = f" and {len(numbers) - 3:,} more" if len(numbers) > 3 else ""
            self.details[path] = f"{named}{more}"


@dataclass(frozen=True)
class Names:
    """The keys of neighbouring rows as the beginnings of members' names; `first` is the first row's
    number."""

    first: int
    stems: pa.Array
    problems: pa.Array

    def of(self, field: str) -> tuple[pa.Array, pa.Array]:
        """The names of the rows' members of a field ("": they are names already), and what is wrong with
        them."""
        if not field:
            return self.stems, self.problems
        end = pa.scalar(f".{field}", pa.large_string())
        empty = pa.scalar("", pa.large_string())
        return pc.binary_join_element_wise(self.stems, end, empty), self.problems


def names_of(
    keys: pa.Array | None, count: int, first: int, escape: bool, note: Callable[[int, str], None]
) -> Names:
    """The names of rows with these keys (large_binary); without keys, their numbers, nine digits.

    `escape` is False where the dataset's own naming rule escapes. A row without a key, or with one that is
    not UTF-8, gets a name by which it is found in the quarantine; `note` is called with the row's number in
    the chunk and that name.
    """
    if keys is None:
        stems = [f"{number:09d}" for number in range(first, first + count)]
        return Names(first, pa.array(stems, pa.large_string()), pa.nulls(count, pa.string()))
    text, broken = as_text(keys)
    odd = np.flatnonzero(
        pc.fill_null(pc.equal(pc.binary_length(keys), 0), True).to_numpy(zero_copy_only=False)
    )
    problems = pa.nulls(count, pa.string())
    if len(broken):
        problems = _put(problems, broken, "name_not_utf8")
    if escape:
        text = escaped(text)
    if len(odd):
        values = text.to_pylist()
        for row in odd.tolist():
            values[row] = f"{_NO_KEY}{first + row:09d}"
            note(row, values[row])
        text = pa.array(values, pa.large_string())
        problems = _put(problems, odd, "bad_name")
    return Names(first, text, problems)


def escaped(keys: pa.Array) -> pa.Array:
    """Keys whose last parts have no dot: `a.b/c.d` is `a.b/c%2Ed`."""
    affected = pc.fill_null(pc.match_substring_regex(keys, r"[.%]"), False)
    rows = np.flatnonzero(affected.to_numpy(zero_copy_only=False))
    if not len(rows):
        return keys
    new = [escape(key) for key in keys.filter(affected).to_pylist()]
    return pc.replace_with_mask(keys, affected, pa.array(new, pa.large_string()))


def escape(key: str) -> str:
    """One key, see `escaped`."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.replace("%", "%25").replace(".", "%2E")


def as_text(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Bytes as text, and the numbers of those that are not UTF-8: what is not, in these, is `\\xff`."""
    try:
        return values.cast(pa.large_string()), np.empty(0, np.int64)
    except pa.ArrowInvalid:
        pass
    found: list[str | None] = []
    broken = []
    for row, value in enumerate(values.to_pylist()):
        try:
            found.append(value if value is None else value.decode())
        except UnicodeDecodeError:
            broken.append(row)
            found.append(value.decode("utf-8", "backslashreplace"))
    return pa.array(found, pa.large_string()), np.array(broken, np.int64)


def content_fingerprints(cells: pa.Array) -> tuple[pa.Array, pa.Array]:
    """A content hash of each cell (large_binary, none of them null), and its size in bytes."""
    sizes = pc.binary_length(cells).cast(pa.int64())
    _, offsets, data = cells.buffers()
    if not len(cells) or data is None:
        digests = xxhash.xxh3_128_digest(b"") * len(cells)
    else:
        bounds = np.frombuffer(offsets, np.int64)[cells.offset : cells.offset + len(cells) + 1]
        view = memoryview(data)
        digest = xxhash.xxh3_128_digest
        digests = b"".join([digest(view[at:end]) for at, end in pairwise(bounds.tolist())])
    return fingerprints(np.frombuffer(digests, np.uint8).reshape(-1, 16)), sizes


def _same(value: int, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _put(problems: pa.Array, rows: np.ndarray, reason: str) -> pa.Array:
    mask = np.zeros(len(problems), bool)
    mask[rows] = True
    return pc.if_else(pa.array(mask), pa.scalar(reason, pa.string()), problems)
