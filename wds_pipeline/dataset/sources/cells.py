"""A table's cells as the bytes of fields, whatever their types.

Text is UTF-8, bytes stay as they are, whole numbers are digits, lists and structs are json. In a field that
holds a whole number (`cls`, `id`, … in WebDataset's table) 3.0 is 3 and true is 1.
"""

from __future__ import annotations

import json
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from wds_pipeline.dataset import content

_AS_TEXT = (date, time, timedelta, Decimal)  # a datetime is a date
_IMAGE = {"bytes", "path"}  # the struct of Hugging Face's Image and Audio


def holds_number(field: str) -> bool:
    """Whether readers take a field's content for a whole number."""
    return content.kind((field,)) == "number"


def cell(value: Any, number: bool) -> bytes | None:
    """One value as a field's bytes; None for null. Raises TypeError for bytes within lists or structs."""
    if isinstance(value, str):
        return value.encode(
            "utf-8", "surrogatepass"
        )  # what is not UTF-8 then is told by verification
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return str(int(value)).encode() if number else json.dumps(value).encode()
    if isinstance(value, int):
        return str(value).encode()
    if isinstance(value, float):
        if number and value.is_integer():
            return str(int(value)).encode()
        return json.dumps(value).encode()
    if isinstance(value, _AS_TEXT):
        return str(value).encode()
    return json.dumps(value, ensure_ascii=False, default=_inner).encode("utf-8", "surrogatepass")


def _inner(value: Any) -> Any:
    if isinstance(value, _AS_TEXT):
        return str(value)
    raise TypeError(f"{type(value).__name__} within a list or struct")


def to_binary(array: pa.Array, number: bool) -> pa.Array:
    """A column's cells as bytes (large_binary). Raises TypeError, as `cell`."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pt.is_dictionary(kind):
        return to_binary(array.cast(kind.value_type), number)
    if pt.is_null(kind):
        return pa.nulls(len(array), pa.large_binary())
    if pt.is_integer(kind) or (pt.is_boolean(kind) and not number):
        return array.cast(pa.large_string()).cast(pa.large_binary())
    if pt.is_fixed_size_binary(kind):
        return array.cast(pa.binary()).cast(pa.large_binary())
    if (
        pt.is_string(kind)
        or pt.is_large_string(kind)
        or pt.is_binary(kind)
        or pt.is_large_binary(kind)
    ):
        return array.cast(pa.large_binary())
    return pa.array([cell(each, number) for each in array.to_pylist()], pa.large_binary())


def is_image(kind: pa.DataType) -> bool:
    """Whether a column is a struct of `bytes` and `path`, as Hugging Face stores images and sounds."""
    return bool(pt.is_struct(kind)) and {each.name for each in kind} == _IMAGE


def split_image(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The bytes of such a struct, and the paths of those that have none."""
    data, path = (to_binary(pc.struct_field(array, [name]), False) for name in ("bytes", "path"))
    return data, pc.if_else(pc.is_valid(data), pa.scalar(None, pa.large_binary()), path)
