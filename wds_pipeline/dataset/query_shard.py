"""A query, asked of the samples of one shard: what its member index and its report say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset.query import COLUMNS, FROM_REPORT, KEY, SIZE, Query

_ROW = "__row__"


class Rows(Protocol):
    """A member index: `keys` has one key a sample; the members of sample i are `first[i]:first[i + 1]` of
    `fields` (codes of `field_names`) and `sizes` (bytes)."""

    keys: pa.Array
    first: np.ndarray
    fields: np.ndarray
    field_names: list[str]

    @property
    def sizes(self) -> np.ndarray: ...

    def __len__(self) -> int: ...


ReadReport = Callable[[list[str]], "pa.Table | None"]
"""Reads some columns of a shard's report, a row a member; None if there is none."""


class Unknown(Exception):
    """A column of the query is not known of a shard: `column` and why, in one clause."""

    def __init__(self, column: str, why: str) -> None:
        super().__init__(column, why)
        self.column = column
        self.why = why


class Unanswerable(Exception):
    """The query compares what cannot be compared; says in what, in one clause."""


class ShardQuery:
    """Conditions that all have to be true of a sample. `columns` are those that they need."""

    def __init__(self) -> None:
        self.columns: set[str] = set()
        self._parts: list[pc.Expression] = []
        self._seen: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, query: Query) -> None:
        """A query in text."""
        self.add_expression(query.expression, query.columns)

    def add_expression(self, expression: pc.Expression, columns: Collection[str]) -> None:
        """An expression of Arrow's, and the columns that it names."""
        self._parts.append(expression)
        self.columns |= set(columns)

    def add_field(self, field: str, wanted: bool) -> None:
        """Whether a sample has a field."""
        there = pc.field(f"{field}.{SIZE}").is_valid()
        self.add_expression(there if wanted else ~there, [f"{field}.{SIZE}"])

    @property
    def fields(self) -> set[str]:
        """The fields that it asks about."""
        return {name.rpartition(".")[0] for name in self.columns if name != KEY}

    def without_values(self) -> list[str]:
        """Columns of the report in which no sample had a value so far: more likely a slip than meant."""
        asked = {name for name in self.columns if name.rpartition(".")[2] in FROM_REPORT}
        return sorted(name for name in asked - self._seen if not name.endswith(".problem"))

    def choose(
        self, members: Rows, report: ReadReport, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """The numbers of the samples, among `rows` (sorted) or all, that it is true of.

        Raises Unknown, Unanswerable.
        """
        if rows is None:
            rows = np.arange(len(members), dtype=np.int64)
        if not self._parts:
            return rows
        numbers = pa.array(np.arange(len(members), dtype=np.int64))
        table = self._table(members, report).append_column(_ROW, numbers).take(pa.array(rows))
        try:
            for part in self._parts:
                table = table.filter(part)
        except (pa.ArrowException, TypeError) as error:
            what = str(error).splitlines()[0]
            raise Unanswerable(
                f"the query cannot be answered: {what}; there are {KEY} and, of "
                f"each field, {', '.join(f'field.{column}' for column in COLUMNS)}"
            ) from error
        found: np.ndarray = table[_ROW].to_numpy()
        return found

    def _table(self, members: Rows, read_report: ReadReport) -> pa.Table:
        """What is asked of the samples, a row a sample; null for a field that one lacks."""
        columns: dict[str, pa.Array] = {KEY: members.keys}
        needed = sorted({name.rpartition(".")[2] for name in self.columns} & set(FROM_REPORT))
        report = _report(members, read_report, needed) if needed else None
        owner = np.repeat(np.arange(len(members)), np.diff(members.first))
        for name in self.columns - {KEY}:
            field, _, column = name.rpartition(".")
            codes = [code for code, each in enumerate(members.field_names) if each == field]
            at = np.flatnonzero(np.isin(members.fields, codes))
            row_of = np.full(len(members), -1, np.int64)
            row_of[owner[at]] = at
            rows = pa.array(row_of, mask=row_of < 0)
            if column == SIZE:
                columns[name] = pa.array(members.sizes).take(rows)
            else:
                assert report is not None
                _check_decoded(report, name, at)
                columns[name] = report[column].combine_chunks().take(rows)
                if columns[name].null_count < len(rows):
                    self._seen.add(name)
        return pa.table(columns)


def _report(members: Rows, read_report: ReadReport, needed: list[str]) -> pa.Table:
    columns = ["field", "size", "decoded", *needed]
    columns += ["problem"] if "problem" not in needed else []
    report = read_report(columns)
    if report is None:
        raise Unknown(needed[0], "it has no report")
    names = pa.array(members.field_names).take(pa.array(members.fields))
    same = len(report) == len(members.fields) and (
        report["field"].combine_chunks().equals(names)
        and np.array_equal(report["size"].to_numpy(), members.sizes)
    )
    if not same:
        raise Unknown(needed[0], "its report is of other members")
    return report


def _check_decoded(report: pa.Table, name: str, rows: np.ndarray) -> None:
    """A width that nobody has looked for is not one that is too small."""
    field, _, column = name.rpartition(".")
    if column == "problem":
        return
    part = report.take(pa.array(rows))
    open_ = pc.and_(pc.invert(part["decoded"]), pc.is_null(part["problem"]))
    left = pc.sum(pc.and_(open_, pc.is_null(part[column]))).as_py() or 0
    if left:
        raise Unknown(column, f"{left:,} of its {len(part):,} {field} were never decoded")
