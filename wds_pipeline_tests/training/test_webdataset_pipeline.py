"""A pipeline of webdataset's: each sample at one node and one worker, whatever their numbers."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.training import open_dataset
from wds_pipeline.training.webdataset_pipeline import share
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import plain, stored


def read_as(
    monkeypatch: pytest.MonkeyPatch, pipeline: Any, rank: int, ranks: int, worker: int, workers: int
) -> list[Any]:
    for name, value in (
        ("RANK", rank),
        ("WORLD_SIZE", ranks),
        ("WORKER", worker),
        ("NUM_WORKERS", workers),
    ):
        monkeypatch.setenv(name, str(value))
    return [plain(each) for each in pickle.loads(pickle.dumps(pipeline))]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (3, 50), (1, 500)])
def test_every_sample_once(
    published: Project, monkeypatch: pytest.MonkeyPatch, ranks: int, workers: int, shuffle: bool
) -> None:
    pipeline = open_dataset(str(published.destination)).webdataset(shuffle_shards=shuffle)
    parts = [
        read_as(monkeypatch, pipeline, rank, ranks, worker, workers)
        for rank in range(ranks)
        for worker in range(workers)
    ]
    found = [sample for part in parts for sample in part]
    expected = stored(published)
    if shuffle:
        assert found != expected
        found, expected = sorted(found), sorted(expected)
    assert found == expected
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_all_nodes_get_as_many(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = open_dataset(str(published.destination)).webdataset(equal=True)
    sizes = [
        sum(len(read_as(monkeypatch, pipeline, rank, 7, worker, 3)) for worker in range(3))
        for rank in range(7)
    ]
    assert sizes == [120 // 7] * 7


def test_each_epoch_has_another_order_which_is_always_the_same(published: Project) -> None:
    dataset = open_dataset(str(published.destination))

    def keys(pipeline: Any) -> list[str]:
        return [each["__key__"] for each in pipeline]

    pipeline = dataset.webdataset(shuffle_shards=True, seed=3)
    epochs = [keys(pipeline) for _ in range(3)]
    assert len({tuple(each) for each in epochs}) == 3
    again = dataset.webdataset(shuffle_shards=True, seed=3)
    again.set_epoch(2)
    assert keys(again) == epochs[2]
    assert keys(dataset.webdataset(shuffle_shards=True, seed=4)) != epochs[0]


def test_what_webdataset_does_with_it(published: Project) -> None:
    dataset = open_dataset(str(published.destination), split="train")
    pipeline = dataset.webdataset().shuffle(10).decode("pil").to_tuple("png", "txt").batched(16)
    batches = list(pipeline)
    assert sum(len(texts) for _, texts in batches) == len(dataset)
    assert all(image.size[1] == 8 for images, _ in batches for image in images)


def test_a_selection_and_some_fields(published: Project) -> None:
    dataset = open_dataset(str(published.destination), fields=["json"]).select(has="json")
    expected = [(k, {"json": each["json"]}) for k, each in stored(published) if "json" in each]
    assert [plain(each) for each in dataset.webdataset()] == expected


@given(st.integers(0, 10), st.integers(0, 200), st.integers(1, 300), st.booleans())
def test_shares_are_a_partition(first: int, count: int, parts: int, equal: bool) -> None:
    shares = [share(first, first + count, part, parts, equal=equal) for part in range(parts)]
    assert shares[0][0] == first
    assert all(one[1] == other[0] for one, other in pairwise(shares))
    sizes = [last - begin for begin, last in shares]
    if equal:
        assert sizes == [count // parts] * parts
    else:
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1
