"""Each sample's split, shard slot and place in the shard: kept where it had one, else found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import layout, ledger, samples, split
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.samples import Samples

_LAST = np.iinfo(np.int64).max
_BATCH = 131_072


class Places:
    """Each sample's split, slot and place in the shard: kept where it had one, else found."""

    def __init__(
        self,
        found: Samples,
        parent: Parent,
        rejected: pa.Table | None,
        draft: pa.Table | None,
        config: DatasetConfig,
        *,
        relayout: bool,
        resplit: bool,
    ) -> None:
        self.found, self.parent, self.config = found, parent, config
        base = parent.ledger if draft is None else draft
        self.base = base
        count = len(found)
        # Of each row of the parent's ledger, the sample that it is now; -1 where that is gone.
        self.published = self._find(parent.ledger)
        self.split = np.full(count, -1, np.int32)
        self.slot = np.full(count, -1, np.int32)
        self.position = np.full(count, _LAST, np.int64)
        # Later tables win, so the ledger comes last; quarantined samples return to their places.
        tables = [each for each in (parent.quarantine, rejected) if each is not None]
        self.split_names: list[str] = []
        for table in tables:
            table = table.filter(pc.is_valid(table["split"]))
            at = table.schema.get_field_index("split")
            self._keep(table.set_column(at, "split", table["split"].dictionary_encode()), None)
        if draft is not None:  # what an earlier draft left out still has its published place
            self._keep(parent.ledger, None)
        if relayout:  # the quarantine's slots are the old layout's; so are the parent's
            self._forget(resplit)
        self._keep(base, np.arange(base.num_rows))
        self.relayout = relayout
        if relayout and draft is None:
            self._forget(resplit)

    def _forget(self, splits_too: bool) -> None:
        self.slot[:] = -1
        self.position[:] = _LAST
        if splits_too:
            self.split[:] = -1

    def _keep(self, table: pa.Table, positions: np.ndarray | None) -> None:
        if not table.num_rows:
            return
        index = self.published if table is self.parent.ledger else self._find(table)
        here = np.flatnonzero(index >= 0)
        at = index[here]
        codes, values = ledger.names(table["split"])
        self.split[at] = np.array([self._code(value) for value in values], np.int32)[codes[here]]
        self.slot[at] = pc.fill_null(table["slot"], -1).to_numpy()[here]
        self.position[at] = _LAST if positions is None else positions[here]

    def _find(self, table: pa.Table) -> np.ndarray:
        """The sample that each row's key is, -1 for none."""
        if not table.num_rows:
            return np.empty(0, np.int32)
        index = pc.index_in(table["key"], value_set=self.found.keys)
        return pc.fill_null(index, -1).to_numpy()

    def _code(self, name: str) -> int:
        if name not in self.split_names:
            self.split_names.append(name)
        return self.split_names.index(name)

    def take_splits(self, given: pa.DictionaryArray) -> list[str]:
        """Gives every sample without a split the one that the source says, by its first file. Returns
        warnings."""
        said = given.take(self._first_rows())
        own = np.array([*map(self._code, said.dictionary.to_pylist()), -1], np.int32)
        wanted = own[pc.fill_null(said.indices, -1).to_numpy()]
        moved = (self.split >= 0) & (wanted >= 0) & (wanted != self.split)
        moved = np.flatnonzero(moved & (self.found.problem == ""))
        self.split = np.where(self.split < 0, wanted, self.split)
        return [_stay(len(moved), self.found.keys[int(moved[0])].as_py())] if len(moved) else []

    def choose_splits(self, listed: Mapping[str, str]) -> list[str]:
        """Gives every sample without a split one, or the problem `no_split`. Returns warnings."""
        config, found = self.config, self.found
        warnings = []
        if config.split.by != "ratio":
            moved = [
                key
                for some, keys in self._keys(
                    np.flatnonzero((self.split >= 0) & (found.problem == ""))
                )
                for key, name, code in zip(
                    keys,
                    split.choose(keys, config.split, listed, {}, config.name),
                    self.split[some].tolist(),
                    strict=True,
                )
                if name is not None and name != self.split_names[code]
            ]
            if moved:
                warnings.append(_stay(len(moved), moved[0]))
        open_ = np.flatnonzero((self.split < 0) & (found.problem == ""))
        settled = self._settled_groups() if len(open_) else {}
        for some, keys in self._keys(open_):
            chosen = split.choose(keys, config.split, listed, settled, config.name)
            codes = {name: self._code(name) for name in dict.fromkeys(chosen) if name is not None}
            self.split[some] = [-1 if name is None else codes[name] for name in chosen]
            for sample in some[self.split[some] < 0].tolist():
                found.problem[sample] = "no_split"
                found.detail[sample] = samples.advice("no_split")
        # Splits in alphabetical order, whatever the order in which they were met.
        order = sorted(self.split_names)
        recode = np.array([order.index(name) for name in self.split_names] or [0], np.int32)
        self.split = np.where(self.split >= 0, recode[self.split], -1).astype(np.int32)
        self.split_names = order
        return warnings

    def _keys(self, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, list[str]]]:
        """These samples with their keys, some at a time: as Python's strings they are large."""
        for start in range(0, len(chosen), _BATCH):
            some = chosen[start : start + _BATCH]
            yield some, self.found.keys.take(pa.array(some)).to_pylist()

    def _settled_groups(self) -> dict[str, str]:
        """The splits that published samples bind their groups to."""
        config = self.config.split
        if config.by != "ratio" or config.group_by is None:
            return {}
        pattern = re.compile(config.group_by)
        groups: dict[str, str] = {}
        for some, keys in self._keys(np.flatnonzero(self.split >= 0)):
            for key, code in zip(keys, self.split[some].tolist(), strict=True):
                groups.setdefault(split.group_of(key, pattern), self.split_names[code])
        return groups

    def take(self, given: pa.Table) -> None:
        """Gives every sample the place that the source says, by its first file (schema `listing.PLACES`)."""
        table = given.take(self._first_rows())
        codes, self.split_names = ledger.names(table["split"])
        self.slot = table["slot"].to_numpy().copy()
        self.split = np.where(self.slot < 0, -1, codes).astype(np.int32)  # -1: it has no place
        self.position = table["position"].to_numpy().copy()

    def _first_rows(self) -> pa.Array:
        """The row of the listing of each sample's first file."""
        rows = self.found.files[samples.ROW].take(pa.array(self.found.first[:-1]))
        return rows.combine_chunks() if isinstance(rows, pa.ChunkedArray) else rows

    def choose_slots(self, kept: np.ndarray) -> None:
        """Places the samples that have no slot yet, split by split."""
        limits = layout.Limits(int(self.config.shards.max_bytes), self.config.shards.max_samples)
        for code in range(len(self.split_names)):
            mine = kept[self.split[kept] == code]
            self._dissolve(mine, limits)
            new = mine[self.slot[mine] < 0]
            if not len(new):
                continue
            new = new[self._shuffled(new)]
            old = mine[self.slot[mine] >= 0]
            tail = layout.Tail()
            if len(old):
                last = int(self.slot[old].max())
                inside = old[self.slot[old] == last]
                tail = layout.Tail(last, int(self.found.bytes[inside].sum()), len(inside))
            self.slot[new] = layout.fill(self.found.bytes[new], tail, limits)
            self.position[new] = _LAST - len(new) + np.arange(len(new))
        returned = kept[self.position[kept] == _LAST]
        if len(returned):  # from the quarantine: behind the old ones, before the new ones
            start = self.base.num_rows
            self.position[returned[self._shuffled(returned)]] = start + np.arange(len(returned))

    def _shuffled(self, chosen: np.ndarray) -> np.ndarray:
        return layout.shuffled(self.found.keys.take(pa.array(chosen)), self.config.shards.seed)

    def _dissolve(self, mine: np.ndarray, limits: layout.Limits) -> None:
        """Frees the samples of closed shards that are emptier than the policy allows.

        Only where that leaves fewer shards: two that do not fit into one would be moved for ever.
        """
        share = self.config.shards.compact_below
        placed = mine[self.slot[mine] >= 0]
        if not share or not len(placed):
            return
        slots = self.slot[placed]
        size = np.bincount(slots, self.found.bytes[placed])
        count = np.bincount(slots)
        sparse = (size < share * self.config.shards.max_bytes) & (
            count < share * self.config.shards.max_samples
        )
        sparse[-1] = False  # the tail is open anyway
        freed = placed[sparse[slots]]
        freed = freed[self._shuffled(freed)]
        tail = layout.Tail(len(size) - 1, int(size[-1]), int(count[-1]))
        needed = np.unique(layout.fill(self.found.bytes[freed], tail, limits))
        if np.count_nonzero(needed != tail.slot) >= len(np.unique(self.slot[freed])):
            return
        self.slot[freed] = -1
        self.position[freed] = _LAST

    def ledger(self, order: np.ndarray) -> pa.Table:
        return pa.table(
            [
                self.found.keys.take(pa.array(order)),
                pa.DictionaryArray.from_arrays(
                    pa.array(self.split[order], pa.int32()), pa.array(self.split_names, pa.string())
                ),
                pa.array(self.slot[order], pa.int32()),
                pa.array(self.found.bytes[order], pa.int64()),
                ledger.digest_column(self.found.digests[order]),
            ],
            schema=ledger.LEDGER,
        )

    def quarantine(self) -> pa.Table:
        """The samples with a problem, sorted by key."""
        found = self.found
        bad = np.flatnonzero(found.problem != "")
        bad = bad[pc.sort_indices(found.keys.take(pa.array(bad))).to_numpy()]
        ends = np.concatenate(([0], np.cumsum(found.first[bad + 1] - found.first[bad])))
        paths = found.files["path"].take(pa.array(found.rows(bad))).cast(pa.string())
        names = np.array([*self.split_names, None], object)  # -1 is the last one: none
        columns = [
            found.keys.take(pa.array(bad)),
            pa.array(found.problem[bad], pa.string()),
            pa.array([found.detail[sample] for sample in bad.tolist()], pa.string()),
            pa.ListArray.from_arrays(pa.array(ends, pa.int32()), paths.combine_chunks()),
            pa.array(found.bytes[bad], pa.int64()),
            ledger.digest_column(found.digests[bad]),
            pa.array(names[self.split[bad]], pa.string()),
            pa.array(self.slot[bad], pa.int32(), mask=self.slot[bad] < 0),
        ]
        return pa.table(columns, schema=ledger.QUARANTINE)


def _stay(count: int, example: str) -> str:
    return (
        f"{count:,} samples would now be in another split (such as {example}); they stay where they were "
        "published. `wds-pipeline repack --resplit` moves them"
    )
