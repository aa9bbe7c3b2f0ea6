"""What the UI says of a dataset's transforms, whether or not they can be run here.

Definitions are loaded by every process of Dagster, so nothing of a user's is imported for them: a module
that is missing, or takes its time, is its own dataset's trouble when that is built.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.dataset.plan import RECIPE_FORMAT
from wds_pipeline.transforms import registry

_KINDS = 2  # beside that of the asset: the UI shows three


def code_version(config: DatasetConfig) -> str:
    """What `shards` are made by: a shard of another one is shown as out of date, "code version changed"."""
    if not config.transforms:
        return RECIPE_FORMAT
    parts = [_declared(each) for each in config.transforms]
    return f"{RECIPE_FORMAT}+{xxhash.xxh3_64_hexdigest(chr(0).join(parts).encode())}"


def _declared(transform: TransformConfig) -> str:
    try:
        return registry.declared(transform)
    except Exception as error:  # a package of the user's may raise anything; the build says what
        return f"not to be had: {type(error).__name__}"


def names(config: DatasetConfig) -> list[str]:
    """The transforms, as the file calls them."""
    return [each.name for each in config.transforms]


def kinds(config: DatasetConfig, own: str) -> set[str]:
    """The kinds of an asset that transforms make, beside its own one."""
    found = list(dict.fromkeys(map(_kind, names(config))))
    if len(found) > _KINDS:
        found = [found[0], f"and_{len(found) - 1}_more"]
    return {own, *found}


def _kind(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", name.rpartition(":")[2].lower())[:40]


def sentence(config: DatasetConfig) -> str:
    """What is done to the samples, for a description; empty where nothing is."""
    found = names(config)
    return f" Its samples are made by {listed(found)}." if found else ""


def listed(found: Sequence[str]) -> str:
    """`resize, then clean`, as Markdown."""
    return ", then ".join(f"`{each}`" for each in found)
