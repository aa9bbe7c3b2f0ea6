"""Sizes, names and tables as people read them."""

from __future__ import annotations

import pytest

from wds_pipeline.dataset.wording import aligned, clip, counted, human_bytes, printable


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_949, "99.9 kB"), (99_950, "100 kB"),
     (13_762_560, "13.8 MB"), (5e15, "5000 TB")],
)  # fmt: skip
def test_sizes(size: float, text: str) -> None:
    assert human_bytes(size) == text


def test_counts() -> None:
    assert [counted(n, "shard") for n in (0, 1, 1234)] == ["0 shards", "1 shard", "1,234 shards"]


def test_nothing_steers_the_terminal() -> None:
    assert (
        printable("a\x1b[2Jb\nc\x9b\u202e\udcff é 漢") == "a\\x1b[2Jb\\nc\\x9b\\u202e\\udcff é 漢"
    )
    assert printable("a\nb\r\t", lines=True) == "a\nb\\r\\t"


def test_clipping() -> None:
    assert clip("one\n two", 20) == "one two"
    assert clip("x" * 30, 10) == "x" * 9 + "…"


def test_columns_align_by_what_a_terminal_shows() -> None:
    assert aligned([("漢", "1"), ("abc", "22")], right=(1,)) == ["漢    1", "abc  22"]
