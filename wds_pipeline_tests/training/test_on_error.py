"""Samples that do not decode: raised, left out and counted, or as a function says."""

from __future__ import annotations

import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import webdataset

from wds_pipeline.errors import ConfigError, DecodeError, VerificationError
from wds_pipeline.training import open_dataset
from wds_pipeline.training.on_error import IN_A_ROW, KEPT, ErrorPolicy
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import write_samples

BAD = ("cats/0002", "dogs/0009")


@pytest.fixture
def with_bad_ones(project: Project) -> Project:
    """30 samples, two of which have a json that does not parse."""
    project.options = {"split": {"train": 1.0}, "verify": {"level": "samples"}}
    write_samples(project, range(30))
    for key in BAD:
        project.write(f"{key}.json", "{")
    assert project.build().status == "published"
    return project


def keys(dataset: Any) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def test_by_default_it_is_raised(with_bad_ones: Project) -> None:
    dataset = open_dataset(str(with_bad_ones.destination), decode="auto")
    with pytest.raises(
        DecodeError, match=f"small: version 1.*sample '({'|'.join(BAD)})', field json"
    ):
        list(dataset)
    assert dataset.errors.count == 0


def test_skip_leaves_out_and_counts(
    with_bad_ones: Project, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset(str(with_bad_ones.destination), decode="auto", on_error="skip")
    every = keys(open_dataset(str(with_bad_ones.destination)))
    with caplog.at_level(logging.WARNING, "wds_pipeline.training"):
        assert keys(dataset) == [key for key in every if key not in BAD]
    assert dataset.errors.count == 2
    assert {each.key for each in dataset.errors.first} == set(BAD)
    for each in dataset.errors.first:
        assert each.field == "json" and each.url in dataset.urls
        assert each.key and each.key in each.message
    assert [record.message[:18] for record in caplog.records] == [
        "1 left out so far;",
        "2 left out so far;",
    ]
    list(dataset)
    assert dataset.errors.count == 4
    # By its number a sample is asked for, not one of many.
    with pytest.raises(DecodeError):
        dataset[every.index(BAD[0])]
    assert pickle.loads(pickle.dumps(dataset)).errors.count == 0
    assert keys(pickle.loads(pickle.dumps(dataset))) == keys(dataset)
    selected = dataset.select(keys="dogs/*")
    assert BAD[1] not in keys(selected) and selected.errors.count == 1


def test_a_function_decides(with_bad_ones: Project) -> None:
    seen: list[str | None] = []

    def only_cats(error: DecodeError) -> bool:
        seen.append(error.key)
        return error.key == BAD[0]

    url = str(with_bad_ones.destination)
    with pytest.raises(DecodeError, match=BAD[1]):
        list(open_dataset(url, decode="auto", on_error=only_cats))
    assert seen[-1] == BAD[1]
    for handler, works in (
        (webdataset.ignore_and_continue, True),
        (webdataset.reraise_exception, False),
    ):
        dataset = open_dataset(url, decode="auto", on_error=handler)
        if works:
            assert len(keys(dataset)) == 28 and dataset.errors.count == 2
        else:
            with pytest.raises(DecodeError):
                list(dataset)


def test_a_damaged_shard_is_never_skipped(with_bad_ones: Project) -> None:
    dataset = open_dataset(str(with_bad_ones.destination), decode="auto", on_error="skip")
    path = with_bad_ones.destination / with_bad_ones.latest().shards[-1].path
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(VerificationError):
        list(dataset)


def failing(sample: Any) -> Any:
    raise DecodeError(f"bad: {sample}", key=str(sample))


def test_what_is_kept_and_logged_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    policy = ErrorPolicy("skip")
    with caplog.at_level(logging.WARNING, "wds_pipeline.training"):
        for number in range(5000):
            assert policy.apply(failing, number) == (False, None)
            assert policy.apply(str, number) == (True, str(number))
    assert policy.count == 5000
    assert [each.key for each in policy.first] == [str(number) for number in range(KEPT)]
    assert len(caplog.records) == 13


def test_when_nothing_decodes_it_is_not_the_samples() -> None:
    policy = ErrorPolicy("skip")
    found = policy.decoded(failing, iter(int, 1))  # for ever
    with pytest.raises(
        DecodeError, match=f"left out {IN_A_ROW:,} samples in a row.*the last: bad: 0"
    ):
        next(found)


def test_threads_count_right() -> None:
    policy = ErrorPolicy(lambda error: True)

    def work(start: int) -> None:
        for number in range(500):
            policy.apply(failing if number % 2 else str, number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert policy.count == 8 * 250 and len(policy.first) == KEPT


def test_policies() -> None:
    policy = ErrorPolicy.of("skip")
    assert ErrorPolicy.of(policy) is policy
    assert ErrorPolicy.of(failing).on_error is failing
    with pytest.raises(ConfigError, match="on_error='skp': expected 'raise', 'skip'"):
        ErrorPolicy.of("skp")
    with pytest.raises(DecodeError):
        ErrorPolicy().apply(failing, 1)
    with pytest.raises(ZeroDivisionError):
        policy.apply(lambda sample: 1 / 0, 1)
    assert policy.count == 0
