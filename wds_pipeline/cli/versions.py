"""`wds-pipeline versions`: what is published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_destination, open_version
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.version import Manifest


@click.command("versions")
@dataset_argument
@click.option("--summary", "in_full", is_flag=True, help="The newest version, in some detail.")
@json_option
def command(config: DatasetConfig, in_full: bool, as_json: bool) -> None:
    """List the published versions, the newest first."""
    if in_full and not as_json:
        from wds_pipeline.dataset.summary import summary

        storage, newest = open_version(config, None)
        click.echo(summary(config, storage, newest), nl=False)
        return
    rows = [_values(manifest) for manifest in _manifests(config)]
    if as_json:
        print_json(rows[:1] if in_full else rows)
    elif rows:
        _print(rows)
    else:
        click.echo(f"no version yet; `wds-pipeline build {config.name}` makes the first")


def _manifests(config: DatasetConfig) -> list[Manifest]:
    from wds_pipeline.dataset import version

    storage = open_destination(config)
    numbers = reversed(version.list_versions(storage))
    return [version.read(storage, number, config.name) for number in numbers]


def _values(manifest: Manifest) -> dict[str, Any]:
    # A restored version's shards are of the version that it restores, and older ones.
    new = [shard for shard in manifest.shards if shard.since == manifest.version]
    return {
        "version": manifest.version,
        "created": manifest.created,
        "samples": manifest.total_samples,
        "shards": len(manifest.shards),
        "bytes": manifest.total_bytes,
        "quarantined": sum(manifest.quarantined.values()),
        "splits": {name: split.model_dump() for name, split in manifest.splits.items()},
        "parent": manifest.parent,
        "restored_from": manifest.restored_from,
        "changed": manifest.changes,
        "new_shards": len(new),
        "new_bytes": sum(shard.bytes for shard in new),
        "passed": manifest.verification.get("passed"),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import human_bytes

    print_table(
        ("version", "created", "samples", "shards", "bytes", "quarantined", "what changed"),
        [
            (
                row["version"],
                row["created"].replace("T", " ").replace("+00:00", " UTC"),
                f"{row['samples']:,}",
                f"{row['shards']:,}",
                human_bytes(row["bytes"]),
                f"{row['quarantined']:,}",
                _change(row),
            )
            for row in rows
        ],
        right=("version", "samples", "shards", "bytes", "quarantined"),
    )


def _change(row: dict[str, Any]) -> str:
    from wds_pipeline.dataset.wording import counted, human_bytes, listed_changes

    if row["restored_from"] is not None:
        return f"restored from version {row['restored_from']}"
    if not row["new_shards"]:
        return "what is left out, shards dropped, or an overlay's base"
    what = listed_changes(row["changed"])
    return f"{what} ({counted(row['new_shards'], 'shard')}, {human_bytes(row['new_bytes'])})"
