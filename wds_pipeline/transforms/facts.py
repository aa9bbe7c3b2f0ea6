"""`set`, `extract`, `to_json`: text and json fields made of others."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_name, field_names, one_of, switch, wrong
from wds_pipeline.transforms.values import (
    Nothing,
    Path,
    at,
    bytes_of,
    is_json,
    json_of,
    path_of,
    text_of,
    value_of,
)

_KEY = "key"


class Set:
    """Sets fields: `fields` is name → value. In texts `{key}` stands for the sample's key, `{txt}` for the
    content of that field, `{json:author.name}` for what is there in its json; `{{` is a brace.

    Of a json field the value may be an object or a list, with such texts in it. What was in a field is
    replaced. All are made of the sample as it came.
    """

    VERSION = "1"

    def __init__(self, fields: dict[str, Any]) -> None:
        """Raises ValueError for what is no field, or a text with a brace that is not closed."""
        if not isinstance(fields, Mapping) or not fields:
            raise wrong(
                "fields", fields, 'names and values, such as {source: web, caption.txt: "{txt}"}'
            )
        self._fields = {
            field_name("fields", name): _parsed(value) for name, value in fields.items()
        }

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected where a text speaks of what a sample has not."""
        made = {
            name: bytes_of(_filled(value, sample), name) for name, value in self._fields.items()
        }
        return {**sample, **made}


class _Text:
    """A text with fields in braces."""

    def __init__(self, text: str) -> None:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"fields: found {text!r}: {error}; {{{{ stands for a brace") from None
        self._parts: list[tuple[str, str | None, Path]] = []
        for before, field, path, conversion in parts:
            if conversion or field == "":
                raise wrong("fields", text, "in braces key, a field, or field:path of its json")
            if field is not None and field != _KEY:
                field_name("fields", field)
            self._parts.append((before, field, path_of("fields", path) if path else ()))

    def fill(self, sample: Sample) -> str:
        return "".join(before + _told(field, path, sample) for before, field, path in self._parts)


def _told(field: str | None, path: Path, sample: Sample) -> str:
    if field is None:
        return ""
    if field == _KEY:
        return str(sample["__key__"])
    if field not in sample:
        raise Rejected(f"it lacks {field}, which is to be set into a text")
    if not path:
        return text_of(sample[field], field)
    try:
        return str(bytes_of(at(json_of(sample[field], field), path), ""), "utf-8")
    except Nothing as nothing:
        raise Rejected(f"{field}: {nothing}") from None


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        return _Text(value)
    if isinstance(value, Mapping):
        # sorted: the order in which a file names things is not part of a transform's digest
        return {str(name): _parsed(value[name]) for name in sorted(value)}
    if isinstance(value, list | tuple):
        return [_parsed(each) for each in value]
    return value


def _filled(value: Any, sample: Sample) -> Any:
    if isinstance(value, _Text):
        return value.fill(sample)
    if isinstance(value, dict):
        return {name: _filled(each, sample) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, sample) for each in value]
    return value


class Extract:
    """Fields out of a json field: `paths` is new field → path in it (`author.name`, `tags.0`).

    A text becomes the field's content as it is, all else json. `fields` are where to look: the first that a
    sample has. Where there is nothing, or null, the sample is rejected, or goes without if `missing` says
    ignore.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self, paths: dict[str, Any], fields: list[str] | None = None, missing: str = "reject"
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._fields = field_names("fields", ["json"] if fields is None else fields)
        if not isinstance(paths, Mapping) or not paths:
            raise wrong("paths", paths, "new fields and paths, such as {caption.txt: info.caption}")
        self._paths = {
            field_name("paths", to): path_of("paths", path) for to, path in paths.items()
        }
        self._reject = one_of("missing", missing, ("reject", "ignore")) == "reject"

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no json, and where there is nothing."""
        field = next((each for each in self._fields if each in sample), None)
        if field is None:
            return sample
        facts = json_of(sample[field], field)
        for to, path in self._paths.items():
            try:
                value = at(facts, path)
                if value is None:
                    raise Nothing(f"null at {'.'.join(path)}")
            except Nothing as nothing:
                if self._reject:
                    raise Rejected(f"{field}: {nothing} (missing: ignore goes without)") from None
            else:
                sample[to] = bytes_of(value, to)
        return sample


class ToJson:
    """Gathers `fields` into the json field `to`: by their names, json as it is, cls and its like as
    numbers, all else as text; fields that a sample lacks are left out.

    What `to` holds already stays. `keep` is whether the fields themselves stay.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(self, fields: list[str], to: str = "json", keep: bool = False) -> None:
        """Raises ValueError for what is not possible."""
        self._fields = field_names("fields", fields)
        self._to = field_name("to", to)
        if not is_json(to) or to in fields:
            raise wrong("to", to, "a json field beside fields, such as json or info.json")
        self._keep = switch("keep", keep)

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no text, number or json."""
        facts = json_of(sample[self._to], self._to) if self._to in sample else {}
        if not isinstance(facts, dict):
            raise Rejected(
                f"{self._to}: found {type(facts).__name__}; expected an object to add to"
            )
        for field in self._fields:
            if field in sample:
                facts[field] = value_of(sample[field], field)
                if not self._keep:
                    del sample[field]
        return {**sample, self._to: bytes_of(facts, self._to)}
