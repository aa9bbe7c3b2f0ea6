"""`wds-pipeline view`: brace-able names for a version's shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_version, version_option
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig


@click.command("view")
@dataset_argument
@version_option
@json_option
def command(config: DatasetConfig, number: int | None, as_json: bool) -> None:
    """Make brace-able names for a version's shards.

    Numbered without gaps. In a folder they are hard links, which take no space, and a build makes them
    for its own version. In an object store they are copies, made by the server, as large as the shards.
    """
    from wds_pipeline.dataset.view import make_view, patterns

    storage, manifest = open_version(config, number)
    make_view(storage, manifest)
    made = patterns(storage, manifest)
    if as_json:
        print_json({"dataset": config.name, "version": manifest.version, "patterns": made})
        return
    for pattern in made.values():
        click.echo(pattern)
