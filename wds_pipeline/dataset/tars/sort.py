"""Samples in the order of their keys, or of a field's content. What has equal values keeps its order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.cat import write_all
from wds_pipeline.dataset.tars.inputs import find_inputs
from wds_pipeline.dataset.tars.outputs import open_output
from wds_pipeline.dataset.tars.places import Places
from wds_pipeline.dataset.tars.sample import Sample, content
from wds_pipeline.errors import DataError

KEY = "key"
_DIGITS = re.compile(r"([0-9]+)")
# Behind all that has a value; numbers come before texts.
_NUMBER, _TEXT, _NONE = 0, 1, 2
Value = tuple[int, Any]


@dataclass(frozen=True)
class Order:
    """What is sorted by: the key, or a field's content (`txt`), or a value in a json field
    (`json:size.width`).

    `numeric` takes texts as numbers; `natural` takes digits in a text by their value (a2 before a10).
    """

    by: str = KEY
    numeric: bool = False
    natural: bool = False
    reverse: bool = False

    def value(self, sample: Sample) -> Value:
        """What a sample is sorted by. Raises DataError for a content that is not what it should be."""
        if self.by == KEY:
            return self._of_text(sample.key, sample)
        field, _, path = self.by.partition(":")
        member = next((each for each in sample.members if each.field.lower() == field), None)
        if member is None:
            return _NONE, 0
        try:
            text = content(member.data).decode()
            found = _at(json.loads(text), path) if path else text
        except (ValueError, RecursionError) as error:
            kind = "json" if path else "UTF-8 text"
            raise DataError(
                f"{sample.where}: {sample.key}.{member.field}: expected {kind}: {error}; mend it, or sort by "
                "something else"
            ) from None
        if isinstance(found, str):
            return self._of_text(found if path else found.strip(), sample)
        if isinstance(found, bool | int | float):
            return (_NUMBER, found) if found == found else (_NONE, 0)
        return _NONE, 0

    def _of_text(self, text: str, sample: Sample) -> Value:
        if self.numeric:
            try:
                number = float(text) if not text.lstrip("+-").isdigit() else int(text)
            except ValueError:
                raise DataError(
                    f"{sample.where}: {sample.key}: found {text!r:.80} in {self.by}; expected a number; "
                    "leave --numeric out, or mend it"
                ) from None
            return (_NUMBER, number) if number == number else (_NONE, 0)
        if self.natural:
            return _TEXT, ([*map(_by_number, _DIGITS.split(text))], text)
        return _TEXT, text


def _by_number(part: str) -> tuple[int, str]:
    """Of digits, what sorts as their number does; texts and digits never meet, since they take turns."""
    digits = part.lstrip("0") if part[:1].isdigit() else ""
    return (len(digits), digits) if part[:1].isdigit() else (0, part)


def _at(value: Any, path: str) -> Any:
    """What a path of names and numbers, with dots between them, leads to; None if it leads nowhere."""
    for part in path.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def sort(
    names: Sequence[str],
    output: str,
    order: Order | None = None,
    *,
    duplicates: str = "error",
    keep_whole: bool = False,
    force: bool = False,
) -> Account:
    """Writes the samples of all tars, sorted, into one. Samples without a value come last.

    With `duplicates` also `merge`: members that are not next to each other become one sample. Arguments and
    errors as of `cat`. Memory: the keys and what is sorted by, some 300 bytes a sample; the room
    of the input in a temporary file, if it comes from a pipe or a store.
    """
    order = order or Order()
    account = Account()
    inputs = find_inputs(names)
    places = Places(inputs)
    with open_output(output, inputs, force) as tar:
        read = places.read(account, duplicates=duplicates, keep_whole=keep_whole)
        values = [order.value(sample) for sample in read]
        for first, more in places.parts.items():
            values[first] = min(values[number] for number in (first, *more))
        parts = {number for some in places.parts.values() for number in some}
        numbers = [number for number in range(len(values)) if number not in parts]
        for number in numbers:
            if values[number][0] == _NONE:
                account.note(f"come last, without a value for {order.by}", places.keys[number])
        write_all(places.samples(_sorted(numbers, values, order.reverse)), tar, account)
    account.bytes = tar.size
    return account


def _sorted(numbers: Sequence[int], values: Sequence[Value], reverse: bool) -> list[int]:
    """Numbers in the order of their values; equal ones, also in reverse, as they were."""
    there = [n for n in numbers if values[n][0] != _NONE]
    lacking = [n for n in numbers if values[n][0] == _NONE]
    return sorted(there, key=values.__getitem__, reverse=reverse) + lacking
