"""Samples by what the member indexes and the shards' reports say of them; no sample is read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import VersionError
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.members import ShardMembers
from wds_pipeline.dataset.query import COLUMNS, FROM_REPORT, KEY, SIZE, Query

_THREADS = 8

Keys = str | re.Pattern[str] | Collection[str]


def select(
    catalog: Catalog,
    among: np.ndarray | None,
    where: str | pc.Expression | None,
    keys: Keys | None,
    has: Iterable[str],
    lacks: Iterable[str],
) -> np.ndarray:
    """The numbers of the samples that all of it is true of, in the order of `among`, or stored.

    Raises VersionError for what no sample can be asked, VerificationError for damaged indexes.
    """
    return _Selection(catalog, where, keys, has, lacks).of(among)


class _Selection:
    def __init__(
        self,
        catalog: Catalog,
        where: str | pc.Expression | None,
        keys: Keys | None,
        has: Iterable[str],
        lacks: Iterable[str],
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._parts: list[pc.Expression] = []
        self._columns: set[str] = set()
        self._seen: set[str] = set()
        if isinstance(where, str):
            query = Query(where, catalog.named)
            self._parts.append(query.expression)
            self._columns |= query.columns
        elif where is not None:
            if not isinstance(where, pc.Expression):
                raise VersionError(
                    f"{catalog.named}: select: found {where!r:.80}; expected a query such as "
                    "'jpg.width >= 512'; for a function of a sample: test=…"
                )
            self._parts.append(where)
            self._columns |= _columns_of(where, catalog)
        for fields, wanted in ((has, True), (lacks, False)):
            for field in [fields] if isinstance(fields, str) else fields:
                self._columns.add(f"{field}.{SIZE}")
                there = pc.field(f"{field}.{SIZE}").is_valid()
                self._parts.append(there if wanted else ~there)
        self._check_fields()

    def _check_fields(self) -> None:
        asked = {name.rpartition(".")[0] for name in self._columns if name != KEY}
        first = set(self._catalog.members(0).field_names) if self._catalog.shards else set()
        if asked <= first:
            return
        known = self._catalog.field_names()
        for field in sorted(asked - set(known)):
            raise VersionError(
                f"{self._catalog.named}: no sample has a field {field!r}; there are "
                f"{', '.join(known)}{did_you_mean(field, known)}"
            )

    def of(self, among: np.ndarray | None) -> np.ndarray:
        starts = self._catalog.starts
        shards_left = list(range(len(self._catalog.shards)))
        if among is not None:
            wanted = np.zeros(len(self._catalog), bool)
            wanted[among] = True
            before = np.concatenate([[0], np.cumsum(wanted)])
            counts = before[starts[1:]] - before[starts[:-1]]
            shards_left = np.flatnonzero(counts).tolist()
        with ThreadPoolExecutor(_THREADS) as threads:
            found = list(threads.map(self._of_shard, shards_left))
        numbers = [rows + starts[shard] for shard, rows in zip(shards_left, found, strict=True)]
        chosen = np.concatenate([np.empty(0, np.int64), *numbers])
        if shards_left:
            self._check_known()
        if among is None:
            return chosen
        taken = np.zeros(len(self._catalog), bool)
        taken[chosen] = True
        return among[taken[among]]

    def _of_shard(self, shard: int) -> np.ndarray:
        members = self._catalog.members(shard)
        rows = np.arange(len(members), dtype=np.int64)
        if self._keys is not None:
            rows = rows[_matching(members.keys, self._keys)]
        if not self._parts:
            return rows
        table = self._table(shard, members).append_column("__row__", pa.array(range(len(members))))
        table = table.take(pa.array(rows))
        try:
            for part in self._parts:
                table = table.filter(part)
        except (pa.ArrowException, TypeError) as error:
            what = str(error).splitlines()[0]
            raise VersionError(
                f"{self._catalog.named}: the query cannot be answered: {what}; there are {KEY} and, of "
                f"each field, {', '.join(f'field.{column}' for column in COLUMNS)}"
            ) from error
        return table["__row__"].to_numpy()

    def _check_known(self) -> None:
        """A column without any value is more likely a slip than meant."""
        asked = {name for name in self._columns if name.rpartition(".")[2] in FROM_REPORT}
        for name in sorted(asked - self._seen):
            field, _, column = name.rpartition(".")
            if column != "problem":
                raise VersionError(
                    f"{self._catalog.named}: the query asks for {name}, but no {field} has a {column}"
                )

    def _table(self, shard: int, members: ShardMembers) -> pa.Table:
        """What is asked of the samples, a row a sample; null for a field that one lacks."""
        columns: dict[str, pa.Array] = {KEY: members.keys}
        needed = sorted({name.rpartition(".")[2] for name in self._columns} & set(FROM_REPORT))
        report = self._report(shard, members, needed) if needed else None
        owner = np.repeat(np.arange(len(members)), np.diff(members.first))
        for name in self._columns - {KEY}:
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
                self._check_decoded(shard, report, name, at)
                columns[name] = report[column].combine_chunks().take(rows)
                if columns[name].null_count < len(rows):
                    self._seen.add(name)
        return pa.table(columns)

    def _report(self, shard: int, members: ShardMembers, needed: list[str]) -> pa.Table:
        columns = ["field", "size", "decoded", *needed]
        columns += ["problem"] if "problem" not in needed else []
        report = self._catalog.content.report_table(shard, columns)
        if report is None:
            raise self._unknown(shard, needed[0], "it has no report")
        names = pa.array(members.field_names).take(pa.array(members.fields))
        same = len(report) == len(members.fields) and (
            report["field"].combine_chunks().equals(names)
            and np.array_equal(report["size"].to_numpy(), members.sizes)
        )
        if not same:
            raise self._unknown(shard, needed[0], "its report is of other members")
        return report

    def _check_decoded(self, shard: int, report: pa.Table, name: str, rows: np.ndarray) -> None:
        """A width that nobody has looked for is not one that is too small."""
        if name.endswith(".problem"):
            return
        part = report.take(pa.array(rows))
        column = name.rpartition(".")[2]
        open_ = pc.and_(pc.invert(part["decoded"]), pc.is_null(part["problem"]))
        left = pc.sum(pc.and_(open_, pc.is_null(part[column]))).as_py() or 0
        if left:
            what = f"{left:,} of its {len(part):,} {name.rpartition('.')[0]} were never decoded"
            raise self._unknown(shard, column, what)

    def _unknown(self, shard: int, column: str, why: str) -> VersionError:
        where = f"{self._catalog.named}: {self._catalog.shards[shard].url}"
        return VersionError(
            f"{where}: {column} is not known: {why}; {self._catalog.content.decoding}"
        )


def _matching(keys: pa.Array, wanted: Keys) -> np.ndarray:
    """Which keys match: a glob (`*` also crosses `/`), a regular expression (searched), or a set."""
    if isinstance(wanted, str):
        # Python's translation, since Arrow's own globs have no sets of characters.
        wanted = re.compile(fnmatch.translate(wanted))
    if isinstance(wanted, re.Pattern):
        search = wanted.search
        return np.fromiter((search(key) is not None for key in keys.to_pylist()), bool, len(keys))
    values = pa.array(list(wanted), keys.type)
    return pc.is_in(keys, value_set=values).to_numpy(zero_copy_only=False)


def _columns_of(expression: pc.Expression, catalog: Catalog) -> set[str]:
    """The columns that an expression names: all that there may be, as far as its text has them."""
    text = str(expression)
    known = catalog.field_names()
    names = {f"{field}.{column}" for field in known for column in COLUMNS}
    return {name for name in names if name in text}
