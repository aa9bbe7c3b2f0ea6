"""Results of other programs: each idx once, whatever the split of the work; nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from wds_pipeline.errors import DataError, DestinationError, SourceError, VerificationError
from wds_pipeline.tokens import combined
from wds_pipeline.tokens.merge import merge
from wds_pipeline_tests.tokens.handmade import row, tree
from wds_pipeline_tests.tokens.results import save

pytestmark = pytest.mark.usefixtures("no_fsync")


def rows(folder: Path) -> dict[int, list[int]]:
    """The ids of a sealed folder by idx; each must be there once."""
    found = TensorDict.load_memmap(folder)
    idx = found["idx"].ravel().tolist()
    assert len(set(idx)) == len(idx) and found["write_flag"].all()
    assert combined.check(folder).rows == len(idx)
    return dict(zip(idx, found["input_ids"].tolist(), strict=True))


def wanted(numbers: Any, salt: str = "") -> dict[int, list[int]]:
    return {number: row(f"{salt}{number}").tolist() for number in numbers}


def test_folders_and_files(tmp_path: Path) -> None:
    save(tmp_path / "in" / "b", range(5, 9))
    save(tmp_path / "in" / "deep" / "a", range(5))
    save(tmp_path / "in" / "c.safetensors", range(9, 12))
    done = merge([tmp_path / "in"], tmp_path / "out")
    assert rows(tmp_path / "out") == wanted(range(12))
    assert list(rows(tmp_path / "out")) == list(range(12))
    assert (done.copied, done.unfinished, done.deleted) == (3, [], 0)
    assert merge([tmp_path / "in"], tmp_path / "out").copied == 0
    values = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert [Path(each["path"]).name for each in values["sources"]] == ["a", "b", "c.safetensors"]


@given(
    parts=st.lists(
        st.lists(st.tuples(st.integers(-1, 30), st.booleans()), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_idx_is_there_once(tmp_path_factory: pytest.TempPathFactory, parts: Any) -> None:
    folder = tmp_path_factory.mktemp("laws")
    for at, part in enumerate(parts):
        name = f"part{at}{'.safetensors' if at % 2 else ''}"
        save(folder / "in" / name, [n for n, _ in part], written=[flag for _, flag in part])
    numbers = {n for part in parts for n, flag in part if flag and n >= 0}
    if not numbers:
        with pytest.raises(DataError, match="no written row"):
            merge([folder / "in"], folder / "out", allow_missing=True)
        return
    done = merge([folder / "in"], folder / "out", allow_missing=True)
    assert rows(folder / "out") == wanted(numbers)
    written = sum(flag and n >= 0 for part in parts for n, flag in part)
    assert done.combined.duplicates == written - len(numbers)
    assert done.combined.unwritten == sum(map(len, parts)) - written


def test_duplicates_are_told_by_idx_and_not_by_position(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", [0, 1, 2, 3])
    save(tmp_path / "in" / "b", [3, 2, 4, 5])  # at position 0 is another row
    assert merge([tmp_path / "in"], tmp_path / "out").combined.duplicates == 2
    assert rows(tmp_path / "out") == wanted(range(6))


def test_an_idx_that_starts_over_is_refused_instead_of_losing_rows(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", range(4), salt="a")
    save(tmp_path / "in" / "b", range(4), salt="b")
    with pytest.raises(
        DataError, match=r"b: idx 0 has other values of input_ids than in .*a; expected an idx"
    ):
        merge([tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unfinished_results_count_only_when_asked_for(tmp_path: Path) -> None:
    save(tmp_path / "in" / "part0", range(4))
    save(tmp_path / "in" / "tmp_part1", [2, 3, 4, -1], written=[True, True, True, False])
    save(tmp_path / "in" / "tmp_more" / "part2", [5])
    done = merge([tmp_path / "in"], tmp_path / "out")
    assert rows(tmp_path / "out") == wanted(range(4))
    assert [path.name for path in done.unfinished] == ["part2", "tmp_part1"]
    merge([tmp_path / "in"], tmp_path / "with", partial=True)
    assert rows(tmp_path / "with") == wanted(range(6))
    shutil.rmtree(tmp_path / "in" / "part0")
    with pytest.raises(SourceError, match="found no result but 2 of workers that did not end"):
        merge([tmp_path / "in"], tmp_path / "none")


def test_a_folder_above_may_be_called_tmp(tmp_path: Path) -> None:
    save(tmp_path / "tmp_runs" / "in" / "part0", range(4))
    assert not merge([tmp_path / "tmp_runs" / "in"], tmp_path / "out").unfinished


def test_holes_are_refused_unless_allowed(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", [0, 1, 2])
    save(tmp_path / "in" / "b", [6, 7])
    with pytest.raises(DataError, match="3 rows are missing from 0 to 7, the first is idx 3"):
        merge([tmp_path / "in"], tmp_path / "out")
    merge([tmp_path / "in"], tmp_path / "out", allow_missing=True)
    assert rows(tmp_path / "out") == wanted([0, 1, 2, 6, 7])


def test_moved(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", range(3))
    save(tmp_path / "in" / "b.safetensors", range(3, 6))
    save(tmp_path / "in" / "tmp_c", [6])
    (tmp_path / "in" / "a" / "log.txt").write_text("mine")
    done = merge([tmp_path / "in"], tmp_path / "out", move=True)
    assert done.deleted == 2
    assert rows(tmp_path / "out") == wanted(range(6))
    left = {name for name in tree(tmp_path / "in") if not name.startswith("tmp_c")}
    assert left == {"a/log.txt"}
    again = merge([tmp_path / "in"], tmp_path / "out", move=True)
    assert (again.copied, again.deleted) == (0, 0)
    assert rows(tmp_path / "out") == wanted(range(6))


def test_nothing_is_deleted_when_the_result_is_not_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "a", range(30))
    before = tree(tmp_path / "in")
    real = os.pwrite

    def flipped(fd: int, data: Any, at: int) -> int:
        bad = bytearray(data)
        bad[0] ^= 1
        return real(fd, bytes(bad), at)

    monkeypatch.setattr(os, "pwrite", flipped)
    with pytest.raises(VerificationError, match="are not what was copied"):
        merge([tmp_path / "in"], tmp_path / "out", move=True)
    assert tree(tmp_path / "in") == before


def test_a_result_that_grew_after_it_was_combined_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "a", range(3))
    real = combined.check

    def grows(folder: Path, progress: Any = None) -> Any:
        save(tmp_path / "in" / "a", range(9))
        return real(folder, progress)

    monkeypatch.setattr(combined, "check", grows)
    with pytest.raises(SourceError, match="changed after it was combined"):
        merge([tmp_path / "in"], tmp_path / "out", move=True)
    assert len(TensorDict.load_memmap(tmp_path / "in" / "a")) == 9


def test_what_was_moved_is_not_written_over(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a", range(3))
    merge([tmp_path / "in"], tmp_path / "out", move=True)
    save(tmp_path / "in" / "b", range(3, 6))
    for move in (True, False):
        with pytest.raises(DestinationError, match="has the rows of 1 results that are gone"):
            merge([tmp_path / "in"], tmp_path / "out", move=move)
    assert rows(tmp_path / "out") == wanted(range(3))
    merge([tmp_path / "in", tmp_path / "out"], tmp_path / "all")
    assert rows(tmp_path / "all") == wanted(range(6))


@pytest.mark.parametrize("how", ["truncated", "no idx", "other columns", "not there", "text"])
def test_what_is_refused(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "in"
    path = save(folder / "a", range(50))
    save(folder / "b.safetensors", range(50, 60))
    error: type[Exception] = SourceError
    if how == "truncated":
        os.truncate(folder / "b.safetensors", 200)
    elif how == "no idx":
        loaded = TensorDict.load_memmap(path)
        kept = loaded.exclude("idx").clone()
        shutil.rmtree(path)
        kept.memmap(str(path))
        error = DataError
    elif how == "other columns":
        loaded = TensorDict.load_memmap(path).clone()
        loaded["more"] = loaded["idx"].clone()
        shutil.rmtree(path)
        loaded.memmap(str(path))
        error = DataError
    elif how == "not there":
        folder = tmp_path / "elsewhere"
    else:
        (folder / "c.safetensors").write_text("no such file")
    with pytest.raises(error) as caught:
        merge([folder], tmp_path / "out")
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_folder(tmp_path: Path) -> None:
    from wds_pipeline.tokens.combine import combine
    from wds_pipeline_tests.tokens.handmade import plain, version

    combine([version(tmp_path / "version", plain())], tmp_path / "out")
    save(tmp_path / "in" / "a", range(3))
    with pytest.raises(DestinationError, match="was combined from tokens"):
        merge([tmp_path / "in"], tmp_path / "out")
    with pytest.raises(DestinationError, match="was combined from tokens"):
        merge([tmp_path / "in"], tmp_path / "out", move=True)
