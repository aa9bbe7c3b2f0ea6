"""Splits by ratio, directory and list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wds_pipeline.config import DatasetConfig, SplitConfig
from wds_pipeline.dataset.split import by_ratio, choose, group_of, read_list
from wds_pipeline.errors import ConfigError, DataError

KEYS = [f"{folder}/{number}" for folder in "abcdefgh" for number in range(250)]


def ratios(**values: object) -> SplitConfig:
    return SplitConfig.model_validate(values)


def test_ratios_are_met_and_stay_as_published() -> None:
    config = ratios(train=0.8, val=0.15, test=0.05)
    splits = choose(KEYS, config, {}, {})
    assert [splits.count(name) for name in config.ratios] == pytest.approx(
        [1600, 300, 100], rel=0.2
    )
    # What was published must come out again: another hash would move the samples of all users.
    assert [by_ratio(key, config) for key in ("a/0", "a/1", "é/2", "", "a/7")] == [
        "train",
        "train",
        "test",
        "train",
        "train",
    ]


def test_more_of_one_split_moves_as_few_keys_as_it_must() -> None:
    before = choose(KEYS, ratios(train=0.9, val=0.1), {}, {})
    after = choose(KEYS, ratios(train=0.8, val=0.2), {}, {})
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("train", "val")}


def test_the_salt_gives_another_division() -> None:
    one = choose(KEYS, ratios(train=0.5, val=0.5), {}, {})
    two = choose(KEYS, ratios(train=0.5, val=0.5, salt="x"), {}, {})
    assert 0.4 < sum(a != b for a, b in zip(one, two, strict=True)) / len(KEYS) < 0.6


def test_groups_stay_together() -> None:
    config = ratios(train=0.5, val=0.5, group_by="^([^/]+)/")
    found: dict[str, set[str | None]] = {}
    for key, split in zip(KEYS, choose(KEYS, config, {}, {}), strict=True):
        found.setdefault(key[0], set()).add(split)
    assert all(len(splits) == 1 for splits in found.values())
    assert len(set.union(*found.values())) == 2
    settled = dict.fromkeys("abcdefgh", "val")
    assert set(choose(KEYS, config, {}, settled)) == {"val"}


@pytest.mark.parametrize(
    ("pattern", "key", "group"),
    [
        ("^([^/]+)/", "a/1", "a"),
        ("^([^/]+)/", "1", "1"),
        ("(x)?", "abc", "abc"),
        ("scene(\\d+)", "in/scene12_3", "12"),
        ("^([^/]*)", "/b", ""),
    ],
)
def test_the_group_of_a_key(pattern: str, key: str, group: str) -> None:
    assert group_of(key, re.compile(pattern)) == group


def test_directories() -> None:
    config = ratios(by="directory", names={"validation": "val"})
    keys = ["train/1", "validation/x/2", "top"]
    assert choose(keys, config, {}, {}) == ["train", "val", None]
    assert choose(keys, ratios(by="directory", default="rest"), {}, {})[2] == "rest"
    with pytest.raises(DataError, match=r"my-split/1: .*split\.names: \{'my-split': train\}"):
        choose(["my-split/1"], config, {}, {}, "small")


def by_list(folder: Path, text: str | bytes) -> DatasetConfig:
    (folder / "splits.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return DatasetConfig.model_validate(
        {
            "name": "small",
            "source": {"url": "raw"},
            "destination": {"url": "out"},
            "split": {"by": "list", "file": str(folder / "splits.csv")},
        }
    )


@pytest.mark.parametrize(
    "text",
    [
        "key,split\na/1,train\nb,val\n",
        "a/1,train\r\n\r\nb,val",
        "key\tsplit\na/1\ttrain\nb\tval\n",
        '\ufeffkey,split\n"a/1",train\nb,val\nb,val\n',
    ],
)
def test_a_list_in_its_spellings(tmp_path: Path, text: str) -> None:
    splits, digest = read_list(by_list(tmp_path, text))
    assert splits == {"a/1": "train", "b": "val"}
    assert digest


def test_unusual_keys_in_a_list(tmp_path: Path) -> None:
    text = 'key,split\n"a,b ""c""",train\nd\x85e\u2028f,val\n'
    splits, _ = read_list(by_list(tmp_path, text))
    assert splits == {'a,b "c"': "train", "d\x85e\u2028f": "val"}


def test_another_list_has_another_digest(tmp_path: Path) -> None:
    one = read_list(by_list(tmp_path, "a,train\n"))[1]
    assert one == read_list(by_list(tmp_path, "a,train\n"))[1]
    assert one != read_list(by_list(tmp_path, "a,val\n"))[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,split\na,train\nb\n", r"splits\.csv:3: found 1 columns; expected two"),
        ("a,train\na,val\n", r"splits\.csv:2: 'a' is val here and train before"),
        ("a,my-split\n", r"splits\.csv:1: the split 'my-split': expected letters"),
        (b"a,\xff\n", r"splits\.csv: not readable"),
        ("a,train\n" + "x" * 200_000 + ",val\n", r"splits\.csv.*field larger"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_list(by_list(tmp_path, text))


def test_a_list_that_is_gone(tmp_path: Path) -> None:
    config = by_list(tmp_path, "")
    (tmp_path / "splits.csv").unlink()
    with pytest.raises(ConfigError, match=r"small: split\.file: .*splits\.csv: not readable"):
        read_list(config)
