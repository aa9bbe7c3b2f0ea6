"""Mixtures: exact shares, spread evenly; the laws of a stream hold for them too."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.training import Dataset, mix, open_dataset
from wds_pipeline.training.mix_order import MixOrder, shares
from wds_pipeline.training.order import Order, Shuffle
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import plain, stored


@pytest.fixture
def train(published: Project) -> Dataset:
    return open_dataset(str(published.destination), split="train")


@pytest.fixture
def val(published: Project) -> Dataset:
    return open_dataset(str(published.destination), split="val")


def order(sizes: list[int], counts: list[int], seed: int = 0) -> MixOrder:
    orders = []
    for number, size in enumerate(sizes):
        shards = np.append(np.full(size // 2500, 2500), size % 2500)
        orders.append(Order(shards, f"d{number}", seed, Shuffle(window=10), 1.0))
    return MixOrder(orders, counts, seed, 100)


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=9), st.data())
def test_shares(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts)))
    found = shares(np.array(counts), total)
    assert found.sum() == total and (found >= 0).all() and (found <= counts).all()
    for count, share in zip(counts, found.tolist(), strict=True):
        assert abs(share - count * total / sum(counts)) <= 1 + 1e-6 * share


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.data(),
)
def test_an_epoch_has_its_counts_and_each_dataset_goes_on(
    sizes: list[int], data: st.DataObject
) -> None:
    counts = data.draw(st.lists(st.integers(1, 90), min_size=len(sizes), max_size=len(sizes)))
    made = order(sizes, counts)
    bounds = np.cumsum([0, *sizes])
    drawn: dict[int, list[int]] = {number: [] for number in range(len(sizes))}
    for epoch in range(4):
        numbers = made.at(epoch, np.arange(len(made)))
        which = np.searchsorted(bounds, numbers, side="right") - 1
        assert [int((which == each).sum()) for each in range(len(sizes))] == counts
        for number in range(len(sizes)):
            drawn[number] += (numbers[which == number] - bounds[number]).tolist()
        start = data.draw(st.integers(0, len(made) - 1))
        assert made.at(epoch, np.arange(start, len(made), 3)).tolist() == numbers[start::3].tolist()
    for number, size in enumerate(sizes):  # none comes again before all others came
        for begin in range(0, len(drawn[number]) - size + 1, size):
            assert sorted(drawn[number][begin : begin + size]) == list(range(size))


def test_it_is_the_same_for_ever() -> None:
    # A job that resumes after an upgrade goes on in its order: these numbers never change.
    made = order([30, 7], [6, 4], seed=3)
    assert [made.at(epoch, np.arange(10)).tolist() for epoch in (0, 1)] == [
        [24, 23, 34, 32, 21, 31, 6, 15, 30, 2],
        [36, 33, 18, 26, 35, 33, 16, 3, 22, 17],
    ]


def test_shares_are_even_all_along() -> None:
    made = order([10**5, 10**4, 100], [70_000, 29_000, 1_000])
    numbers = made.at(0, np.arange(len(made)))
    for part in np.split(numbers, 20):
        assert 25 < int((part >= 110_000).sum()) < 80  # 50 ± 7 if it were chance alone
        assert abs(int((part < 100_000).sum()) - 3500) < 150


def test_far_into_a_large_one_is_as_quick() -> None:
    made = order([10**9, 10**7], [10**9, 3 * 10**7])
    found = made.at(5, np.arange(10**9, 10**9 + 64))
    assert len(set(found.tolist())) == 64
    assert len(made._blocks) == 1


def test_samples_and_names(published: Project, train: Dataset, val: Dataset) -> None:
    mixture = mix({"one": train, "two": val})
    assert mixture.counts == {"one": 76, "two": 44} and len(mixture) == 120
    found = list(mixture.stream(seed=1))
    for name, split in (("one", "train"), ("two", "val")):
        mine = [plain(each) for each in found if each["__dataset__"] == name]
        assert sorted(mine, key=lambda each: each[0]) == sorted(
            stored(published, split), key=lambda each: each[0]
        )
    names = [each["__dataset__"] for each in found]
    assert names[:20] != sorted(names[:20])
    assert "one: 76 of 76 (63.3%)" in repr(mixture)


def test_weights_and_temperature(train: Dataset, val: Dataset) -> None:
    both = {"one": train, "two": val}
    assert mix(both, weights=[1, 3], samples_per_epoch=100).counts == {"one": 25, "two": 75}
    assert mix(both, weights={"two": 3, "one": 1}).counts == {"one": 30, "two": 90}
    assert mix(both, temperature=1).counts == {"one": 76, "two": 44}
    assert mix(both, temperature=1e9, samples_per_epoch=100).counts == {"one": 50, "two": 50}
    flatter = mix(both, temperature=2, samples_per_epoch=1000).counts
    assert flatter["one"] == round(1000 * 76**0.5 / (76**0.5 + 44**0.5))


def test_laws(train: Dataset, val: Dataset) -> None:
    """Ranks, batches, states: as for one dataset."""
    mixture = mix({"one": train, "two": val}, weights=[1, 5], samples_per_epoch=96)

    def batches(ranks: int, rank: int) -> Any:
        return mixture.stream(seed=2, global_batch_size=12, rank=rank, world_size=ranks)

    def names(batch: Any) -> list[tuple[str, int]]:
        return [(each["__dataset__"], each["__index__"]) for each in batch]

    alone = [[names(batch) for batch in stream] for stream in [batches(1, 0)] for _ in range(3)]
    assert all(Counter(n for b in epoch for n, _ in b) == {"one": 16, "two": 80} for epoch in alone)
    ranks = [batches(3, rank) for rank in range(3)]
    found = []
    for stream in ranks:
        stream.set_epoch(1)
        running = iter(stream)
        found.append([names(batch) for batch in islice(running, 5)])
    together = [sorted(each for part in step for each in part) for step in zip(*found, strict=True)]
    assert together == [sorted(batch) for batch in alone[1][:5]]
    resumed = batches(1, 0)
    resumed.load_state_dict(ranks[0].state_dict())
    assert [names(batch) for batch in resumed] == alone[1][5:]
    with pytest.raises(ConfigError, match="the state is of another order: counts"):
        mix({"one": train, "two": val}).stream(seed=2).load_state_dict(resumed.state_dict())


def test_the_same_samples_under_two_names_do_not_come_together(train: Dataset) -> None:
    found = list(mix({"one": train, "two": train}).stream(shuffle="full"))
    one, two = (
        [each["__index__"] for each in found if each["__dataset__"] == name]
        for name in ("one", "two")
    )
    assert sorted(one) == sorted(two)
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 10  # of 76; one by chance


def test_each_decodes_as_it_was_opened(published: Project, val: Dataset) -> None:
    short = open_dataset(
        str(published.destination),
        split="train",
        fields=["txt"],
        decode=lambda sample: sample["txt"].decode()[:10],
    )
    found = list(mix({"one": short, "two": val}).stream(batch_size=10, threads=2))
    kinds = Counter(type(each).__name__ for batch in found for each in batch)
    assert kinds == {"str": 76, "dict": 44}


def test_workers(train: Dataset, val: Dataset) -> None:
    pytest.importorskip("torch", reason="torch is not installed")

    def stream() -> Any:
        return mix({"one": train, "two": val}).stream(
            batch_size=8, collate=lambda batch: [each["__index__"] for each in batch]
        )

    alone, loader = stream(), stream().loader(num_workers=2)
    assert [list(loader) for _ in range(2)] == [list(alone) for _ in range(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "weights: found 1; expected 2"),
        ({"weights": {"one": 1}}, "weights: found one; expected one for each of one, two"),
        (
            {"weights": [1, 0]},
            "weights: two: found 0; expected a number above 0; leave a dataset out",
        ),
        ({"weights": [1, 2], "temperature": 2}, "expected one of them"),
        ({"temperature": 0}, "temperature: found 0; expected one above 0"),
        ({"samples_per_epoch": 0}, "samples_per_epoch: found 0"),
        (
            {"weights": [1, 10**6]},
            "one: its share of 120 samples is less than one; expected a larger",
        ),
    ],
)
def test_what_cannot_be(
    train: Dataset, val: Dataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mix({"one": train, "two": val}, **options)


def test_names_and_empty_ones(train: Dataset, val: Dataset) -> None:
    with pytest.raises(ConfigError, match="two datasets are named small; expected names"):
        mix([train, val])
    for some in (["published"], {"one": "published"}):
        with pytest.raises(
            ConfigError, match="found 'published'; expected datasets, from `open_dat"
        ):
            mix(some)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found no datasets"):
        mix([])
    with pytest.raises(ConfigError, match=r"two \(small: version 1, split val\) has no samples"):
        mix({"one": train, "two": val.select(keys="none")})
