"""What the benchmarks' figures rest on: everybody's bytes are compared, and the scores are right."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import mixing, readers, resume
from benchmarks.measure import HERE, Settings
from benchmarks.read import checked


@pytest.mark.parametrize("name", command._NAMES)
def test_every_name_is_a_benchmark(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").run)


@pytest.mark.parametrize(
    ("typed", "module"),
    [("stream-s3", "stream_s3"), ("random", "random_access"), ("s3_pack", "s3_pack")],
)
def test_names_may_have_dashes(monkeypatch: pytest.MonkeyPatch, typed: str, module: str) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", typed])
    assert command._options().names == [module]


def test_an_unknown_name_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "stream-s4"])
    with pytest.raises(SystemExit):
        command._options()
    assert "no benchmark named stream_s4" in capsys.readouterr().err


def test_the_docs_have_a_place_for_every_benchmark_of_reading() -> None:
    text = (HERE / "docs" / "benchmarks.md").read_text()
    for name in (*command._READ, "mixing"):
        begin, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
        assert text.count(begin) == text.count(end) == 1
        assert "| what |" in text[text.index(begin) : text.index(end)], name


def test_too_few_bytes_are_an_error() -> None:
    assert checked(lambda: 10, 10)().seconds >= 0
    with pytest.raises(RuntimeError, match="bytes: found 9; expected 10"):
        checked(lambda: 9, 10)()


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_of_yaml").mkdir()
    (tmp_path / "package_of_code").mkdir()
    (tmp_path / "package_of_code" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not readers.installed("folder_of_yaml")
    assert readers.installed("package_of_code")
    assert not readers.installed("package_of_code", "nothing_of_that_name")


class _StartsOver:
    """As litdata's: asked for an iterator, it begins again."""

    def __iter__(self) -> _StartsOver:
        self.left = [1, 2, 3]
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        return self.left.pop(0)


def test_the_rest_does_not_start_over() -> None:
    iterator = iter(_StartsOver())
    assert next(iterator) == 1
    assert list(readers.rest(iterator)) == [2, 3]


class _Captions:
    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.position, 10):
            yield {"txt": b"%d" % number}


@pytest.mark.parametrize("stateful", [True, False], ids=["by state", "by skipping"])
def test_resuming_takes_the_time_of_the_right_sample(stateful: bool) -> None:
    way = resume.Way("skips", _Captions)
    if stateful:
        way = resume.Way("jumps", _Captions, lambda _, count: count, _jump)
    mark = resume._mark(way, 5)
    assert mark.next == ["5"]
    assert min(resume._resume(way, mark)) >= 0


def test_resuming_elsewhere_is_an_error() -> None:
    way = resume.Way("slips", _Captions, lambda _, count: count + 1, _jump)
    with pytest.raises(RuntimeError, match="slips: resumed after 5 with '6', but '5' was next"):
        resume._resume(way, resume._mark(way, 5))


def _jump(captions: _Captions, position: int) -> None:
    captions.position = position


def test_scores_of_a_perfect_shuffle_and_of_none() -> None:
    count, in_shard = 51_200, 5120
    stored = np.arange(count)
    one, other = (np.random.default_rng(seed).permutation(count) for seed in range(2))
    moved, shard, near, classes, again = mixing.scores(one, other, in_shard)
    assert (moved, shard, again) == pytest.approx((1, 1, 1), abs=0.02)
    assert near == pytest.approx(1, abs=0.1)
    assert classes == pytest.approx(100 * (1 - 0.99**256), abs=0.5)
    moved, shard, near, classes, again = mixing.scores(stored, stored, in_shard)
    assert moved == 0
    assert shard == pytest.approx(10, rel=0.01)  # each batch is of one of the ten shards
    assert near > 100
    assert classes < 2
    assert again == pytest.approx(200, rel=0.01)  # all of a batch are together again


def test_shuffling_shards_alone_moves_samples_and_mixes_none() -> None:
    shards = np.random.default_rng(0).permutation(100)
    order = (shards[:, None] * 512 + np.arange(512)).ravel()
    moved, shard, _, classes, _ = mixing.scores(order, order, 512)
    assert moved > 0.8
    assert shard == pytest.approx(100, rel=0.01)
    assert classes < 3


def test_our_window_mixes_better_than_a_buffer_of_as_many() -> None:
    section = mixing.run(Settings(Path("unused"), ("typical",), 1, quick=True))
    rows = {str(row[0]): [float(str(each)) for each in row[1:6]] for row in section.tables[0].rows}
    ours = rows["wds_pipeline, `Shuffle(window=1000)`"]
    theirs = rows["webdataset, shards shuffled, `.shuffle(1000)`"]
    full = rows['wds_pipeline, `shuffle="full"`']
    assert ours[1] < theirs[1] / 10
    assert ours[3] > 5 * theirs[3]
    assert full == pytest.approx(rows["perfect: `np.random.permutation`"], abs=0.5)
