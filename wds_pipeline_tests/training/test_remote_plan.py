"""Whatever is asked of whatever members: the pieces have its bytes, are asked for once, and in order."""

from __future__ import annotations

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.training.members import ShardMembers
from wds_pipeline.training.remote_plan import GAP, HEADER, Limits, Piece, Unit, plan

FIELDS = ["jpg", "txt", "json"]
SIZES = st.sampled_from([0, 1, 100, 511, 512, 5000, 40_000, 90_000, 300_000])
MEMBERS = st.lists(st.tuples(st.sampled_from([*FIELDS, ""]), SIZES), min_size=1, max_size=3)
SHARDS = st.lists(st.lists(MEMBERS, min_size=1, max_size=12), min_size=1, max_size=4)


class Shards:
    """A catalog of shards in memory: samples as lists of (field, size)."""

    def __init__(self, shards: list[list[list[tuple[str, int]]]], gaps: random.Random) -> None:
        self.data: list[bytes] = []
        self.shards = []
        self.tables = []
        self.samples: list[tuple[str, dict[str, bytes]]] = []
        for number, samples in enumerate(shards):
            rows, parts, at = [], [], 0
            for key, members in enumerate(samples):
                fields = {}
                # A sample has at least one field, and each once.
                for field, size in {**dict(members[:1]), **dict(members)}.items():
                    name = field or FIELDS[0]
                    if name in fields:
                        continue
                    gap = HEADER + gaps.choice([0, 0, 512, GAP - HEADER, GAP + 1, 3 * GAP])
                    fields[name] = gaps.randbytes(size)
                    parts += [b"-" * gap, fields[name]]
                    rows.append((f"{number}/{key}", name, at + gap, size))
                    at += gap + size
                self.samples.append((f"{number}/{key}", fields))
            parts.append(b"-" * 1024)
            self.data.append(b"".join(parts))
            columns = list(zip(*rows, strict=True))
            names = ("key", "field", "offset", "size")
            table = pa.table(dict(zip(names, map(pa.array, columns), strict=True)))
            size = len(self.data[-1])
            self.tables.append(ShardMembers.of_table(table, len(samples), size))
            self.shards.append(SimpleNamespace(url=f"s{number}", bytes=size))
        counts = [len(samples) for samples in shards]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def members(self, shard: int) -> ShardMembers:
        return self.tables[shard]


class Pieces:
    """Gives out pieces, and notes how."""

    def __init__(self, catalog: Shards, unit: Unit) -> None:
        self.catalog = catalog
        self.held: dict[int, Piece] = {id(piece): piece for piece in unit.pieces}
        self.waits: list[Piece] = []

    def wait(self, piece: Piece) -> memoryview:
        assert id(piece) in self.held, "after it was released"
        if piece not in self.waits:
            self.waits.append(piece)
        return memoryview(self.catalog.data[piece.shard])[piece.begin : piece.end]

    def release(self, piece: Piece) -> None:
        del self.held[id(piece)]


LIMITS = st.builds(
    Limits, st.sampled_from([2 * GAP, 3 * GAP, 8 * GAP]), st.sampled_from([1, 4096, 32 * 1024])
)


@settings(max_examples=300, deadline=None)
@given(
    shards=SHARDS,
    seed=st.integers(0, 99),
    limits=LIMITS,
    fields=st.none() | st.sets(st.sampled_from([*FIELDS, "none"])),
    data=st.data(),
)
def test_any_samples(
    shards: Any, seed: int, limits: Limits, fields: set[str] | None, data: st.DataObject
) -> None:
    catalog = Shards(shards, random.Random(seed))
    count = len(catalog.samples)
    asked = data.draw(st.lists(st.integers(0, count - 1), max_size=30))
    unit = plan(catalog, np.array(asked, np.int64), fields, limits)  # type: ignore[arg-type]
    pieces = Pieces(catalog, unit)
    found = list(unit.samples(pieces))
    for number, sample in zip(asked, found, strict=True):
        key, expected = catalog.samples[number]
        shard = int(key.partition("/")[0])
        head = {"__key__": key, "__url__": f"s{shard}", "__index__": number}
        wanted = {name: each for name, each in expected.items() if fields is None or name in fields}
        assert sample == head | wanted
        assert all(type(sample[name]) is bytes for name in wanted)
    assert not pieces.held, "all are let go of"
    assert pieces.waits == unit.pieces, "they are asked for in the order in which they are needed"
    check_ranges(catalog, unit, asked, fields, limits)


def check_ranges(
    catalog: Shards, unit: Unit, asked: list[int], fields: set[str] | None, limits: Limits
) -> None:
    """No byte is asked for twice (but of blocks), none that is far from what is wanted."""
    for piece in unit.pieces:
        assert 0 < piece.size <= limits.piece
        assert piece.begin % limits.block == 0
        assert piece.end % limits.block == 0 or piece.end == len(catalog.data[piece.shard])
        if piece.member is not None:
            assert piece.begin <= piece.member[0] - HEADER
    by_shard: dict[int, list[Piece]] = {}
    for piece in sorted(unit.pieces, key=lambda each: (each.begin, each.end)):
        by_shard.setdefault(piece.shard, []).append(piece)
    for shard, pieces in by_shard.items():
        for one, two in pairwise(pieces):
            assert two.begin >= one.end - HEADER - limits.block, "overlap in a header or a block"
        wanted = np.zeros(len(catalog.data[shard]) + 1, bool)
        for number in set(asked):
            if catalog.starts[shard] <= number < catalog.starts[shard + 1]:
                members = catalog.members(shard).only(fields)
                row = number - int(catalog.starts[shard])
                for begin, end in members.bounds[members.first[row] : members.first[row + 1]]:
                    wanted[begin:end] = True
        at = np.flatnonzero(wanted)
        for piece in pieces:
            inside = at[(at >= piece.begin) & (at < piece.end)]
            assert len(inside)
            edges = np.concatenate([[piece.begin], inside, [piece.end]])
            assert np.diff(edges).max() <= GAP + HEADER + 2 * limits.block


def test_neighbours_are_one_request_and_large_ranges_are_cut() -> None:
    catalog = Shards([[[("jpg", 10_000), ("txt", 100)]] * 1000], random.Random(3))
    catalog.tables[0] = even(1000, 10_000)
    asked = np.random.default_rng(0).permutation(1000)
    unit = plan(catalog, asked, None, Limits())  # type: ignore[arg-type]
    assert len(unit.pieces) == 3  # of 11 MB
    assert unit.bytes < 1000 * 10_752 + 3 * 512
    few = plan(catalog, np.array([5, 900, 6]), None, Limits())  # type: ignore[arg-type]
    assert [piece.size for piece in few.pieces] == [10_752 + 10_512, 10_512]
    captions = plan(catalog, np.array([5, 900, 6]), {"none"}, Limits())  # type: ignore[arg-type]
    assert captions.pieces == []


def even(count: int, size: int) -> ShardMembers:
    """Samples of one field, each with its header and padding."""
    step = HEADER + -(-size // 512) * 512
    table = pa.table(
        {
            "key": [f"{number:06d}" for number in range(count)],
            "field": ["jpg"] * count,
            "offset": [number * step + HEADER for number in range(count)],
            "size": [size] * count,
        }
    )
    return ShardMembers.of_table(table, count, count * step + 1024)
