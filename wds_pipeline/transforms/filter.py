"""`filter`: leaves out samples by what their fields are like. Of pictures only the header is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.content_image import formats_of
from wds_pipeline.dataset.query import KEY, Query
from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_names, number, wrong
from wds_pipeline.transforms.picture import open_header
from wds_pipeline.transforms.values import text_of

_WORDS = re.compile(r"\S+")
_ANY_SIZE = 1 << 62  # nothing is decoded


def _size(data: bytes, field: str) -> tuple[int, int]:
    return open_header(data, field, _ANY_SIZE).size


def _aspect(data: bytes, field: str) -> float:
    width, height = _size(data, field)
    return width / height


def _pixels(data: bytes, field: str) -> int:
    width, height = _size(data, field)
    return width * height


_MEASURES: Mapping[str, Callable[[bytes, str], float]] = {
    "width": lambda data, field: _size(data, field)[0],
    "height": lambda data, field: _size(data, field)[1],
    "aspect": _aspect,
    "pixels": _pixels,
    "bytes": lambda data, field: len(data),
    "chars": lambda data, field: len(text_of(data, field)),
    "words": lambda data, field: sum(1 for _ in _WORDS.finditer(text_of(data, field))),
}
_PICTURES = ("width", "height", "aspect", "pixels")
_TYPES = {
    "size": pa.int64(), "width": pa.int64(), "height": pa.int64(), "chars": pa.int64(), "format": pa.string(),
}  # fmt: skip


class Filter:
    """Keeps samples that all of it is true of; the others are left out, and counted.

    With `fields`: each of these that a sample has is between `min_…` and `max_…`, both included, of width
    and height (pixels, as stored), aspect (width / height), pixels, bytes, chars (Unicode code points) and
    words (between white space). Without `fields`, for all samples: they have the fields `has`, none of
    `lacks`, and the query `where` is true, such as `jpg.width >= 512 and has("txt")`, in which there are
    `key` and of each field size, width, height, chars and format.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str] | None = None,
        has: list[str] | None = None,
        lacks: list[str] | None = None,
        where: str | None = None,
        **limits: float,
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        for name in limits:
            _check_limit(name)
        general = has is not None or lacks is not None or where is not None
        if (fields is not None) != bool(limits) or general == bool(limits):
            given = {"fields": fields, **limits, "has": has, "lacks": lacks, "where": where}
            found = ", ".join(name for name, value in given.items() if value is not None)
            raise ConfigError(
                f"found {found or 'nothing'}; expected fields with limits such as min_width, or has, lacks "
                "and where without them; for both write two filters"
            )
        self._fields = () if fields is None else field_names("fields", fields)
        self._limits = _limits(limits, self._fields)
        self._has = () if has is None else field_names("has", has)
        self._lacks = () if lacks is None else field_names("lacks", lacks)
        self._where = None if where is None else _Where(where)

    def __call__(self, sample: Sample) -> Sample | None:
        """Raises Rejected for what cannot be measured."""
        if not all(each in sample for each in self._has) or any(
            each in sample for each in self._lacks
        ):
            return None
        if self._where is not None and not self._where.true_of(sample):
            return None
        for field in self._fields:
            if field in sample:
                for measure, (least, most) in self._limits.items():
                    if not least <= _MEASURES[measure](sample[field], field) <= most:
                        return None
        return sample


def _check_limit(name: str) -> None:
    bound, _, measure = name.partition("_")
    if bound not in ("min", "max") or measure not in _MEASURES:
        known = ["fields", "has", "lacks", "where"]
        known += [f"{each}_{measure}" for measure in _MEASURES for each in ("min", "max")]
        raise ConfigError(
            f"unknown parameter {name!r}; expected one of {', '.join(known)}{did_you_mean(name, known)}"
        )


def _limits(given: Mapping[str, float], fields: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for name, value in given.items():
        measure = name[4:]
        for field in fields if measure in _PICTURES else ():
            if not formats_of(field.rpartition(".")[2]):
                raise wrong("fields", field, f"fields of pictures with {name}")
        least, most = found.get(measure, (0.0, float("inf")))
        value = number(name, value, above=-1)
        found[measure] = (value, most) if name.startswith("min_") else (least, value)
    for measure, (least, most) in found.items():
        if least > most:
            raise wrong(f"min_{measure}", least, f"at most max_{measure}, {most:g}")
    return found


class _Where:
    """A query, asked of one sample after the other."""

    def __init__(self, text: str) -> None:
        try:
            query = Query(str(text), "where")
        except VersionError as error:
            raise ConfigError(str(error)) from None
        self._expression = query.expression
        self._columns = sorted(query.columns)
        types = {}
        for name in self._columns:
            column = name.rpartition(".")[2]
            if name != KEY and column not in _TYPES:
                raise wrong("where", text, f"of fields {', '.join(_TYPES)}: {column} is of reports")
            types[name] = pa.string() if name == KEY else _TYPES[column]
        self._schema = pa.schema(types)
        try:
            self._ask(dict.fromkeys(self._columns))
        except pa.ArrowException as error:
            raise wrong("where", text, f"values of the columns' types ({error})") from None

    def _ask(self, row: dict[str, Any]) -> bool:
        table = pa.Table.from_pylist([row], self._schema)
        return table.filter(self._expression).num_rows > 0

    def true_of(self, sample: Sample) -> bool:
        """Whether it is true of a sample; what is not known makes it false. Raises Rejected."""
        row: dict[str, Any] = {}
        for name in self._columns:
            field, _, column = name.rpartition(".")
            if name == KEY:
                row[name] = sample["__key__"]
            elif field in sample:
                row[name] = _fact(sample[field], field, column)
            else:
                row[name] = None
        return self._ask(row)


def _fact(data: bytes, field: str, column: str) -> Any:
    if column == "size":
        return len(data)
    picture = bool(formats_of(field.rpartition(".")[2]))
    if column == "chars":
        return None if picture else len(text_of(data, field))
    if not picture:
        raise Rejected(f"{field}: {column} is asked of it; expected a picture")
    header = open_header(data, field, _ANY_SIZE)
    return {"width": header.width, "height": header.height, "format": header.format}[column]
