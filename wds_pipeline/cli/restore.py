"""`wds-pipeline restore`: an old version becomes the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_destination
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig


@click.command("restore")
@dataset_argument
@click.argument("number", metavar="VERSION", type=click.IntRange(min=1))
@json_option
def command(config: DatasetConfig, number: int, as_json: bool) -> None:
    """Make an old version the newest, as a new commit.

    No shard is written. The next build compares the source with the restored version, and brings
    the source's state back if that still differs.
    """
    from wds_pipeline.dataset.publish import restore
    from wds_pipeline.dataset.wording import counted

    manifest = restore(open_destination(config), number, config.name)
    if as_json:
        print_json(
            {
                "dataset": config.name,
                "version": manifest.version,
                "parent": manifest.parent,
                "restored_from": number,
            }
        )
        return
    if number == manifest.version:
        click.echo(f"{config.name}: version {number} is the newest already")
        return
    click.echo(
        f"{config.name}: version {manifest.version} is version {number} again: "
        f"{counted(manifest.total_samples, 'sample')} in {counted(len(manifest.shards), 'shard')}"
    )
