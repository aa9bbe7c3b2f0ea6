"""Files that share a key: their order, sizes, digests and problems."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset import naming, tar
from wds_pipeline.dataset import samples as module
from wds_pipeline.dataset.samples import Samples, advice, group, policy_for, ranges
from wds_pipeline_tests.dataset.inventories import Files, dataset, inventory

ANY: dict[str, Any] = {"required": []}


def grouped(files: Files, **config: Any) -> Samples:
    whole = dataset(samples={**ANY, **config})
    return group(inventory(files, whole), whole.samples, "small")


def digests(files: Files, **config: Any) -> dict[str, bytes]:
    found = grouped(files, **config)
    return dict(zip(found.keys.to_pylist(), (d.tobytes() for d in found.digests), strict=True))


FILES: Files = {
    "a/1.jpg": (700, "x"),
    "a/1.txt": (5, "y"),
    "a/2.jpg": (0, "x"),
    "b/1.json": (512, "z"),
    "README": (3, "r"),
}


def test_samples_and_their_members() -> None:
    found = grouped(FILES)
    assert found.keys.to_pylist() == ["a/1", "a/2", "b/1"]
    assert found.first.tolist() == [0, 2, 3, 4]
    assert found.files["name"].to_pylist() == ["a/1.jpg", "a/1.txt", "a/2.jpg", "b/1.json"]
    assert found.bytes.tolist() == [512 + 1024 + 512 + 512, 512, 1024]
    assert found.problem.tolist() == ["", "empty_file", ""]
    assert found.paths(0) == ["a/1.jpg", "a/1.txt"]
    assert found.rows(np.array([2, 0])).tolist() == [3, 0, 1]


def test_members_are_sorted_by_field_by_code_point() -> None:
    files = {f"a.{field}": (1, "1") for field in ("txt", "Jpg", "é", "z", "1", "json.gz")}
    found = grouped(files)
    assert found.files["field"].to_pylist() == ["1", "jpg", "json.gz", "txt", "z", "é"]


@settings(max_examples=60)
@given(
    names=st.lists(st.text("abé日", min_size=1, max_size=90), min_size=1, max_size=5, unique=True),
    size=st.sampled_from([0, 1, 511, 512, 513, 8 * 1024**3 - 1, 8 * 1024**3, 2**50]),
)
def test_bytes_are_what_the_members_take_in_the_tar(names: list[str], size: int) -> None:
    files = {f"{name}/{name}.jpg": (size, "1") for name in names}
    found = grouped(files, on_invalid="keep")
    names = found.files["name"].to_pylist()
    assert found.bytes.tolist() == [len(tar.header(n, size)) + size + -size % 512 for n in names]


@pytest.mark.parametrize("letter", ["a", "é", "日"])
def test_bytes_of_names_around_the_header_s_length(letter: str) -> None:
    files = {letter * count + ".jpg": (1, "1") for count in range(20, 252 // len(letter.encode()))}
    found = grouped(files)
    names = found.files["name"].to_pylist()
    assert found.bytes.tolist() == [len(tar.header(name, 1)) + 512 for name in names]


@pytest.mark.parametrize(
    "change",
    [
        {"a/1.jpg": (701, "x")},
        {"a/1.jpg": (700, "w")},
        {"a/1.npy": (700, "w")},
        {"a/1.txt": None},
    ],
)
def test_the_digest_is_the_sample_s_content_and_nothing_else(change: dict[str, Any]) -> None:
    before = digests(FILES)
    changed = {**FILES, **change}
    after = digests({path: value for path, value in changed.items() if value is not None})
    assert after["a/1"] != before["a/1"]
    assert {k: v for k, v in after.items() if k != "a/1"} == {
        k: v for k, v in before.items() if k != "a/1"
    }


def test_the_digest_knows_the_source_s_path_and_the_member_s_name() -> None:
    key = {"pattern": "^[^/]*/"}
    one = digests({"x/1.jpg": (1, "1")}, key=key)["1"]
    assert one != digests({"y/1.jpg": (1, "1")}, key=key)["1"]
    jpg = digests({"1.jpg": (1, "1")}, fields={"jpg": []})["1"]
    assert jpg != digests({"1.jpg": (1, "1")}, fields={"img": ["jpg"]})["1"]
    assert jpg == digests({"1.jpg": (1, "1")})["1"]
    # No part can be mistaken for another.
    assert digests({"1.jpg": (1, "12")}) != digests({"1.jpg": (11, "2")})


def test_files_that_are_ignored_change_nothing() -> None:
    assert digests({**FILES, "LICENSE": (1, "1")}) == digests(FILES)
    fields: dict[str, list[str]] = {"jpg": [], "txt": []}
    del (more := dict(FILES))["b/1.json"]
    assert digests({**FILES, "a/1.npy": (1, "1")}, fields=fields) == digests(more, fields=fields)


def problems(files: Files, **config: Any) -> dict[str, tuple[str, str]]:
    found = grouped(files, **config)
    return {
        key: (reason, found.detail[row])
        for row, (key, reason) in enumerate(zip(found.keys.to_pylist(), found.problem, strict=True))
        if reason
    }


def test_two_files_of_one_field() -> None:
    found = problems({"a.jpg": (1, "1"), "a.JPG": (1, "1"), "b.jpg": (1, "1")})
    assert found.keys() == {"a"}
    assert found["a"][0] == "duplicate_field"
    assert "a.JPG and a.jpg" in found["a"][1]
    found = problems(
        {"a.jpg": (1, "1"), "a.jpeg": (1, "1")}, fields={"jpg": ["jpg", "jpeg"]}, on_invalid="keep"
    )
    assert found["a"][0] == "duplicate_field"
    key = {"pattern": "^[^/]*/"}
    assert (
        problems({"x/1.jpg": (1, "1"), "y/1.jpg": (1, "1")}, key=key)["1"][0] == "duplicate_field"
    )


def test_missing_fields_are_all_named() -> None:
    files = {
        "a.jpg": (1, "1"),
        "b.jpg": (1, "1"),
        "b.txt": (1, "1"),
        "c.json": (1, "1"),
        "d.npy": (1, "1"),
    }
    found = problems(files, required=["jpg", "txt", "json"])
    assert found == {
        "a": ("missing_field", "no txt, json"),
        "b": ("missing_field", "no json"),
        "c": ("missing_field", "no jpg, txt"),
        "d": ("missing_field", "no jpg, txt, json"),
    }
    assert problems(files, required=["jpg", "txt", "json"], on_missing="keep") == {}


def test_the_worst_problem_is_the_one_that_is_named() -> None:
    files = {
        "a.jpg": (0, "1"),  # empty, and without a text
        "b.v2.jpg": (0, "1"),  # and a dotted name
        "c.jpg": (0, "1"),
        "c.JPG": (0, "1"),
        "d.txt": (1, "1"),
        "d.jpg": (1, "1"),
        "d.v2.jpg": (1, "1"),
    }
    found = {key: reason for key, (reason, _) in problems(files, required=["txt"]).items()}
    assert found == {
        "a": "empty_file",
        "b.v2": "dotted_name",
        "c": "duplicate_field",
        "d.v2": "dotted_name",
    }


def test_keep_does_not_keep_what_cannot_be_read() -> None:
    files = {"a.jpg": (0, "1"), "a.JPG": (1, "1"), "b.v2.jpg": (0, "1"), "c.jpg": (0, "1")}
    found = problems(files, on_invalid="keep", on_missing="keep", required=["jpg"])
    assert {key: reason for key, (reason, _) in found.items()} == {
        "a": "duplicate_field",
        "b.v2": "dotted_name",
    }


def test_every_reason_has_an_advice_and_a_policy() -> None:
    config = dataset(samples={**ANY, "on_missing": "keep", "on_invalid": "error"}).samples
    for reason in (*naming.PROBLEMS, *module.SHAPE_PROBLEMS, *module.CONTENT_PROBLEMS):
        assert advice(reason) != reason
        assert policy_for(reason, config) in ("error", "quarantine", "keep")
    assert policy_for("missing_field", config) == "keep"
    assert policy_for("broken_image", config) == "error"
    assert policy_for("empty_file", config) == "error"
    assert policy_for("dotted_name", config) == "quarantine"
    assert policy_for("no_split", config) == "quarantine"
    keep = dataset(samples={**ANY, "on_invalid": "keep"}).samples
    assert policy_for("unstable", keep) == "quarantine", "there is nothing whole to keep"


@settings(max_examples=60)
@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=8))
def test_ranges(spans: list[tuple[int, int]]) -> None:
    start = np.array([a for a, _ in spans], np.int64)
    stop = np.array([a + n for a, n in spans], np.int64)
    assert ranges(start, stop).tolist() == [i for a, n in spans for i in range(a, a + n)]
