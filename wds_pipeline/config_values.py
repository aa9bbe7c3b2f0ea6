"""Kinds of values in a dataset's YAML file, and how each is checked."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    WithJsonSchema,
)

# Dagster looks closer; this tells a cron expression from prose.
_CRON = re.compile(
    r"@(hourly|daily|midnight|weekly|monthly|annually|yearly)|([\d*/,A-Z#L?-]+(\s+|$)){5}", re.I
)
_CALLABLE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def percent(value: object) -> object:
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError("expected a share such as 1% or 0.01") from None
    return value


def _size(value: object) -> object:
    # pydantic reads the beginning only: 1,5GB would be one byte.
    if isinstance(value, str) and not re.fullmatch(r"\d*\.?\d+\s*[A-Za-z]*", value.strip()):
        raise ValueError(f"found {value!r}; expected a size such as 256MB or 1GiB")
    return value


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _glob(value: str) -> str:
    if not value or value.startswith("/"):
        raise ValueError(f"{value!r}: expected a glob relative to source.url, such as **/*.jpg")
    for part in value.split("/"):
        if "**" in part and part != "**":
            raise ValueError(
                f"{value!r}: ** crosses folders and stands alone between slashes, as in **/*.jpg"
            )
    return value


def _cron(value: str) -> str:
    if not _CRON.fullmatch(value.strip()):
        raise ValueError(
            f"found {value!r}; expected a cron expression of five parts, such as "
            '"0 3 * * *" for each night at three'
        )
    return value


def _callable(path: str) -> str:
    if not _CALLABLE.fullmatch(path):
        raise ValueError(f"found {path!r}; expected package.module:function")
    return path


# The formats of `dataset.export`, one module each.
EXPORTS = (
    *("wids", "energon", "dali", "streaming_wds", "open_clip", "huggingface", "croissant"),
    *("urls", "sample_table"),
)


def _export(name: str) -> str:
    if name not in EXPORTS:
        raise ValueError(
            f"found {name!r}; expected one of {', '.join(EXPORTS)}{did_you_mean(name, EXPORTS)}"
        )
    return name


Size = Annotated[
    ByteSize,
    BeforeValidator(_size),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}], "examples": ["256MB"]}),
]
Share = Annotated[
    float,
    BeforeValidator(percent),
    Field(ge=0, le=1),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}], "examples": ["1%"]}),
]
Regex = Annotated[str, AfterValidator(_regex)]
Glob = Annotated[str, AfterValidator(_glob)]
Cron = Annotated[str, AfterValidator(_cron)]
Callable = Annotated[str, AfterValidator(_callable)]
ExportName = Annotated[str, AfterValidator(_export)]


def did_you_mean(found: str, known: Any) -> str:
    """`; did you mean …?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(found, [str(each) for each in known], n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


class Model(BaseModel):
    """A part of the file: unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
