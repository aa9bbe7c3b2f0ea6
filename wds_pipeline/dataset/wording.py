"""How sizes, names and tables are written for people, wherever they are printed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_BUT_NEWLINES = re.compile(_UNSAFE.pattern.replace("\\x00-\\x1f", "\\x00-\\x09\\x0b-\\x1f"))


def human_bytes(size: float) -> str:
    """12.3 MB, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def counted(count: int, noun: str) -> str:
    """`1 shard`, `1,234 shards`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed_changes(changes: Mapping[str, int]) -> str:
    """`3 new, 1 edited`: what happened to samples, by cause."""
    return ", ".join(
        "all laid out anew" if cause == "repack" else f"{count:,} {cause}"
        for cause, count in changes.items()
    )


def printable(text: str, *, lines: bool = False) -> str:
    """Text from file names and content, without what would steer the terminal.

    `lines` lets line breaks through.
    """
    pattern = _UNSAFE_BUT_NEWLINES if lines else _UNSAFE
    return pattern.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clip(text: str, width: int) -> str:
    """At most `width` characters of a text, printable and in one line."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with aligned columns; the columns `right` are numbers."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for at, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - _width(cell))
            cells.append(gap + cell if at in right else cell + gap)
        lines.append("  ".join(cells).rstrip())
    return lines


def _width(text: str) -> int:
    """Columns on a terminal."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in text
    )
