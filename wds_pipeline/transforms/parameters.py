"""What built-in transforms take as parameters: checks whose messages say what was found and expected.

All raise ValueError, or ConfigError for a name that is not known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.errors import ConfigError


def wrong(name: str, found: Any, expected: str) -> ValueError:
    """The error for a parameter."""
    return ValueError(f"{name}: found {found!r:.80}; expected {expected}")


def field_names(name: str, found: Any) -> tuple[str, ...]:
    """A list of fields, at least one, none of them twice."""
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise wrong(name, found, "a list of fields, such as [jpg]")
    for each in found:
        field_name(name, each)
    if not found or len(set(found)) < len(found):
        raise wrong(name, found, "one field or more, each once, such as [jpg]")
    return tuple(found)


def field_name(name: str, found: Any) -> str:
    """A field, as readers know it: in lower case, without a leading dot."""
    if (
        not isinstance(found, str)
        or not found
        or found != found.lower()
        or found != found.strip("./ ")
    ):
        raise wrong(name, found, "a field's name, such as jpg or seg.png, in lower case")
    if "/" in found or found.startswith("__"):
        raise wrong(name, found, "a field's name, such as jpg or seg.png: without / and leading __")
    return found


def whole(name: str, found: Any, least: int, most: int | None = None) -> int:
    """A whole number from `least` to `most`."""
    until = "or more" if most is None else f"to {most:,}"
    if (
        isinstance(found, bool)
        or not isinstance(found, int)
        or found < least
        or found > (most or found)
    ):
        raise wrong(name, found, f"a whole number, {least:,} {until}")
    return found


def number(name: str, found: Any, above: float = 0) -> float:
    """A number above `above`."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > above:
        raise wrong(name, found, f"a number above {above:g}")
    return found


def switch(name: str, found: Any) -> bool:
    """true or false."""
    if not isinstance(found, bool):
        raise wrong(name, found, "true or false")
    return found


def one_of(name: str, found: Any, known: Collection[str]) -> str:
    """One of some names."""
    if found not in known:
        near = did_you_mean(str(found), known)
        raise ConfigError(f"{name}: found {found!r:.80}; expected one of {', '.join(known)}{near}")
    return str(found)


def pair(name: str, found: Any) -> tuple[int, int]:
    """Width and height in pixels: two numbers, or one for both."""
    if isinstance(found, list | tuple) and len(found) == 2:
        return whole(name, found[0], 1, MOST_SIDE), whole(name, found[1], 1, MOST_SIDE)
    if isinstance(found, int) and not isinstance(found, bool):
        return (whole(name, found, 1, MOST_SIDE),) * 2
    raise wrong(name, found, "pixels: one number, or [width, height]")


MOST_SIDE = 65_535
"""Pixels: the longest side that a JPEG can have."""
