"""What is in a folder: which fields, which rule makes samples of its files, which configuration fits.

`discover` looks and decides; `discover_yaml` writes it down with the reasons.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wds_pipeline.config import DatasetConfig, SourceConfig
from wds_pipeline.dataset import discover_fields
from wds_pipeline.dataset.discover_fields import FoundField
from wds_pipeline.dataset.discover_folders import ParallelFolders, find_parallel_folders
from wds_pipeline.dataset.naming import assign
from wds_pipeline.dataset.plan import Plan, make_plan
from wds_pipeline.dataset.preview import Reason, reasons
from wds_pipeline.dataset.scan import Listing, scan
from wds_pipeline.dataset.settle import Progress
from wds_pipeline.errors import DataError
from wds_pipeline.storage import Storage

_SPLITS = {
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval",
}  # fmt: skip
_NEARLY_ALL = 0.99
# Shares that max_quarantined may be: so that what is seen now leaves room for broken content.
_BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0)
_ROOM = 0.6

_SHARDS = 64
_SIZES = (16, 32, 64, 128, 256)  # MB
_PER_SHARD = 4  # samples of the largest size


@dataclass
class Discovery:
    """What was found in a folder, and `values`: the configuration that fits it."""

    values: dict[str, Any]
    config: DatasetConfig
    listing: Listing
    plan: Plan
    fields: list[FoundField]
    ignored: dict[str, int]
    dotted: list[str]
    dotted_count: int
    folders: ParallelFolders | None
    split_folders: list[str]
    groups: int
    quarantined: list[Reason] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many samples the source has."""
        return len(self.plan.samples)


def discover(
    source: Storage,
    values: dict[str, Any],
    progress: Progress | None = None,
) -> Discovery:
    """Scans a folder and proposes how to make a dataset of it.

    `values` are the parts of the configuration that are known: name, source, destination. Raises
    SourceError, or DataError when no file can be part of a sample.
    """

    def count(seen: int) -> None:
        if progress is not None:
            progress("scan", seen, 0)

    listing = scan(source, SourceConfig(url=source.url), values["name"], count)
    paths = listing.files.filter(listing.files["problem"].is_null())["path"].to_pylist()
    if not paths:
        raise DataError(f"{values['name']}: {source.url}: no file there has a name in UTF-8")
    known, dotted = discover_fields.extensions(paths)
    if not known:
        raise DataError(
            f"{values['name']}: {source.url}: no file there has an extension; expected files such "
            "as a/0001.jpg"
        )
    naming = discover_fields.naming_rule(paths, known, dotted)
    named = discover_fields.named(paths, known, naming)
    folders = find_parallel_folders([(key, discover_fields.class_of(name)) for key, name in named])
    if folders is not None:
        rewrite = re.compile(folders.pattern)
        named = [(rewrite.sub(folders.replace, key), name) for key, name in named]
    found = discover_fields.fields(named)
    keys = {key for key, name in named if any(name in each.extensions for each in found)}
    values = dict(values)
    values["samples"] = _samples(found, len(keys), naming, folders)
    split_folders = _split_folders(keys)
    values["split"] = _split(keys, split_folders)
    plan, values = _fitted(listing, values)
    used = {each for one in found for each in one.extensions}
    return Discovery(
        values=values,
        config=DatasetConfig.model_validate(values),
        listing=listing,
        plan=plan,
        fields=found,
        ignored=dict(Counter(name for _, name in named if name not in used).most_common()),
        dotted=dotted[:3],
        dotted_count=len(dotted),
        folders=folders,
        split_folders=split_folders,
        groups=len({key.partition("/")[0] for key in keys if "/" in key}),
        quarantined=reasons(plan.quarantine),
    )


def shard_megabytes(total: int, largest: int) -> int:
    """A shard's size in MB, for a source of `total` bytes whose largest sample has `largest`.

    The smallest power of two that keeps the number of shards at 64 or below, so that 8 processes
    with 8 workers each find one; but at least 16 MB, below which opening a shard costs more than
    reading it, and at most 256 MB, so that an edit does not rewrite gigabytes. Larger only where a
    shard would hold fewer than 4 of the largest sample.
    """
    size = next((each for each in _SIZES if total <= each * 1_000_000 * _SHARDS), _SIZES[-1])
    while size < 1024 and largest * _PER_SHARD > size * 1_000_000:
        size *= 2
    return size


def _samples(
    found: Sequence[FoundField], total: int, naming: str, folders: ParallelFolders | None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if naming != "strict":
        values["naming"] = naming
    if folders is not None:
        values["key"] = {"pattern": folders.pattern, "replace": folders.replace}
    values["fields"] = {each.name: _listed(each) for each in found}
    values["required"] = [each.name for each in found if each.samples >= _NEARLY_ALL * total]
    return values


def _listed(found: FoundField) -> list[str]:
    """The field's extensions; jpeg beside jpg also where there is none yet."""
    more = ["jpg", "jpeg"] if found.name == "jpg" else [found.name]
    return list(dict.fromkeys([*more, *found.extensions]))


def _split_folders(keys: set[str]) -> list[str]:
    """The first folders, if (nearly) all samples are in some that are named like splits."""
    tops = Counter(key.partition("/")[0] for key in keys if "/" in key)
    splits = [each for each in tops if each.lower() in _SPLITS]
    inside = sum(tops[each] for each in splits)
    if len(splits) < 2 or inside < _NEARLY_ALL * len(keys) or set(splits) != set(tops):
        return []
    return sorted(splits, key=lambda each: -tops[each])


def _split(keys: set[str], split_folders: Sequence[str]) -> dict[str, Any]:
    if not split_folders:
        return {"train": 0.95, "val": 0.05}
    values: dict[str, Any] = {"by": "directory"}
    if any("/" not in key for key in keys):
        values["default"] = split_folders[0]
    return values


def _fitted(listing: Listing, values: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Plans with these values, and completes them by what the plan shows."""
    lenient = {**values["samples"], "max_quarantined": 1.0}
    config = DatasetConfig.model_validate({**values, "samples": lenient})
    plan = make_plan(assign(listing.files, config.samples), config)
    left_out = plan.quarantine.num_rows / len(plan.samples)
    budget = next((each for each in _BUDGETS if left_out <= _ROOM * each), 1.0)
    more: dict[str, Any] = {} if budget == _BUDGETS[0] else {"max_quarantined": f"{budget:.0%}"}
    sizes = plan.ledger["bytes"].to_numpy()
    size = shard_megabytes(int(sizes.sum()), int(sizes.max()))
    values = {
        **values,
        "samples": {**values["samples"], **more},
        "shards": {"max_bytes": f"{size}MB"},
    }
    config = DatasetConfig.model_validate(values)
    return make_plan(plan.inventory, config), values
