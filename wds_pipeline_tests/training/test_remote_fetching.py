"""Pieces under way: what is held stays within its bound, in whatever order they come."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.training.fetching import Fetcher
from wds_pipeline.training.remote_plan import Piece


class Store:
    """Counts what is under way or read and not released."""

    def __init__(self, most: int) -> None:
        self.threads = ThreadPoolExecutor(most)
        self.lock = threading.Lock()
        self.asked: list[Piece] = []
        self.at_once = self.highest = 0

    def start(self, work: Callable[[], None]) -> Future[None]:
        return self.threads.submit(work)

    def read(self, piece: Piece) -> memoryview:
        with self.lock:
            self.asked.append(piece)
            self.at_once += 1
            self.highest = max(self.highest, self.at_once)
        data = bytes([piece.begin % 251]) * piece.size
        with self.lock:
            self.at_once -= 1
        return memoryview(data)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    ahead=st.integers(1, 300),
    most=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_what_is_held(sizes: list[int], ahead: int, most: int, seed: int) -> None:
    store = Store(most)
    chance = random.Random(seed)
    fetcher = Fetcher(store.read, store.start, most, ahead)
    pieces = [Piece(0, number, number + size, 1, None) for number, size in enumerate(sizes)]
    released = 0
    with store.threads:
        at = 0
        while at < len(pieces):  # what has to be there at a time fits
            until = at + 1
            while until < len(pieces) and sum(sizes[at : until + 1]) <= ahead:
                until += 1
            unit = pieces[at:until]
            fetcher.add(unit)
            for piece in chance.sample(unit, len(unit)):
                assert bytes(fetcher.wait(piece)) == bytes([piece.begin % 251]) * piece.size
                with store.lock:
                    asked = sum(each.size for each in store.asked)
                assert asked - released <= max(ahead, max(sizes))
                released += piece.size
                fetcher.release(piece)
            at = until
        assert fetcher.held == 0
    assert store.asked == pieces or most > 1
    assert store.highest <= most


def test_an_error_comes_when_its_piece_is_waited_for() -> None:
    def read(piece: Piece) -> memoryview:
        if piece.begin == 5:
            raise ValueError("the fifth")
        return memoryview(b"x")

    with ThreadPoolExecutor(3) as threads:
        fetcher = Fetcher(read, threads.submit, 3, 100)
        pieces = [Piece(0, number, number + 1, 1, None) for number in range(50)]
        fetcher.add(pieces)
        for piece in pieces[:5]:
            assert bytes(fetcher.wait(piece)) == b"x"
            fetcher.release(piece)
        with pytest.raises(ValueError, match="the fifth"):
            fetcher.wait(pieces[5])
        fetcher.close()
