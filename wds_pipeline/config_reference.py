"""`docs/config.md`, written from the models: `python -m wds_pipeline.config_reference > docs/config.md`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_values import Share, Size

_HEAD = """# Configuration

One dataset is one YAML file in `datasets/`, or in the folder that `WDS_PIPELINE_DATASETS` names.
`wds-pipeline init SOURCE DESTINATION` writes one for a folder; `wds-pipeline schema` prints the JSON
schema, with which editors complete and check the file.

`'${NAME}'` (in quotes) stands for an environment variable: its value is used, and never shown or
stored. Unknown keys are errors. Sizes are written as `256MB` or `1GiB`, shares as `1%` or `0.01`.

This page is made from the program (`python -m wds_pipeline.config_reference > docs/config.md`).
"""


def render() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *_section("Top level", DatasetConfig, "", {})]) + "\n"


def _section(
    title: str, model: type[BaseModel], prefix: str, seen: dict[type[BaseModel], str]
) -> Iterator[str]:
    """A model's keys, and those of the models in it; one that was described before is pointed to."""
    yield f"## {title}\n"
    if model is not DatasetConfig and model.__doc__:
        yield " ".join(model.__doc__.split()) + "\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    nested = []
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        if inner is not None:
            path = seen.get(inner, f"{prefix}{name}")
            if inner not in seen:
                seen[inner] = path
                nested.append((f"`{path}`", inner, f"{path}."))
            first = " ".join((inner.__doc__ or "").split()).partition(". ")[0].rstrip(".")
            anchor = path.replace(".", "")
            kind = _kind_of_keys(info)
            yield f"| [`{prefix}{name}`](#{anchor}) | {kind} | {_default(info)} | {first}. |"
            continue
        meaning = " ".join((info.description or "").split()).replace("|", "\\|")
        shown = "a split's name" if (prefix, name) == ("split.", "ratios") else f"{prefix}{name}"
        shown = f"`{shown}`" if "'" not in shown else shown
        yield f"| {shown} | {_type(info)} | {_default(info)} | {meaning} |"
    yield ""
    for heading, inner, path in nested:
        yield from _section(heading, inner, path, seen)


def _kind_of_keys(info: FieldInfo) -> str:
    text = str(info.annotation)
    if "list[" in text:
        return "list of keys, see below"
    return "map of keys, see below" if "dict[" in text else "keys, see below"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    found = [_model_in(each) for each in get_args(annotation)]
    return next((each for each in found if each is not None), None)


def _type(info: FieldInfo) -> str:
    annotation = info.annotation
    if annotation is ByteSize:
        return "size"
    if annotation is float and info.metadata and Share.__metadata__[0] in info.metadata:  # type: ignore[attr-defined]
        return "share"
    return _plain(annotation)


def _plain(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in arguments)
    if origin is Annotated:
        return "size" if annotation == Size else _plain(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_plain(each) for each in arguments if each is not type(None))
    if origin is list:
        return f"list of {_plain(arguments[0])}"
    if origin is dict:
        return "map" if arguments[1] is str else f"map of {_plain(arguments[1])}"
    return {str: "text", int: "whole number", float: "number", bool: "yes or no"}.get(
        annotation, str(annotation)
    )


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if value is None or isinstance(value, BaseModel) or value in ("", {}, []):
        return ""
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(decimal=True)}`"
    return (
        f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}`"
    )


if __name__ == "__main__":
    print(render(), end="")
