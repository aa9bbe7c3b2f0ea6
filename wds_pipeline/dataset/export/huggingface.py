"""A dataset card for Hugging Face, `README.md`, and `data_files.json` for `load_dataset("webdataset", …)`.

With brace-able names the card is linked to them (`into_view` of the package): that folder is then a
dataset repository, which `load_dataset(folder)` reads and `hf upload` takes as it is.
"""

from __future__ import annotations

import json

import yaml

from wds_pipeline.dataset.export.base import ANY, Export
from wds_pipeline.dataset.wording import human_bytes

_SIZES = (
    *((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M")),
    *((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**12, "1B<n<10B")),
)


def write(export: Export) -> None:
    """Writes them. Raises DataError, DestinationError."""
    export.refuse_misread(ANY)
    contents = export.contents
    files = {
        split: [export.refer(shard.path) for shard in shards]
        for split, shards in contents.splits.items()
    }
    export.put("data_files.json", json.dumps(files, indent=1) + "\n")
    export.put("README.md", _card(export))


def _card(export: Export) -> str:
    contents = export.contents
    size = next((name for most, name in _SIZES if contents.samples < most), "n>1T")
    paths = {split: [f"{split}-*.tar"] for split in contents.splits}
    if contents.in_place:
        paths = {split: [each.path for each in part] for split, part in contents.splits.items()}
    head = {
        "pretty_name": contents.dataset,
        "tags": ["webdataset"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path} for split, path in paths.items()],
            }
        ],
    }
    number = f", version {contents.version}" if contents.version is not None else ""
    rows = "".join(
        f"| {split} | {len(part):,} | {sum(each.samples for each in part):,} "
        f"| {human_bytes(sum(each.bytes for each in part))} |\n"
        for split, part in contents.splits.items()
    )
    about = f"\n{contents.description}\n" if contents.description else ""
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"
        f"# {contents.dataset}\n{about}\n"
        f"WebDataset shards{number}, made {contents.created}; digest of the content: `{contents.digest}`.\n\n"
        f"| split | shards | samples | size |\n|---|---:|---:|---:|\n{rows}"
    )
