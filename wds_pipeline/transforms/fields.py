"""`rename`, `select`, `drop`, `repeat`: what fields a sample has, and how many there are of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_name, field_names, one_of, whole, wrong


class Rename:
    """Gives fields other names: `fields` is old → new. All at once, so that two can change places."""

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(self, fields: dict[str, str]) -> None:
        """Raises ValueError for names that are none, or given twice."""
        if not isinstance(fields, Mapping) or not fields:
            raise wrong("fields", fields, "old and new names, such as {jpeg: jpg}")
        self._names = {
            field_name("fields", old): field_name("fields", new) for old, new in fields.items()
        }
        if len(set(self._names.values())) < len(self._names):
            raise wrong("fields", fields, "each new name once")

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected where a new name is a field's that stays."""
        found: Sample = {}
        for name, value in sample.items():
            new = self._names.get(name, name)
            if new != name and new in sample and new not in self._names:
                raise Rejected(
                    f"{name} would become {new}, which the sample has already; drop one first"
                )
            found[new] = value
        return found


class Select:
    """Keeps only `fields`. A sample that lacks one of them is rejected, or goes on with those that it has
    if `missing` is ignore."""

    VERSION = "1"

    def __init__(self, fields: list[str], missing: str = "reject") -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._fields = field_names("fields", fields)
        self._reject = one_of("missing", missing, ("reject", "ignore")) == "reject"

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for a sample that lacks fields."""
        lacking = [each for each in self._fields if each not in sample]
        if lacking and (self._reject or len(lacking) == len(self._fields)):
            has = ", ".join(name for name in sample if not name.startswith("__")) or "none"
            raise Rejected(f"it lacks {', '.join(lacking)}; it has {has}")
        return {
            name: value
            for name, value in sample.items()
            if name in self._fields or name.startswith("__")
        }


class Drop:
    """Leaves out `fields`."""

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(self, fields: list[str]) -> None:
        """Raises ValueError for what is no list of fields."""
        self._fields = field_names("fields", fields)

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected if no field is left."""
        found = {name: value for name, value in sample.items() if name not in self._fields}
        if all(name.startswith("__") for name in found):
            raise Rejected(
                f"no field is left without {', '.join(self._fields)}; filter leaves samples out"
            )
        return found


class Repeat:
    """Each sample `copies` times, as `<key>-0`, `<key>-1`, …: what goes by the key after it, such as a random
    crop, makes another of each."""

    VERSION = "1"

    def __init__(self, copies: int) -> None:
        """Raises ValueError for what is no number of 1 or more."""
        self._copies = whole("copies", copies, 1, 10_000)

    def __call__(self, sample: Sample) -> Iterator[Sample]:
        digits = len(str(self._copies - 1))
        for number in range(self._copies):
            yield {**sample, "__key__": f"{sample['__key__']}-{number:0{digits}d}"}
