"""From a sample to its parts: the texts and images that its row is made of, in order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from wds_pipeline.tokens.parameters import Parameters
from wds_pipeline.transforms.api import Rejected, Sample


@dataclass
class Part:
    """A text, or an image, of a sample: its content, and later its ids."""

    kind: str
    field: str
    content: Any
    ids: Any = None


@dataclass
class Row:
    """What becomes one row: a sample's key, its parts, its class."""

    key: str
    parts: list[Part] = field(default_factory=list)
    label: int | None = None

    def of(self, kind: str) -> Iterator[Part]:
        return (part for part in self.parts if part.kind == kind)


def row_of(sample: Sample, parameters: Parameters) -> Row:
    """The parts of a sample. Raises Rejected when it lacks one, or has one that is not readable."""
    row = Row(sample["__key__"])
    if parameters.order == "name" and parameters.layout == "interleaved":
        row.parts = list(_by_name(sample, parameters))
    else:
        kinds = parameters.order if parameters.layout == "interleaved" else ("text", "image")
        for kind in kinds:
            rules = getattr(parameters, kind)
            if rules is not None:
                name = _first(sample, rules.field)
                row.parts.append(_part(kind, name, sample[name]))
    if parameters.layout == "image_class":
        name = _first(sample, parameters.label.field)
        row.label = _label(name, sample[name], parameters.label.classes)
    return row


def _by_name(sample: Sample, parameters: Parameters) -> Iterator[Part]:
    assert parameters.text is not None and parameters.image is not None
    found = False
    for name in sorted(sample, key=_natural):
        for kind, patterns in (("text", parameters.text.field), ("image", parameters.image.field)):
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                yield _part(kind, name, sample[name])
                found = True
                break
    if not found:
        raise Rejected(
            f"no field matches {_listed((*parameters.text.field, *parameters.image.field))}; it has "
            f"{_listed(_fields(sample))}"
        )


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts `2.txt` before `10.jpg`."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(each)) if each.isdecimal() else (1, each) for each in parts if each]


def _first(sample: Sample, names: tuple[str, ...]) -> str:
    for name in names:
        if sample.get(name) is not None:
            return name
    raise Rejected(f"no field {_listed(names)}; it has {_listed(_fields(sample))}")


def _fields(sample: Sample) -> list[str]:
    return [name for name in sample if not name.startswith("__")]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _part(kind: str, name: str, content: Any) -> Part:
    if kind == "text" and not isinstance(content, str):
        try:
            content = bytes(content).decode()
        except UnicodeDecodeError as error:
            raise Rejected(f"{name}: not UTF-8: {error.reason} at byte {error.start}") from None
    return Part(kind, name, content)


def _label(name: str, content: Any, classes: int | None) -> int:
    text = content if isinstance(content, str) else bytes(content).decode("ascii", "replace")
    most = 2**31 if classes is None else classes
    if not re.fullmatch(r"\s*\d+\s*", text, re.ASCII) or int(text) >= most:
        raise Rejected(f"{name}: found {text[:40]!r}; expected a class from 0 to {most - 1:,}")
    return int(text)
