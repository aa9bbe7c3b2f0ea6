"""From what a table or list declares to a listing: what is there, in which state, and where its bytes are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset.listing import LISTING, NOTHING, fold
from wds_pipeline.dataset.origins import GONE, ORIGINS
from wds_pipeline.dataset.scan import wait_for_the_clock
from wds_pipeline.dataset.sources import path_files
from wds_pipeline.dataset.sources.declared import AWAY, DECLARED, FILE, REMOTE
from wds_pipeline.dataset.sources.kept import OK, Items, id_of
from wds_pipeline.dataset.sources.put_away import ids_of
from wds_pipeline.storage import Storage

_GUESS = 100_000  # bytes of what was not fetched yet, where nothing else was either


def with_files(table: pa.Table, bases: Sequence[Storage], details: dict[str, str]) -> pa.Table:
    """The members (schema `DECLARED`) with the state of those that are files, whose `text` is then relative.

    Raises SourceError.
    """
    kind, base = table["kind"].to_numpy(), table["base"].to_numpy()
    newest_ns = 0
    for number, storage in enumerate(bases):
        rows = np.flatnonzero((kind == FILE) & (base == number))
        if not len(rows):
            continue
        table, newest = _with_files_of(table, rows, storage, details)
        newest_ns = max(newest_ns, newest)
    wait_for_the_clock(newest_ns)
    return table


def _with_files_of(
    table: pa.Table, rows: np.ndarray, storage: Storage, details: dict[str, str]
) -> tuple[pa.Table, int]:
    texts = table["text"].take(pa.array(rows)).to_pylist()
    inside = [_relative(text, storage.url) for text in texts]
    known = [path for path in inside if path is not None]
    found = path_files.look_up(storage, known)
    wrong: dict[int, str] = {}
    at = np.flatnonzero([path is not None for path in inside])
    sizes, prints = np.zeros(len(rows), np.int64), [""] * len(rows)
    sizes[at] = found.sizes
    for number, value in zip(at.tolist(), found.fingerprints, strict=True):
        prints[number] = value
    for number, what in found.wrong.items():
        wrong[int(at[number])] = what
    for number, path in enumerate(inside):
        if path is None:
            wrong[number] = (
                f"the path {texts[number]!r} is not below {storage.url}; expected one relative to it, or "
                "set base (`base: /` allows any)"
            )
    table = _put(table, "size", rows, pa.array(sizes))
    table = _put(table, "fingerprint", rows, pa.array(prints, pa.large_string()))
    values = [path if path is not None else text for path, text in zip(inside, texts, strict=True)]
    table = _put(table, "text", rows, pa.array(values, pa.large_string()))
    lost = np.array(sorted(wrong), np.int64)
    if len(lost):
        table = _put_problem(table, rows[lost], "missing_file")
        names = table["path"].take(pa.array(rows[lost])).to_pylist()
        details.update(zip(names, (wrong[n] for n in lost.tolist()), strict=True))
    return table, found.newest_ns


def _relative(path: str, base: str) -> str | None:
    return path_files.relative(path, base) if path and "\0" not in path else None


def with_ids(table: pa.Table) -> tuple[pa.Table, np.ndarray, pa.Array]:
    """The members with a fingerprint for each that is to be fetched: what it is called among what is kept.
    And the rows and ids of these."""
    rows = np.flatnonzero(table["kind"].to_numpy() == REMOTE)
    texts = table["text"].take(pa.array(rows)).to_pylist()
    ids = pa.array([id_of(text) for text in texts], pa.string())
    prefix = pa.scalar("declared:", pa.large_string())
    prints = pc.binary_join_element_wise(
        prefix, ids.cast(pa.large_string()), pa.scalar("", pa.large_string())
    )
    return _put(table, "fingerprint", rows, prints), rows, ids


def declared_digest(table: pa.Table) -> str:
    """The same for the same members: of those that are to be fetched, as long as they are declared alike."""
    return fold(NOTHING, table.select(LISTING.names), [table.num_rows]).hex()


@dataclass(frozen=True)
class Settled:
    """A listing's files (schema `LISTING`) and where they are (`ORIGINS`); `pending` counts what is still to
    be fetched, whose sizes are guesses, and `failed` what could not be."""

    files: pa.Table
    origins: pa.Table
    pending: int = 0
    failed: int = 0


def settled(
    table: pa.Table,
    rows: np.ndarray,
    ids: pa.Array,
    items: Items | None,
    details: dict[str, str],
    keeper: int,
    away: Items | None = None,
) -> Settled:
    """The listing of members, of which `rows` are to be fetched, and are among `items` under their `ids`;
    those that were put away are among `away`.

    The stores of the origins are the members' bases; of what is kept, the one with the number `keeper`.
    """
    kind, base = table["kind"].to_numpy(), table["base"].to_numpy()
    store = np.where(kind == FILE, base, -1).astype(np.int16)
    offset = pa.nulls(table.num_rows, pa.int64())
    is_file = pa.array(kind == FILE)
    file = pc.if_else(is_file, table["text"].combine_chunks(), pa.scalar(None, pa.large_string()))
    pending = failed = 0
    if items is not None and len(rows):
        at = items.find(ids)
        status = (
            items.rows["status"].take(pa.array(np.maximum(at, 0))) if items.rows.num_rows else None
        )
        good = np.zeros(len(at), bool)
        if status is not None:
            good = (at >= 0) & pc.equal(status, OK).to_numpy()
        kept = items.rows.take(pa.array(at[good]))
        table, offset, file = _with_kept(table, rows[good], kept, items.parts, offset, file)
        store[rows] = GONE
        store[rows[good]] = keeper
        bad = (at >= 0) & ~good
        table = _with_failures(table, rows[bad], items.rows.take(pa.array(at[bad])), details)
        unknown = rows[at < 0]
        guess = int(pc.mean(kept["bytes"]).as_py() or _GUESS) if kept.num_rows else _GUESS
        table = _put(table, "size", unknown, pa.array(np.full(len(unknown), guess)))
        pending, failed = len(unknown), int(bad.sum())
    if away is not None:
        rows = np.flatnonzero(kind == AWAY)
        at = away.find(ids_of(table["fingerprint"].take(pa.array(rows))))
        store[rows] = GONE
        rows, at = rows[at >= 0], at[at >= 0]
        store[rows] = keeper
        there = away.rows.take(pa.array(at))
        table, offset, file = _with_kept(table, rows, there, away.parts, offset, file)
    origins = pa.table(
        [pa.array(store), file.dictionary_encode(), offset, table["data"]], schema=ORIGINS
    )
    return Settled(table.select(LISTING.names).cast(LISTING), origins, pending, failed)


def _with_kept(
    table: pa.Table,
    rows: np.ndarray,
    kept: pa.Table,
    parts: list[str],
    offset: pa.Array,
    file: pa.Array,
) -> tuple[pa.Table, pa.Array, pa.Array]:
    table = _put(table, "size", rows, kept["bytes"].combine_chunks())
    table = _put(
        table, "fingerprint", rows, kept["content"].combine_chunks().cast(pa.large_string())
    )
    mask = _mask(table.num_rows, rows)
    offset = pc.replace_with_mask(offset, mask, kept["offset"].combine_chunks())
    where = pa.array(parts, pa.large_string()).take(kept["part"].combine_chunks())
    return table, offset, pc.replace_with_mask(file, mask, where)


def _with_failures(
    table: pa.Table, rows: np.ndarray, failures: pa.Table, details: dict[str, str]
) -> pa.Table:
    if not len(rows):
        return table
    names = table["path"].take(pa.array(rows)).to_pylist()
    reasons = zip(failures["status"].to_pylist(), failures["detail"].to_pylist(), strict=True)
    for name, (status, detail) in zip(names, reasons, strict=True):
        details[name] = f"{status}: {detail}" if detail else status
    return _put_problem(table, rows, "download_failed")


def _mask(count: int, rows: np.ndarray) -> pa.Array:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return pa.array(mask)


def _put(table: pa.Table, name: str, rows: np.ndarray, values: pa.Array) -> pa.Table:
    """The table with other values in some rows, which are in order."""
    column = table[name].combine_chunks()
    number = table.column_names.index(name)
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    new = pc.replace_with_mask(column, _mask(table.num_rows, rows), values)
    return table.set_column(number, DECLARED.field(name), new)


def _put_problem(table: pa.Table, rows: np.ndarray, reason: str) -> pa.Table:
    """Marks rows that have no problem yet."""
    before = table["problem"].combine_chunks()
    mask = pc.and_(_mask(table.num_rows, rows), pc.is_null(before))
    new = pc.if_else(mask, pa.scalar(reason, pa.string()), before)
    return table.set_column(1, DECLARED.field("problem"), new)
