"""The laws of a stream, over ranks, workers, batches, shards, and any place to resume.

The workers here are those of a DataLoader as it shares out work: each has the stream, and their steps
come in turn. `test_torch_stream.py` has the real ones.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.training import stream as streams
from wds_pipeline.training.stream import Stream
from wds_pipeline_tests.training.fake_source import Numbers
from wds_pipeline_tests.training.test_order import SHARDS, SHUFFLES

Batch = list[int]


def of_rank(
    monkeypatch: pytest.MonkeyPatch, stream: Stream, workers: int, steps: int | None = None
) -> list[Batch]:
    """The steps of a pass, made by so many workers in turn; 0: by this process."""
    if not workers:
        return [numbers(each) for each in islice(stream, steps)]
    parts = []
    for worker in range(workers):
        part = copy.copy(stream)
        part._start_over()  # a worker has it from another process
        with monkeypatch.context() as patch:
            patch.setattr(streams, "worker_info", lambda worker=worker: (worker, workers))
            parts.append([numbers(each) for each in part])
    found: list[Batch] = []
    turn: Iterator[Batch] = iter(())
    for number in range(sum(map(len, parts))):
        turn = iter(parts[number % workers][number // workers :])
        found.append(next(turn))
    return found if steps is None else found[:steps]


def numbers(step: Any) -> Batch:
    return [each["__index__"] for each in (step if isinstance(step, list) else [step])]


def global_batches(ranks: list[list[Batch]]) -> list[list[int]]:
    assert len({len(steps) for steps in ranks}) == 1, "ranks have different numbers of steps"
    return [
        sorted(number for batch in step for number in batch) for step in zip(*ranks, strict=True)
    ]


@given(
    SHARDS,
    SHUFFLES,
    st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (4, 1), (4, 3)]),
    st.integers(0, 9),
    st.sampled_from(["pad", "drop", "short"]),
    st.integers(0, 2),
)
def test_each_sample_once_in_equal_steps(
    sizes: list[int],
    shuffle: Any,
    shape: tuple[int, int],
    workers: int,
    last: Any,
    epoch: int,
) -> None:
    (ranks, batch), count = shape, sum(sizes)
    found: list[list[Batch]] = []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            stream = Stream(
                Numbers(sizes),
                shuffle=shuffle,
                batch_size=batch,
                last=last,
                rank=rank,
                world_size=ranks,
            )
            stream.set_epoch(epoch)
            if last == "short" and 0 < count % (ranks * batch) < ranks:
                with pytest.raises(ConfigError, match='expected "pad" or "drop"'):
                    len(stream)
                return
            found.append(of_rank(patch, stream, workers))
            assert len(found[-1]) == len(stream)
            plan = stream.plan()
    together = Counter(number for step in global_batches(found) for number in step)
    assert sum(together.values()) == count + plan.padded - plan.dropped
    assert set(together) <= set(range(count))
    if last == "pad":
        assert set(together) == set(range(count)) and plan.dropped == 0
        assert plan.padded < ranks * batch
    elif last == "drop":
        assert max(together.values(), default=1) == 1 and plan.padded == 0
        assert plan.dropped < ranks * batch
    else:
        assert together == Counter(range(count))
    full = {len(step) for steps in found for step in steps[:-1]}
    assert full <= {batch}


@given(SHARDS, SHUFFLES, st.sampled_from(["pad", "drop"]), st.data())
def test_the_same_global_batches_on_any_topology(
    sizes: list[int], shuffle: Any, last: Any, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([4, 6, 12]))

    def batches() -> list[list[int]]:
        ranks = data.draw(
            st.sampled_from([each for each in (1, 2, 3, 4, 6, 12) if not whole % each])
        )
        workers = data.draw(st.integers(0, 5))
        with pytest.MonkeyPatch.context() as patch:
            return global_batches(
                [
                    of_rank(
                        patch,
                        Stream(
                            Numbers(sizes),
                            seed=3,
                            shuffle=shuffle,
                            global_batch_size=whole,
                            last=last,
                            rank=rank,
                            world_size=ranks,
                        ),
                        workers,
                    )
                    for rank in range(ranks)
                ]
            )

    assert batches() == batches()


@given(SHARDS, SHUFFLES, st.data())
def test_resuming_anywhere_on_any_topology(
    sizes: list[int], shuffle: Any, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([1, 4, 12]))
    last: Any = data.draw(st.sampled_from(["pad", "drop"]))

    def made(rank: int, ranks: int, batch: int) -> Stream:
        return Stream(
            Numbers(sizes),
            shuffle=shuffle,
            global_batch_size=batch,
            last=last,
            rank=rank,
            world_size=ranks,
        )

    def run(ranks: int, workers: int, state: dict[str, Any] | None, batch: int, steps: int | None):  # type: ignore[no-untyped-def]
        found, states = [], []
        with pytest.MonkeyPatch.context() as patch:
            for rank in range(ranks):
                stream = made(rank, ranks, batch)
                if state is not None:
                    stream.load_state_dict(state)
                found.append(of_rank(patch, stream, workers, steps))
                states.append(stream.state_dict() if not workers else None)
        return global_batches(found), states

    ranks = data.draw(st.sampled_from([each for each in (1, 2, 4, 6) if not whole % each]))
    uninterrupted, _ = run(1, 0, None, whole, None)
    steps = data.draw(st.integers(0, len(uninterrupted)))
    before, states = run(ranks, 0, None, whole, steps)
    assert all(state == states[0] for state in states)
    # A step of the epoch that is complete already belongs to the next.
    other = data.draw(st.sampled_from([each for each in (1, 2, 3, 4, 12) if not whole % each]))
    after, _ = run(other, data.draw(st.integers(0, 4)), states[0], whole, None)
    if steps == len(uninterrupted):
        expected = states[0] if not steps else {**states[0], "epoch": 1, "position": 0}
        assert states[0] == expected
    else:
        assert before + after == uninterrupted


@given(SHARDS, SHUFFLES, st.integers(1, 9), st.integers(1, 9), st.data())
def test_resuming_with_other_batches_loses_and_repeats_nothing(
    sizes: list[int], shuffle: Any, one: int, other: int, data: st.DataObject
) -> None:
    first = Stream(Numbers(sizes), shuffle=shuffle, batch_size=one, last="short")
    steps = data.draw(st.integers(0, len(first) - 1))
    before = [number for batch in islice(first, steps) for number in numbers(batch)]
    second = Stream(Numbers(sizes), shuffle=shuffle, batch_size=other, last="short")
    second.load_state_dict(first.state_dict())
    after = [number for batch in second for number in numbers(batch)]
    assert sorted(before + after) == list(range(sum(sizes)))


@given(SHARDS, SHUFFLES, st.integers(0, 5))
def test_a_seek_reads_nothing_before(sizes: list[int], shuffle: Any, back: int) -> None:
    source = Numbers(sizes)
    stream = Stream(source, shuffle=shuffle)
    stream.seek(2, max(sum(sizes) - back, 0))
    assert len(list(stream)) == min(back, sum(sizes)) == len(source.read)


def test_each_pass_is_another_epoch() -> None:
    stream = Stream(Numbers([20] * 5), batch_size=10)
    passes = [[number for batch in stream for number in numbers(batch)] for _ in range(3)]
    assert len({tuple(each) for each in passes}) == 3
    for epoch, expected in enumerate(passes):
        again = Stream(Numbers([20] * 5), batch_size=10)
        again.set_epoch(epoch)
        assert [number for batch in again for number in numbers(batch)] == expected
    # One that was broken off is not gone on with, unless its state says so.
    again.set_epoch(0)
    first = numbers(next(iter(again)))
    state = again.state_dict()
    assert numbers(next(iter(again))) == passes[1][:10]
    again.load_state_dict(state)
    assert [number for batch in again for number in numbers(batch)] == passes[0][10:]
    assert first == passes[0][:10]
    assert again.epoch == 1


def test_what_pads_is_the_beginning_of_the_same_epoch() -> None:
    stream = Stream(Numbers([20] * 5), batch_size=8)
    for _ in range(2):
        *steps, last = [numbers(batch) for batch in stream]
        assert last[4:] == steps[0][:4]


def test_a_state_counts_from_when_it_is_loaded() -> None:
    stream = Stream(Numbers([20] * 5), batch_size=10)
    state = stream.state_dict()
    next(iter(stream))
    assert stream.state_dict() != state
    stream.load_state_dict(state)
    assert stream.state_dict() == state
    stream.set_epoch(4)
    assert stream.state_dict() == {**state, "epoch": 4} and stream.epoch == 4
