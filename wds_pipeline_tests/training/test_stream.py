"""A stream over published shards, in one process: bytes, threads, errors, selections, states."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, DecodeError, VerificationError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline.training.stream import Options, Stream
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import OPTIONS, plain, stored, write_samples


@pytest.fixture
def train(published: Project) -> Dataset:
    return open_dataset(str(published.destination), split="train")


def keys(found: Any) -> list[str]:
    return [each["__key__"] for each in found]


def test_its_options_are_those_that_are_documented() -> None:
    given = set(inspect.signature(Stream.__init__).parameters) - {"self", "source"}
    assert set(Options.__annotations__) == given
    text = inspect.getdoc(Dataset.stream)
    assert text is not None and all(name in text for name in given)


def test_the_bytes_of_all_samples(published: Project, train: Dataset) -> None:
    stream = train.stream(seed=1)
    found = [plain(sample) for sample in stream]
    expected = stored(published, "train")
    assert found != expected
    assert sorted(found, key=lambda each: each[0]) == sorted(expected, key=lambda each: each[0])
    assert len(stream) == len(found)


def test_stored_order(published: Project, train: Dataset) -> None:
    assert [plain(each) for each in train.stream(shuffle=False)] == stored(published, "train")


def test_batches_and_collate(train: Dataset) -> None:
    batches = list(train.stream(batch_size=16, last="short"))
    assert [len(batch) for batch in batches] == [16, 16, 16, 16, 12]
    columns = list(train.stream(batch_size=16, last="short", collate=keys))
    assert columns == [keys(batch) for batch in batches]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_threads_change_nothing(published: Project, train: Dataset, threads: int) -> None:
    seen = set()

    def decode(sample: dict[str, Any]) -> dict[str, Any]:
        seen.add(threading.current_thread().name)
        return {**sample, "length": len(sample["txt"])}

    decoded = open_dataset(str(published.destination), split="train", decode=decode)
    expected = keys(train.stream(seed=5, shuffle="full"))
    for batch_size in (None, 7):
        stream = decoded.stream(
            seed=5, shuffle="full", threads=threads, batch_size=batch_size, last="short"
        )
        steps = list(stream)
        found = steps if batch_size is None else [each for step in steps for each in step]
        assert keys(found) == expected
        assert all(each["length"] == len(each["txt"]) for each in found)
    assert (threading.current_thread().name in seen) == (threads == 0)


def test_threads_end_with_the_pass(train: Dataset) -> None:
    before = threading.active_count()
    running = iter(train.stream(batch_size=4, threads=3))
    next(running)
    assert threading.active_count() > before
    running.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_the_state_counts_what_was_given_out_not_what_is_ahead(train: Dataset) -> None:
    stream = train.stream(seed=2, batch_size=4, threads=3, last="short")
    running = iter(stream)
    first = [key for batch in islice(running, 3) for key in keys(batch)]
    state = json.loads(json.dumps(stream.state_dict()))  # plain values
    rest = [key for batch in running for key in keys(batch)]
    assert state["position"] == 12 and state["version"] == 1 and state["split"] == "train"
    again = train.stream(seed=2, batch_size=4, threads=0, last="short")
    again.load_state_dict(state)
    assert [key for batch in again for key in keys(batch)] == rest
    assert not set(first) & set(rest) and len(first + rest) == len(train)
    assert stream.state_dict() == {**state, "epoch": 1, "position": 0}


def test_a_selection(train: Dataset) -> None:
    cats = train.select(keys="cats/*")
    stream = cats.stream(seed=0, shuffle="full")
    found = keys(stream)
    assert sorted(found) == sorted(keys(cats)) != keys(cats)
    with pytest.raises(ConfigError, match="the state is of another order: digest: found"):
        train.stream(seed=0, shuffle="full").load_state_dict(stream.state_dict())


def test_only_the_fields_asked_for(published: Project) -> None:
    captions = open_dataset(str(published.destination), fields=["txt"])
    assert {name for each in captions.stream() for name in each if name[0] != "_"} == {"txt"}


# What does not decode.


def bad(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["__key__"].endswith("3"):
        raise DecodeError(f"{sample['__key__']}: bad", key=sample["__key__"])
    return sample


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_skipping_counts_and_loses_no_place(
    published: Project, threads: int, batch_size: int | None
) -> None:
    dataset = open_dataset(str(published.destination), decode=bad, on_error="skip")
    wrong = sum(key.endswith("3") for key, _ in stored(published))
    stream = dataset.stream(threads=threads, batch_size=batch_size, last="short")
    steps = list(stream)
    found = steps if batch_size is None else [each for step in steps for each in step]
    assert len(found) == 120 - wrong and stream.skipped == wrong == stream.errors.count
    assert len(steps) == (15 if batch_size else 120 - wrong)
    assert stream.epoch == 1
    running = iter(stream)
    some = list(islice(running, 7))
    state = stream.state_dict()
    rest = list(running)
    again = dataset.stream(threads=threads, batch_size=batch_size, last="short")
    again.load_state_dict(state)
    assert [*some, *again] == [*some, *rest]
    with pytest.raises(DecodeError, match="3: bad"):
        list(dataset.stream(threads=threads, batch_size=batch_size, on_error="raise"))


def test_a_batch_of_which_nothing_is_left(published: Project) -> None:
    def never(sample: Any) -> Any:
        raise DecodeError(f"{sample['__key__']}: never", key=sample["__key__"])

    dataset = open_dataset(str(published.destination), decode=never, on_error="skip")
    with pytest.raises(
        DecodeError, match="small: version 1: all 4 samples of a batch were left out"
    ):
        next(iter(dataset.stream(batch_size=4)))


def test_a_damaged_shard_is_never_skipped(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    project = Project(tmp_path, OPTIONS)
    write_samples(project, range(60))
    manifest = project.build().manifest
    assert isinstance(manifest, Manifest)
    shard = manifest.of_split("train")[1]
    (project.destination / shard.path).write_bytes(b"x" * 100)
    dataset = open_dataset(str(project.destination), split="train", on_error="skip")
    ways: list[Any] = [{}, {"batch_size": 4}, {"batch_size": 4, "threads": 2}]
    for options in ways:
        with pytest.raises(VerificationError, match=r"version 1, split train: .*found 100 bytes"):
            list(dataset.stream(**options))


# States and options that cannot be.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: found 1; expected 0"),
        ({"shuffle": "full"}, "shuffle: found 'full'; expected 'kind=window"),
    ],
)
def test_a_state_of_another_order(train: Dataset, change: dict[str, Any], message: str) -> None:
    state = train.stream(**change).state_dict()
    with pytest.raises(ConfigError, match=f"split train: the state is of another order: {message}"):
        train.stream().load_state_dict(state)


def test_a_state_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    project = Project(tmp_path, OPTIONS)
    write_samples(project, range(60))
    project.build()
    state = open_dataset(str(project.destination), split="train").stream().state_dict()
    write_samples(project, range(60, 80))
    project.build()
    with pytest.raises(ConfigError, match=r"dataset small, version 1, split train: open just that"):
        open_dataset(str(project.destination), split="train").stream().load_state_dict(state)
    stream = open_dataset(str(project.destination), version=1, split="train").stream()
    stream.load_state_dict(state)


def test_what_is_no_state(train: Dataset) -> None:
    with pytest.raises(ConfigError, match="found a state with 'model'; expected one from"):
        train.stream().load_state_dict({"model": 1})
    with pytest.raises(ConfigError, match="found None instead of a state; expected one from"):
        train.stream().load_state_dict(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: found 0; expected a number from 1"),
        ({"batch_size": 2, "global_batch_size": 4}, "expected it or batch_size, not both"),
        (
            {"global_batch_size": 6, "rank": 0, "world_size": 4},
            "found 6; expected a multiple of the 4",
        ),
        ({"last": "keep"}, "last: found 'keep'; expected one of pad, drop, short"),
        ({"batch_size": True}, "batch_size: found True; expected a number from 1"),
        ({"ahead_bytes": "1GB"}, "ahead_bytes: found '1GB'; expected a number from 1"),
        ({"threads": -1}, "threads: found -1; expected a number from 0"),
        (
            {"rank": 2, "world_size": 2},
            "rank: found 2 of world_size 2; expected 0 to world_size - 1",
        ),
        ({"rank": 0}, "world_size: found nothing; expected both rank and world_size, or neither"),
        ({"seed": None}, "seed: found None; expected a whole number"),
        ({"seed": 1.5}, "seed: found 1.5"),
        ({"collate": 3, "batch_size": 2}, "collate: found 3; expected a function"),
        ({"collate": keys}, "collate: found .*; expected a batch_size with it"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"shuffle": "some"}, "shuffle: found 'some'"),
    ],
)
def test_options_that_cannot_be(train: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train.stream(**options)


def test_a_seed_of_numpy_is_kept_as_a_plain_value(train: Dataset) -> None:
    stream = train.stream(seed=np.int64(3))  # type: ignore[typeddict-item]
    assert json.loads(json.dumps(stream.state_dict())) == train.stream(seed=3).state_dict()


def test_no_samples(train: Dataset) -> None:
    with pytest.raises(
        ConfigError, match="small: version 1, split train: stream: there are no samples"
    ):
        len(train.select(keys="no such").stream())


@pytest.mark.parametrize(
    ("rank", "size"),
    [
        ("RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ],
)
def test_what_launchers_set(
    train: Dataset, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    expected = keys(train.stream(rank=2, world_size=3))
    monkeypatch.setenv(size, "3")
    monkeypatch.setenv(rank, "2")
    assert keys(train.stream()) == expected
    monkeypatch.setenv(rank, "first")
    with pytest.raises(ConfigError, match=f"{rank}: found 'first'; expected a number"):
        train.stream()


def test_a_shell_of_slurm_is_no_rank(train: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """`salloc -n 4` and a script of `sbatch -n 4` have these; only `srun` starts ranks."""
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")):
        monkeypatch.setenv(name, value)
    assert len(list(train.stream())) == len(train)


def test_what_is_padded_and_dropped_is_said(
    train: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "wds_pipeline.training")
    ways: list[Any] = [("pad", "20 padded"), ("drop", "12 dropped")]
    for last, said in ways:
        stream = train.stream(batch_size=16, last=last, rank=0, world_size=2)
        assert said in repr(stream)
        list(stream)
        assert said in caplog.messages[-1]
        assert (
            "76 samples" in caplog.messages[-1] and "steps of 32 for 2 ranks" in caplog.messages[-1]
        )


# Without torch it is the same, as far as torch is not asked for.


def test_without_torch(published: Project, train: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = keys(train.stream(seed=4))
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "wds_pipeline.training.torch_stream", raising=False)
    stream = train.stream(seed=4)
    assert type(stream) is Stream
    assert keys(stream) == expected
    with pytest.raises(
        ConfigError, match=r"split train: stream\.loader: .* needs torch, which is not"
    ):
        stream.loader(num_workers=2)


def test_it_goes_to_another_process(train: Dataset) -> None:
    stream = train.stream(seed=4, batch_size=5)
    running: Iterator[Any] = iter(stream)
    next(running)
    other = pickle.loads(pickle.dumps(Stream(stream.source, seed=4, batch_size=5)))
    other.load_state_dict(stream.state_dict())
    assert [keys(batch) for batch in other] == [keys(batch) for batch in running]
