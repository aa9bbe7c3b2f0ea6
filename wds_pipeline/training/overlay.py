"""A version joined with overlays, by key: the catalog of samples that have the fields of all of them.

Of each shard it is known, as arrays, which sample of each overlay belongs to which of the base. A field that
several have is the last one's; what it takes the place of is not read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.dataset import seal
from wds_pipeline.storage import LocalStorage, Storage
from wds_pipeline.storage.connections import threads
from wds_pipeline.training.catalog import Catalog, Origin, ShardInfo
from wds_pipeline.training.members import ShardMembers
from wds_pipeline.training.planning import each_of

_INDEXES = 16  # member indexes that are read at a time
_NONE = 1  # in `Part._found`: the sample has nothing in the overlay; 0: not looked for yet
_FIRST = 2  # … and from here on, the number in the overlay


class PartOrigin(NamedTuple):
    """Where an overlay comes from. `aligned`: it is of the very version that it is joined with."""

    origin: Origin
    fields: frozenset[str] | None
    aligned: bool


class JoinedOrigin(NamedTuple):
    """A version and its overlays, the later ones over the earlier."""

    base: Origin
    overlays: tuple[PartOrigin, ...]

    def load(self) -> Joined:
        """Raises VersionError when one of them is gone or cannot be read."""
        base = Catalog(self.base)
        parts = [(Catalog(each.origin), each.fields, each.aligned) for each in self.overlays]
        return Joined(base, [Part(base, *each) for each in parts])


class Part:
    """An overlay, or some `fields` of it: which sample of it belongs to which of the base. For threads."""

    def __init__(
        self, base: Catalog, catalog: Catalog, fields: frozenset[str] | None, aligned: bool
    ) -> None:
        self.catalog, self.fields, self.aligned = catalog, fields, aligned
        self._base = base
        small = len(catalog) + _FIRST <= np.iinfo(np.int32).max
        # Pages of it that nobody asks for are never made.
        self._found = np.zeros(len(base), np.int32 if small else np.int64)
        self._slots = {
            seal.partition_of(each.path): number for number, each in enumerate(catalog.shards)
        }

    @property
    def origin(self) -> PartOrigin:
        return PartOrigin(self.catalog.origin, self.fields, self.aligned)

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """The samples of the overlay that belong to these of the base, by their numbers; -1 for none.

        Raises VersionError, VerificationError.
        """
        found = self._found[indices]
        if not found.all():
            self._look(indices[found == 0])
            found = self._found[indices]
        return found.astype(np.int64) - _FIRST

    def number(self, index: int) -> int:
        """The sample of the overlay that belongs to this one of the base; -1 for none."""
        found = int(self._found[index])
        return found - _FIRST if found else int(self.numbers(np.array([index]))[0])

    def all_numbers(self) -> np.ndarray:
        """Those of all samples of the base."""
        return self.numbers(np.arange(len(self._base), dtype=np.int64))

    def _look(self, indices: np.ndarray) -> None:
        if not self.aligned:
            self._look_at_all()
            return
        starts = self._base.starts
        shards = np.unique(np.searchsorted(starts, indices, side="right") - 1).tolist()
        for number, keys, other in _in_threads(self._base, shards, self._keys_of_shard):
            start = int(starts[number])
            self._found[start : start + len(keys)] = _match(keys, other)

    def _keys_of_shard(self, shard: int) -> tuple[int, pa.Array, tuple[pa.Array, int]]:
        """The keys of a shard of the base, and those of the overlay's for it."""
        keys = _wide(self._base.members(shard).keys)
        other = self._slots.get(seal.partition_of(self._base.shards[shard].path))
        if other is None:
            return shard, keys, (keys.slice(0, 0), 0)
        return (
            shard,
            keys,
            (_wide(self.catalog.members(other).keys), int(self.catalog.starts[other])),
        )

    def _look_at_all(self) -> None:
        """Of another version of the base, whose samples may have been in other shards."""

        def keys_of(catalog: Catalog) -> pa.Array:
            def read(shard: int) -> pa.Array:
                return _wide(catalog.members(shard).keys)

            parts = _in_threads(catalog, range(len(catalog.shards)), read)
            return pa.concat_arrays([pa.array([], pa.large_string()), *parts])

        self._found[:] = _match(keys_of(self._base), (keys_of(self.catalog), 0))


def _match(keys: pa.Array, other: tuple[pa.Array, int]) -> np.ndarray:
    """What `Part._found` says of these keys, where the overlay's are numbered from a start on."""
    values, start = other
    at = pc.fill_null(pc.index_in(keys, value_set=values), -1).to_numpy(zero_copy_only=False)
    return np.where(at < 0, _NONE, at.astype(np.int64) + start + _FIRST)


def _wide(keys: pa.Array) -> pa.Array:
    return keys.cast(pa.large_string())


def _in_threads(catalog: Catalog, shards: Sequence[int], work):  # type: ignore[no-untyped-def]
    """What is found of each shard, in their order; many requests to a store wait at the same time."""
    if len(shards) < 2 or isinstance(catalog.storage, LocalStorage):
        return map(work, shards)
    return threads(_INDEXES, "joins").map(work, shards)


class Piece(NamedTuple):
    """Members of one shard of the base (`part` None) or an overlay: `rows` of its member index, and the
    sample of the base's shard that each is of."""

    part: Part | None
    shard: int
    members: ShardMembers
    rows: np.ndarray
    owners: np.ndarray


class Joined:
    """The content of a version joined with overlays; what is not of the fields is the base's."""

    def __init__(self, base: Catalog, parts: Sequence[Part]) -> None:
        self.base, self.parts = base, list(parts)
        content = base.content
        self.storage: Storage = base.storage
        self.dataset, self.version, self.split = base.dataset, base.version, base.split
        self.shards: list[ShardInfo] = base.shards
        self.manifest = getattr(content, "manifest", None)
        self.mend, self.decoding = content.mend, content.decoding
        self.title = " with ".join([content.title, *(p.catalog.content.title for p in parts)])
        lines = [base.digest]
        lines += [f"{p.catalog.digest} {sorted(p.fields or ['*'])}" for p in parts]
        self.digest = f"xxh3-128:{xxhash.xxh3_128_hexdigest(chr(10).join(lines).encode())}"

    @property
    def bytes(self) -> int:
        """How many bytes all shards have, of the overlays too."""
        return self.base.bytes + sum(part.catalog.bytes for part in self.parts)

    def pieces(self, shard: int) -> list[Piece]:
        """The members that the samples of a shard of the base have: the base's that no overlay takes the
        place of, and the overlays', the later ones over the earlier."""
        base = self.base.members(shard)
        count, start = len(base), int(self.base.starts[shard])
        every = np.arange(len(base.fields))
        found = [Piece(None, shard, base, every, np.repeat(np.arange(count), np.diff(base.first)))]
        for part in self.parts:
            numbers = part.numbers(np.arange(start, start + count))
            have = np.flatnonzero(numbers >= 0)
            there = part.catalog.starts
            of_shard = np.searchsorted(there, numbers[have], side="right") - 1
            for other, where in each_of(of_shard):
                samples = numbers[have[where]] - there[other]
                members = part.catalog.members(other)
                found.append(_piece(part, other, members, samples, have[where]))
        return _over(found, count)

    def members(self, shard: int) -> ShardMembers:
        """The fields and sizes of a shard's samples; the places are each in its own tar."""
        pieces = self.pieces(shard)
        codes = _codes(pieces)
        names = list(codes)
        fields = [_encoded(piece, codes)[piece.rows] for piece in pieces]
        order, first = self._in_order(pieces, shard)
        bounds = np.concatenate([piece.members.bounds[piece.rows] for piece in pieces])[order]
        keys = pieces[0].members.keys
        return ShardMembers(keys, first, np.concatenate(fields)[order], names, bounds)

    def _in_order(self, pieces: Sequence[Piece], shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The order that brings the pieces' rows to their samples, and each sample's first row in it."""
        owners = np.concatenate([piece.owners for piece in pieces])
        counts = np.bincount(owners, minlength=self.shards[shard].samples)
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return np.argsort(owners, kind="stable"), first

    def base_members(self, shard: int) -> ShardMembers:
        """The base's own members that are to be read."""
        base = self.base.members(shard)
        if not any(_overlap(base, part) for part in self.parts):
            return base
        piece = self.pieces(shard)[0]
        if len(piece.rows) == len(base.fields):
            return base
        counts = np.bincount(piece.owners, minlength=len(base))
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        bounds = np.ascontiguousarray(base.bounds[piece.rows])
        return ShardMembers(base.keys, first, base.fields[piece.rows], base.field_names, bounds)

    # As `catalog.Content` has it.

    def member_table(self, shard: int) -> pa.Table:
        """The base's."""
        return self.base.content.member_table(shard)

    def report_table(self, shard: int, columns: list[str]) -> pa.Table | None:
        """What the reports of all of them say, in the order of `members`; None if one is missing."""
        pieces = self.pieces(shard)
        found = []
        for piece in pieces:
            catalog = self.base if piece.part is None else piece.part.catalog
            table = catalog.content.report_table(piece.shard, columns)
            if table is None or table.num_rows != len(piece.members.fields):
                return None
            found.append(table.take(pa.array(piece.rows)))
        order, _ = self._in_order(pieces, shard)
        return pa.concat_tables(found).take(pa.array(order)).combine_chunks()

    def field_names(self) -> list[str]:
        """The fields of all of them. May read member indexes."""
        found = set(self.base.field_names())
        for part in self.parts:
            found |= self.fields_of(part)
        return sorted(found)

    def fields_of(self, part: Part) -> set[str]:
        """The fields that an overlay gives."""
        there = set(part.catalog.field_names())
        return there if part.fields is None else there & part.fields

    def key_table(self) -> pa.Table | None:
        """The base's."""
        return self.base.content.key_table()

    def why_no_key(self, key: str) -> str | None:
        """As the base says."""
        return self.base.content.why_no_key(key)

    def why_gone(self) -> str | None:
        """As the base says."""
        return self.base.content.why_gone()


def _piece(
    part: Part, shard: int, members: ShardMembers, samples: np.ndarray, owners: np.ndarray
) -> Piece:
    """The wanted members of these samples of an overlay's shard."""
    first, counts = members.first[samples], np.diff(members.first)[samples]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    rows = np.arange(total) + np.repeat(first - (ends - counts), counts)
    owners = np.repeat(owners, counts)
    if part.fields is not None:
        taken = np.isin(members.fields[rows], _codes_of(members, part.fields))
        rows, owners = rows[taken], owners[taken]
    return Piece(part, shard, members, rows, owners)


def _over(pieces: list[Piece], count: int) -> list[Piece]:
    """The pieces without what a later one takes the place of."""
    codes = _codes(pieces)
    taken = np.zeros(count * max(len(codes), 1), bool)
    kept = []
    for piece in reversed(pieces):
        cells = piece.owners * len(codes) + _encoded(piece, codes)[piece.rows]
        free = ~taken[cells]
        taken[cells] = True
        kept.append(piece._replace(rows=piece.rows[free], owners=piece.owners[free]))
    return kept[::-1]


def _codes(pieces: Sequence[Piece]) -> dict[str, int]:
    """A number for each field."""
    names = dict.fromkeys(name for piece in pieces for name in piece.members.field_names)
    return {name: code for code, name in enumerate(names)}


def _encoded(piece: Piece, codes: dict[str, int]) -> np.ndarray:
    """The numbers of the fields of all members of a piece's shard."""
    table = np.array([codes[name] for name in piece.members.field_names] or [0], np.int64)
    found: np.ndarray = table[piece.members.fields]
    return found


def _codes_of(members: ShardMembers, fields: Collection[str]) -> list[int]:
    return [code for code, name in enumerate(members.field_names) if name in fields]


def _overlap(base: ShardMembers, part: Part) -> bool:
    """Whether an overlay may have a field of a shard of the base."""
    return part.fields is None or not part.fields.isdisjoint(base.field_names)


class JoinedCatalog(Catalog):
    """The catalog of a version joined with overlays: samples and shards are the base's, the fields of all."""

    content: Joined

    def __init__(self, base: Catalog, parts: Sequence[Part]) -> None:
        self._origin = JoinedOrigin(base.origin, tuple(part.origin for part in parts))
        self._pinned = None
        self._take(Joined(base, parts))

    @property
    def bytes(self) -> int:
        """How many bytes all shards have, of the overlays too."""
        return self.content.bytes

    def members(self, shard: int) -> ShardMembers:
        """The fields and sizes of a shard's samples, which is kept for a while."""
        found = self._members.get(shard)
        return self._members.add(shard, self.content.members(shard)) if found is None else found
