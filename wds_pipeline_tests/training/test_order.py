"""The order of an epoch: every sample once, decided by digest, seed and epoch, had from any place."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.training.order import Order, Shuffle
from wds_pipeline.training.permute import Permutation, key_of, permutation

SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)
SHUFFLES = st.one_of(
    st.sampled_from([Shuffle(), Shuffle("full"), Shuffle("stored")]),
    st.builds(
        Shuffle,
        window=st.integers(1, 60),
        block=st.one_of(st.integers(1, 20), st.just("3kB")),
        shards=st.integers(1, 5),
        lanes=st.integers(1, 9),
    ),
)


WINDOW = [9, 1, 7, 14, 11, 15, 8, 0, 3, 13, 2, 12, 6, 17, 10, 16, 5, 18, 4, 19]
FULL = [19, 18, 4, 8, 1, 9, 15, 17, 10, 3, 0, 6, 7, 11, 13, 14, 12, 16, 2, 5]
LARGE = [918923889308, 47980316088, 456353557368]


def order(sizes: list[int], shuffle: Shuffle, digest: str = "a", seed: int = 0) -> Order:
    return Order(np.array(sizes), digest, seed, shuffle, 1000.0)


def whole(made: Order, epoch: int = 0) -> list[int]:
    found: list[int] = made.at(epoch, np.arange(len(made))).tolist()
    return found


@given(SHARDS, SHUFFLES, st.integers(0, 3), st.data())
def test_each_sample_once_and_any_stretch_alone(
    sizes: list[int], shuffle: Shuffle, epoch: int, data: st.DataObject
) -> None:
    count = sum(sizes)
    found = whole(order(sizes, shuffle), epoch)
    assert sorted(found) == list(range(count))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    step = data.draw(st.integers(1, 5))
    alone = order(sizes, shuffle).at(epoch, np.arange(start, stop, step))
    assert alone.tolist() == found[start:stop:step]


@given(SHARDS, SHUFFLES, st.data())
def test_cuts(sizes: list[int], shuffle: Shuffle, data: st.DataObject) -> None:
    count = sum(sizes)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    cuts = list(order(sizes, shuffle).cuts(start, stop))
    assert cuts == sorted(set(cuts))
    assert all(start < cut <= stop for cut in cuts)
    assert cuts[-1:] == ([stop] if stop > start else [])
    assert set(cuts[:-1]) <= set(
        order(sizes, shuffle).cuts(0, count)
    )  # windows stay where they are


@pytest.mark.parametrize("kind", ["window", "full"])
def test_what_decides_it(kind: str) -> None:
    sizes, shuffle = [50] * 6, Shuffle(kind, window=60, block=5)  # type: ignore[arg-type]
    found = whole(order(sizes, shuffle))
    assert found == whole(order(sizes, shuffle))
    for other in (
        whole(order(sizes, shuffle), epoch=1),
        whole(order(sizes, shuffle, seed=1)),
        whole(order(sizes, shuffle, digest="b")),
    ):
        assert sum(a == b for a, b in zip(found, other, strict=True)) < 30


def test_another_process_has_the_same() -> None:
    program = (
        "import numpy as np; from wds_pipeline.training.order import Order, Shuffle\n"
        "for s in (Shuffle(window=60, block=5), Shuffle('full')):\n"
        "    print(Order(np.array([50] * 6), 'a', 0, s, 1000.0).at(2, np.arange(300)).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    expected = [
        whole(order([50] * 6, shuffle), 2)
        for shuffle in (Shuffle(window=60, block=5), Shuffle("full"))
    ]
    assert done.stdout.splitlines() == list(map(str, expected))


def test_it_is_the_same_for_ever() -> None:
    # A job that resumes after an upgrade goes on in its order: these numbers never change.
    sizes = [7, 5, 0, 8]
    assert whole(order(sizes, Shuffle(window=6, block=2, shards=2, lanes=2)), 1) == WINDOW
    assert whole(order(sizes, Shuffle("full")), 1) == FULL
    large = Permutation(1 << 40, 7).at(np.array([0, 1, 12345678901]))
    assert large.tolist() == LARGE


@given(st.integers(1, 300_000), st.integers(0, 2**64 - 1))
def test_a_permutation(count: int, key: int) -> None:
    some = np.unique(np.linspace(0, count - 1, 500).astype(np.int64))
    found = Permutation(count, key).at(some)
    assert len(set(found.tolist())) == len(some)
    assert found.min() >= 0 and found.max() < count


def test_a_large_permutation_hits_everything_once() -> None:
    count = 100_003
    found = Permutation(count, 5).at(np.arange(count))
    assert np.array_equal(np.sort(found), np.arange(count))
    # Where neighbours go has nothing to do with each other, nor with where they come from.
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(found, np.arange(count))[0, 1]) < 0.02


@pytest.mark.parametrize("make", [permutation, lambda n, k: Permutation(n, k).at(np.arange(n))])
def test_all_orders_are_as_frequent(make: object) -> None:
    rounds = 24 * 400
    seen = Counter(tuple(make(4, key_of("x", each)).tolist()) for each in range(rounds))  # type: ignore[operator]
    assert set(seen) == set(permutations(range(4)))
    chi = sum((count - 400) ** 2 / 400 for count in seen.values())
    assert chi < 60  # 23 degrees of freedom: one in 30,000


def test_a_window_that_holds_all_mixes_all() -> None:
    places = [whole(order([10] * 5, Shuffle(), seed=seed)).index(0) for seed in range(2000)]
    seen = Counter(places)
    chi = sum((seen[place] - 40) ** 2 / 40 for place in range(50))
    assert chi < 100  # 49 degrees of freedom


def test_a_window_is_all_that_is_in_memory() -> None:
    shuffle = Shuffle(window=64, block=8, shards=4, lanes=4)
    made = order([100] * 30, shuffle)
    found = whole(made)
    begin = 0
    for end in made.cuts(0, len(made)):
        group = np.sort(np.array(found[begin:end]))
        assert len(group) <= 2 * 64
        # It is made of whole blocks, but for the ends of each lane's window.
        assert 1 + np.count_nonzero(np.diff(group) > 1) <= len(group) / 8 + 2 * 4
        begin = end


def test_ranks_that_divide_the_lanes_read_whole_blocks() -> None:
    made = order([100] * 30, Shuffle(window=640, block=8, shards=8, lanes=8))
    for ranks in (1, 2, 4, 8):
        mine = np.sort(made.at(0, np.arange(0, next(made.cuts(0, 3000)), ranks)))
        assert 1 + np.count_nonzero(np.diff(mine) > 1) <= len(mine) / 8 + 32 // ranks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "random"},
            'shuffle: found \'random\'; expected one of "window", "full", "stored"',
        ),
        ({"window": 0}, "shuffle.window: found 0; expected a number from 1 of samples, or bytes"),
        ({"window": "much"}, "shuffle.window: found 'much'"),
        ({"block": True}, "shuffle.block: found True"),
        ({"lanes": "8"}, "shuffle.lanes: found '8'; expected a number from 1$"),
        ({"shards": -1}, "shuffle.shards: found -1"),
    ],
)
def test_a_shuffle_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shuffle(**options)  # type: ignore[arg-type]


def test_what_users_write() -> None:
    assert Shuffle.of(True) == Shuffle.of("window") == Shuffle()
    assert Shuffle.of(None) == Shuffle.of(False) == Shuffle("stored")
    assert Shuffle.of("full").kind == "full"
    with pytest.raises(ConfigError, match="found 'yes'"):
        Shuffle.of("yes")


def test_few_numbers_stay_in_memory() -> None:
    made = Order(np.full(40_000, 2_500), "a", 0, Shuffle(), 100_000.0)  # 10 TB
    made.at(7, np.arange(99_000_000, 99_000_064))
    held = sum(each.nbytes for each in vars(made).values() if isinstance(each, np.ndarray))
    assert held < 2_000_000
    assert len(made._windows) <= 32 and len(made._epochs) == 1
