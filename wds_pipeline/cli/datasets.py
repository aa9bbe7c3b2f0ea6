"""`wds-pipeline datasets`: what is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.dataset_argument import open_destination
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig


@click.command("datasets")
@json_option
def command(as_json: bool) -> None:
    """List the configured datasets, each with its newest version."""
    from wds_pipeline.config_file import datasets_folder, load_configs

    rows = [_values(config) for config in load_configs().values()]
    if as_json:
        print_json(rows)
    elif rows:
        _print(rows)
    else:
        click.echo(
            f"{datasets_folder().absolute()}: no dataset is there; write one with "
            "`wds-pipeline init SOURCE DESTINATION`"
        )


def _values(config: DatasetConfig) -> dict[str, Any]:
    from wds_pipeline.dataset import version
    from wds_pipeline.errors import WdsPipelineError

    newest, problem = None, None
    try:
        newest = version.latest(open_destination(config))
    except WdsPipelineError as error:  # the others are still worth listing
        problem = str(error)
    return {
        "name": config.name,
        "description": config.description,
        "file": str(config.file),
        "source": config.shown_url("source"),
        "destination": config.written["destination"]["url"],
        "version": newest.version if newest else None,
        "created": newest.created if newest else None,
        "samples": newest.total_samples if newest else None,
        "bytes": newest.total_bytes if newest else None,
        "problem": problem,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import human_bytes

    print_table(
        ("dataset", "version", "samples", "bytes", "destination", "file"),
        [
            (
                row["name"],
                "none" if row["version"] is None else row["version"],
                "" if row["samples"] is None else f"{row['samples']:,}",
                "" if row["bytes"] is None else human_bytes(row["bytes"]),
                row["destination"],
                row["file"],
            )
            for row in rows
        ],
        right=("version", "samples", "bytes"),
    )
    for row in rows:
        if row["problem"]:
            click.echo(f"warning: {row['problem']}", err=True)
