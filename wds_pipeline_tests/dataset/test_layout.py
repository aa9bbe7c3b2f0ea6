"""Which slots new samples get."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset.layout import Limits, Tail, fill, shuffled
from wds_pipeline_tests.dataset import inventories

assert inventories  # its profile

LIMITS = st.builds(Limits, max_bytes=st.integers(1, 40), max_samples=st.integers(1, 6))
TAILS = st.builds(
    Tail, slot=st.integers(0, 3), bytes=st.integers(1, 60), samples=st.integers(1, 8)
) | st.just(Tail())


def column(keys: list[str]) -> pa.LargeStringArray:
    return pa.array(keys, pa.large_string())


def slowly(sizes: list[int], tail: Tail, limits: Limits) -> list[int]:
    """`fill`, sample by sample."""
    slot, used, count = tail.slot, tail.bytes, tail.samples
    slots = []
    for size in sizes:
        if count and (used + size > limits.max_bytes or count >= limits.max_samples):
            slot, used, count = slot + 1, 0, 0
        slots.append(slot)
        used, count = used + size, count + 1
    return slots


@settings(max_examples=300)
@given(sizes=st.lists(st.integers(1, 50), max_size=60), tail=TAILS, limits=LIMITS)
def test_fill_is_the_plain_loop(sizes: list[int], tail: Tail, limits: Limits) -> None:
    assert fill(np.array(sizes, np.int64), tail, limits).tolist() == slowly(sizes, tail, limits)


def test_large_totals_do_not_overflow() -> None:
    sizes = np.full(10, 2**40, np.int64)
    assert fill(sizes, Tail(), Limits(2**41, 100)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@settings(max_examples=50)
@given(keys=st.lists(st.text(max_size=5), unique=True, max_size=30), seed=st.randoms())
def test_the_order_depends_on_the_keys_alone(keys: list[str], seed: object) -> None:
    mixed = list(keys)
    seed.shuffle(mixed)  # type: ignore[attr-defined]
    assert [keys[i] for i in shuffled(column(keys))] == [mixed[i] for i in shuffled(column(mixed))]
    assert sorted(shuffled(column(keys)).tolist()) == list(range(len(keys)))


def test_keys_of_one_hash_are_ordered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xxhash.xxh3_64_intdigest", lambda key, seed: len(key))
    for keys in (["bb", "a", "ba", "c"], ["c", "ba", "a", "bb"]):
        assert [keys[i] for i in shuffled(column(keys))] == ["a", "c", "ba", "bb"]
