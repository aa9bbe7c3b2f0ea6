"""Samples by what the member indexes and the shards' reports say of them; no sample is read."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.query import COLUMNS, Query
from wds_pipeline.dataset.query_shard import ShardQuery, Unanswerable, Unknown
from wds_pipeline.errors import VersionError
from wds_pipeline.training.catalog import Catalog

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
        self._query = ShardQuery()
        if isinstance(where, str):
            self._query.add(Query(where, catalog.named))
        elif where is not None:
            if not isinstance(where, pc.Expression):
                raise VersionError(
                    f"{catalog.named}: select: found {where!r:.80}; expected a query such as "
                    "'jpg.width >= 512'; for a function of a sample: test=…"
                )
            self._query.add_expression(where, _columns_of(where, catalog))
        for fields, wanted in ((has, True), (lacks, False)):
            for field in [fields] if isinstance(fields, str) else fields:
                self._query.add_field(field, wanted)
        self._check_fields()

    def _check_fields(self) -> None:
        asked = self._query.fields
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
            for name in self._query.without_values():
                field, _, column = name.rpartition(".")
                raise VersionError(
                    f"{self._catalog.named}: the query asks for {name}, but no {field} has a {column}"
                )
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
        try:
            return self._query.choose(
                members, partial(self._catalog.content.report_table, shard), rows
            )
        except Unanswerable as error:
            raise VersionError(f"{self._catalog.named}: {error}") from error
        except Unknown as error:
            where = f"{self._catalog.named}: {self._catalog.shards[shard].url}"
            raise VersionError(
                f"{where}: {error.column} is not known: {error.why}; {self._catalog.content.decoding}"
            ) from error


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
