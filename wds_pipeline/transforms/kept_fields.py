"""Which fields of a sample go with each of the many that are made of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from wds_pipeline.transforms.api import Sample
from wds_pipeline.transforms.parameters import field_names, wrong

Keep = str | tuple[str, ...]


def check_keep(found: Any) -> Keep:
    """`all`, `none`, or a list of fields. Raises ValueError."""
    if found in ("all", "none"):
        return str(found)
    if isinstance(found, str) or not isinstance(found, list | tuple):
        raise wrong("keep", found, "all, none, or a list of fields, such as [json]")
    return field_names("keep", found)


def kept(sample: Sample, keep: Keep, without: Collection[str]) -> Sample:
    """The fields that stay, without those that are taken apart."""
    return {
        name: value
        for name, value in sample.items()
        if not name.startswith("__")
        and name not in without
        and (keep == "all" or (keep != "none" and name in keep))
    }
