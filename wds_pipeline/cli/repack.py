"""`wds-pipeline repack`: all shards laid out anew, as a new version."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.build import print_result, run_build
from wds_pipeline.cli.dataset_argument import dataset_argument, open_destination
from wds_pipeline.cli.json_output import json_option

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig


@click.command("repack")
@dataset_argument
@click.option("--resplit", is_flag=True, help="Let samples change their splits too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def command(config: DatasetConfig, resplit: bool, yes: bool, as_json: bool) -> None:
    """Lay out all shards anew, as a new version.

    After shards.max_bytes was changed, or when edits and deletions have left shards of unlike sizes.
    Each sample keeps its split, unless --resplit. Older versions stay readable until `gc`.
    """
    if not yes:
        _ask(config, resplit)
    print_result(config, run_build(config, repack=True, resplit=resplit), as_json)


def _ask(config: DatasetConfig, resplit: bool) -> None:
    from wds_pipeline.dataset import version
    from wds_pipeline.dataset.wording import counted, human_bytes

    newest = version.latest(open_destination(config))
    if newest is None:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask for consent; add --yes")
    size = f"{counted(len(newest.shards), 'shard')}, {human_bytes(newest.total_bytes)}"
    if resplit:
        click.echo(
            "samples may move between splits: what a model was trained on may come to be in val",
            err=True,
        )
    question = f"write all of {config.name} anew ({size}) as version {newest.version + 1}?"
    click.confirm(question, abort=True, err=True)
