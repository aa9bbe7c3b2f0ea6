"""What tables and lists have in common: they declare members, some of which have to be fetched."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pyarrow as pa

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.origins import Origins
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.sources.declared import AWAY, Declared
from wds_pipeline.dataset.sources.kept import OK, Items, Kept
from wds_pipeline.dataset.sources.put_away import PutAway, ids_of
from wds_pipeline.dataset.sources.resolve import (
    Settled,
    declared_digest,
    settled,
    with_files,
    with_ids,
)
from wds_pipeline.dataset.sources.tidy_kept import DAY, tidy_kept
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import Storage, open_storage

_KNOWN: dict[str, tuple[str, int, int]] = {}  # digest, files and bytes of what was looked at before
_MOST_KNOWN = 256


class ListedSource(Source):
    """A table or list. A listing's digest is of what is declared: the same before and after fetching."""

    keeps: ClassVar[str]
    """The folder below `sources/` for what it fetches."""
    fetches: ClassVar[tuple[str, str]]
    """What these are called, one and several."""

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        self.bases: list[Storage] = []
        self.opened: list[Storage] = []
        self._put: PutAway | None = None
        self.skipped: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def put_away(self) -> PutAway:
        """Where cells go that are too much to be held."""
        self._put = PutAway(self._keeper(), self.keep is not None)
        return self._put

    @abstractmethod
    def declare(self, progress: Progress | None = None) -> Declared:
        """Reads what it declares, and opens `bases`, where its files are; `opened` are all the stores asked.

        Raises SourceError, ConfigError, DataError.
        """

    @abstractmethod
    def state(self) -> str:
        """Tells the states of what is declared apart without reading it; "" where it takes more than that."""

    def fetch(
        self, table: pa.Table, rows: np.ndarray, kept: Kept, progress: Progress | None
    ) -> Counter[str]:
        """Fetches these members and keeps them; how many had which status. Raises DestinationError."""
        raise NotImplementedError

    def scan(self, progress: Progress | None = None) -> Listing:
        """Lists what is declared; with `keep`, also fetches what has to be and was not yet.

        Raises SourceError, ConfigError, DataError, DestinationError.
        """
        self.fetched, self.warnings = False, []
        declared, table, rows, ids = self._members(progress)
        digest = declared_digest(table)
        items = self._items(table, rows, ids, progress)
        put = self._put
        away = None
        if put is not None and put.used:
            rows_away = np.flatnonzero(table["kind"].to_numpy() == AWAY)
            used = ids_of(table["fingerprint"].take(pa.array(rows_away)))
            away = put.items(used if self.alone else None, self.config.retention.days * DAY)
        keeper = len(self.bases)
        found = settled(table, rows, ids, items, declared.details, keeper, away)
        self._warn(found)
        for each in self.opened:
            self.usage.add(each.usage)
        places = [each.place for each in self.bases]
        if items is not None or away is not None:
            places.append(self._keeper().place)
        return Listing(
            found.files,
            skipped=self.skipped,
            examples=self.examples,
            origins=Origins(tuple(places), found.origins),
            details=declared.details,
            digest=digest,
        )

    def _members(
        self, progress: Progress | None
    ) -> tuple[Declared, pa.Table, np.ndarray, pa.Array]:
        declared = self.declare(progress)
        table = declared.table()
        if not table.num_rows:
            raise SourceError(
                f"{self.dataset}: source: {self.url}: declares no sample at all; expected one a row"
            )
        table, rows, ids = with_ids(with_files(table, self.bases, declared.details))
        return declared, table, rows, ids

    def _keeper(self) -> Storage:
        return self.keep or open_storage(self.config.destination_place)

    def _items(
        self, table: pa.Table, rows: np.ndarray, ids: pa.Array, progress: Progress | None
    ) -> Items | None:
        """What is kept, after what is missing was fetched."""
        if not len(rows):
            return None
        kept = Kept(self._keeper(), self.keeps)
        items = kept.load()
        if self.keep is None:
            return items
        first = np.unique(np.asarray(ids.to_numpy(zero_copy_only=False), str), return_index=True)[1]
        first.sort()
        at = items.find(ids.take(pa.array(first)))
        status = items.rows["status"].to_numpy(zero_copy_only=False)
        good = np.array([n >= 0 and status[n] == OK for n in at.tolist()], bool)
        missing = rows[first[~good]]
        if len(missing):
            counts = self.fetch(table, missing, kept, progress)
            self.fetched = counts[OK] > 0
            items = kept.load()
        used = ids if self.alone else None
        return tidy_kept(kept, items, used, self.config.retention.days * DAY)

    def _warn(self, found: Settled) -> None:
        one, several = self.fetches
        if found.pending:
            what = f"1 {one} is" if found.pending == 1 else f"{found.pending:,} {several} are"
            self.warnings.append(
                f"{what} not fetched yet; a build does that first, so the bytes told here are guesses"
            )
        if found.failed and self.keep is None:
            what = one if found.failed == 1 else several
            self.warnings.append(
                f"{found.failed:,} {what} could not be fetched; a build tries again"
            )

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """What is declared; read again only if it may have changed since this process last did."""
        began = now()
        state = self.state()
        known = _KNOWN.get(state) if state else None
        if known is None:
            _, table, _, _ = self._members(None)
            known = declared_digest(table), table.num_rows, int(np.sum(table["size"].to_numpy()))
            if state:
                if len(_KNOWN) >= _MOST_KNOWN:
                    _KNOWN.clear()
                _KNOWN[state] = known
        digest, files, size = known
        return Look(
            rules=self.config.source.kind, device=0, began=began, ended=now(),
            files=files, bytes=size, state=digest, place=None,
        )  # fmt: skip
