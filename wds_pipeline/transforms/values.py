"""A field's content as a value, by its extension, and back; paths into json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.parameters import wrong

_JSON = ("json", "jsn")
_NUMBERS = ("cls", "cls2", "index", "inx", "id", "count")
Path = tuple[str, ...]


def is_json(field: str) -> bool:
    """Whether a field's name says that it holds json."""
    return field.rpartition(".")[2] in _JSON


def text_of(data: bytes, field: str) -> str:
    """A field as text. Raises Rejected."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise Rejected(f"{field}: not UTF-8 text: byte {error.start:,}: {error.reason}") from error


def json_of(data: bytes, field: str) -> Any:
    """A field's json. Raises Rejected."""
    try:
        return json.loads(text_of(data, field))
    except (ValueError, RecursionError) as error:
        raise Rejected(f"{field}: no json: {error}") from error


def value_of(data: bytes, field: str) -> Any:
    """An object of json, a whole number of cls and its like, else text. Raises Rejected."""
    if is_json(field):
        return json_of(data, field)
    text = text_of(data, field)
    if field.rpartition(".")[2] in _NUMBERS:
        try:
            return int(text)
        except ValueError:
            raise Rejected(f"{field}: found {text!r:.40}; expected a whole number") from None
    return text


def bytes_of(value: Any, field: str) -> bytes:
    """A value as a field's content: json where its name says so; text as it is; else json on one line."""
    if isinstance(value, str) and not is_json(field):
        return value.encode()
    return json.dumps(value, ensure_ascii=False).encode()


def path_of(name: str, found: Any) -> Path:
    """`author.name` or [author, name] as a path; numbers count in lists from 0. Raises ValueError."""
    parts = found.split(".") if isinstance(found, str) else found
    if not isinstance(parts, Sequence) or not parts or not all(
        isinstance(each, str | int) and not isinstance(each, bool) and each != "" for each in parts
    ):  # fmt: skip
        raise wrong(name, found, "a path such as author.name, or [author, name]")
    return tuple(str(each) for each in parts)


class Nothing(Exception):
    """There is nothing at a path; says where it ends."""


def at(value: Any, path: Path) -> Any:
    """What is at a path. Raises Nothing."""
    for place, part in enumerate(path):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise Nothing(
                f"nothing at {'.'.join(path[: place + 1])}; there is {there or 'nothing'}"[:200]
            )
    return value
