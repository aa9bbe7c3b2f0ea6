"""Selections: what a query finds is what looking at every sample finds, and only that is read."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from wds_pipeline.dataset import seal
from wds_pipeline.errors import VersionError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import plain, stored

Test = Callable[[str, dict[str, bytes]], Any]


@pytest.fixture
def dataset(published: Project) -> Dataset:
    return open_dataset(str(published.destination))


def width(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return image.width


def find(project: Project, test: Test) -> list[tuple[str, dict[str, bytes]]]:
    found = [(key, sample) for key, sample in stored(project) if test(key, sample)]
    assert 0 < len(found) < 120
    return found


QUERIES: list[tuple[str, Test]] = [
    ("png.width >= 10", lambda key, sample: width(sample["png"]) >= 10),
    ("9 <= png.width < 11", lambda key, sample: 9 <= width(sample["png"]) < 11),
    ("png.width == 8 or png.width == 12", lambda key, sample: width(sample["png"]) in (8, 12)),
    ("png.width in [8, 12]", lambda key, sample: width(sample["png"]) in (8, 12)),
    ("not (png.width in (8, 12))", lambda key, sample: width(sample["png"]) not in (8, 12)),
    ("png.width not in (8, 12)", lambda key, sample: width(sample["png"]) not in (8, 12)),
    ("seg.png.size > 77", lambda key, sample: len(sample.get("seg.png", b"")) > 77),
    ("field['seg.png'].size > 77", lambda key, sample: len(sample.get("seg.png", b"")) > 77),
    ("txt.chars < 23", lambda key, sample: len(sample["txt"].decode()) < 23),
    ("has('json')", lambda key, sample: "json" in sample),
    ("not has('json') and png.height == 8", lambda key, sample: "json" not in sample),
    ("startswith(key, 'cats/')", lambda key, sample: key.startswith("cats/")),
    ("endswith(key, '7')", lambda key, sample: key.endswith("7")),
    ("contains(key, '01')", lambda key, sample: "01" in key),
    ("matches(key, '^dogs/00[0-4]')", lambda key, sample: re.search("^dogs/00[0-4]", key)),
    ("like(key, 'c%3')", lambda key, sample: re.fullmatch("c.*3", key)),
    ("key > 'dogs/'", lambda key, sample: key > "dogs/"),
    ("png.format == 'PNG' and has('seg.png')", lambda key, sample: "seg.png" in sample),
]


@pytest.mark.parametrize(("query", "test"), QUERIES, ids=[query for query, _ in QUERIES])
def test_queries(published: Project, dataset: Dataset, query: str, test: Test) -> None:
    expected = find(published, test)
    chosen = dataset.select(query)
    assert [plain(each) for each in chosen] == expected
    assert [plain(chosen[number]) for number in range(len(chosen))] == expected
    assert plain(chosen[-1]) == expected[-1]


def test_an_expression_of_arrow(published: Project, dataset: Dataset) -> None:
    wide = (pc.field("png.width") >= 10) & pc.field("seg.png.size").is_valid()
    expected = find(published, lambda key, each: width(each["png"]) >= 10 and "seg.png" in each)
    assert [plain(each) for each in dataset.select(wide)] == expected


@pytest.mark.parametrize(
    ("options", "test"),
    [
        ({"keys": "cats/*"}, lambda key, each: key.startswith("cats/")),
        ({"keys": "*[13579]"}, lambda key, each: int(key[-1]) % 2),
        ({"keys": re.compile("0$")}, lambda key, each: key.endswith("0")),
        (
            {"keys": {"cats/0001", "dogs/0003", "none"}},
            lambda key, each: key in ("cats/0001", "dogs/0003"),
        ),
        ({"has": ["json", "seg.png"]}, lambda key, each: {"json", "seg.png"} <= each.keys()),
        (
            {"has": "json", "lacks": "seg.png"},
            lambda key, each: "json" in each and "seg.png" not in each,
        ),
        (
            {"where": "png.width > 8", "keys": "cats/*", "lacks": ["json"]},
            lambda key, each: width(each["png"]) > 8 and key[0] == "c" and "json" not in each,
        ),
    ],
)
def test_other_filters(
    published: Project, dataset: Dataset, options: dict[str, Any], test: Test
) -> None:
    assert [plain(each) for each in dataset.select(**options)] == find(published, test)


def test_by_what_is_in_a_small_field(published: Project, dataset: Dataset) -> None:
    seen: list[set[str]] = []

    def test(sample: dict[str, Any]) -> bool:
        seen.append(set(sample))
        return b'"number": 1' in sample["json"]

    chosen = dataset.select(has="json", test=test, fields=["json"])
    expected = find(published, lambda key, each: b'"number": 1' in each.get("json", b""))
    assert [plain(each) for each in chosen] == expected
    assert all(each == {"__key__", "__url__", "__index__", "json"} for each in seen)


def test_a_selection_of_a_selection(published: Project, dataset: Dataset) -> None:
    cats = dataset.select(keys="cats/*")
    both = cats.select("png.width >= 10")
    expected = find(published, lambda key, each: key[0] == "c" and width(each["png"]) >= 10)
    assert [plain(each) for each in both] == expected
    assert len(cats) > len(both)
    key = expected[4][0]
    assert both.index_of(key) == 4
    assert plain(both.by_key(key)) == expected[4]
    narrow = find(published, lambda key, each: key[0] == "c" and width(each["png"]) < 10)[0][0]
    with pytest.raises(VersionError, match=f"'{narrow}' is not among the {len(both)} selected"):
        both.by_key(narrow)
    with pytest.raises(IndexError, match=f"among the {len(both)} selected"):
        both[len(both)]
    with pytest.raises(VersionError, match="a selection has no shards"):
        _ = both.urls


def test_a_selection_goes_to_another_process(dataset: Dataset) -> None:
    chosen = dataset.select("png.width >= 10")
    sent = pickle.loads(pickle.dumps(chosen))
    assert [plain(each) for each in sent] == [plain(each) for each in chosen]


def test_nothing_selected(dataset: Dataset) -> None:
    chosen = dataset.select("png.width > 5000")
    assert len(chosen) == 0
    assert list(chosen) == chosen[:] == []
    assert list(chosen.select(has="json")) == []
    assert list(chosen.webdataset()) == []


def test_no_sample_is_read_for_a_query(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(type(dataset.reader), "_open", lambda self, shard: opened.append(shard))
    assert len(dataset.select("png.width >= 10", has="json", keys="*1*"))
    assert opened == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            "png.widht > 3",
            r"small: .*asks for 'png.widht'; there are key, and of a field, such as png, png.size, "
            r"png.width, .*did you mean 'png.width'",
        ),
        ("jpg.width > 3", "no sample has a field 'jpg'; there are json, png, seg.png, txt"),
        ("txt.width > 3", "asks for txt.width, but no txt has a width"),
        ("png.width > 'a'", "cannot be answered"),
        ("png.width >", "cannot be read"),
        (
            "png.width > 3 && has('txt')",
            "written as in Python: and, or, not, ==, in; texts in quotes",
        ),
        ("png.width > 3 & txt.size > 3", "where a value belongs; it is written as in Python"),
        ("width > 3", "asks for 'width'; there are key, and of a field, such as jpg, jpg.size"),
        ("key == cats", "a text stands in quotes"),
        ("key in 'cats'", "where a list such as"),
        ("png.width == None", r"compares with None; has\("),
        (bool, "for a function of a sample: test="),
        ("__import__('os').system('true')", "where something true or false belongs"),
        ("has(png)", "where a value belongs"),
        ("hass('png')", r"there are has\(field\)"),
        ("png.width", "where something true or false belongs"),
        ("key is 'a'", "no comparison"),
        (pc.field("png.widht") > 3, "No match for FieldRef"),
    ],
)
def test_queries_that_cannot_be_answered(
    dataset: Dataset, query: str | pc.Expression, message: str
) -> None:
    with pytest.raises(VersionError, match=message):
        dataset.select(query)


def test_unknown_fields(dataset: Dataset) -> None:
    with pytest.raises(VersionError, match=r"no sample has a field 'jsn'.*did you mean 'json'"):
        dataset.select(has="jsn")
    with pytest.raises(VersionError, match=r"no sample has a field 'jsn'.*did you mean 'json'"):
        dataset.select(test=bool, fields=["jsn"])


def test_what_was_never_decoded_is_not_taken_for_small(project: Project) -> None:
    project.add(0, 8)
    project.build(verify={"level": "samples"})
    dataset = open_dataset(str(project.destination))
    assert len(dataset.select("png.size > 0 and has('txt')")) == 8
    with pytest.raises(
        VersionError, match=r"width is not known: \d of its \d png were never decoded; .*--level"
    ):
        dataset.select("png.width >= 10")
    for report in (project.destination / seal.FOLDER).glob(f"*{seal.REPORT}"):
        report.unlink()
    with pytest.raises(VersionError, match="it has no report; `wds-pipeline verify small"):
        dataset.select("png.width >= 10")


def test_it_keeps_the_order_of_its_dataset(dataset: Dataset) -> None:
    backwards = dataset._with(indices=np.arange(119, -1, -1))
    forwards = dataset.select("png.width >= 10")
    assert [*backwards.select("png.width >= 10")] == [*forwards][::-1]
