"""`wds-pipeline gc`: old versions, and what no version needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_destination
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.retain import Garbage

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DEFAULT_GRACE = 24 * 3600


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])|0", value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r}; expected a time such as 24h, 30m, 7d or 0")
    return float(match[1]) * _UNITS[match[2]] if match[1] else 0.0


@click.command("gc")
@dataset_argument
@click.option("--yes", is_flag=True, help="Remove what is listed.")
@click.option(
    "--grace",
    metavar="TIME",
    default="24h",
    show_default=True,
    callback=_seconds,
    help="Spare what is younger: a build under way has shards that no version holds yet.",
)
@json_option
def command(config: DatasetConfig, yes: bool, grace: float, as_json: bool) -> None:
    """Remove old versions and what no version needs.

    Without --yes it only lists them. The dataset's `retention` says which versions are kept; the
    newest always is.
    """
    from wds_pipeline.dataset.retain import collect, find_garbage

    storage = open_destination(config)
    garbage = find_garbage(storage, config.retention, grace)
    freed = collect(storage, garbage, grace) if yes else None
    if as_json:
        print_json(
            {
                "removed": yes,
                "versions": garbage.versions,
                "shards": garbage.shards,
                "files": [file.path for file in garbage.files],
                "uploads": [file.path for file in garbage.uploads],
                "bytes": garbage.bytes if freed is None else freed,
                "spared_young_shards": garbage.young,
            }
        )
        return
    again = "" if grace == _DEFAULT_GRACE else f" --grace {grace:g}s"
    _print(config, garbage, freed, again)


def _print(config: DatasetConfig, garbage: Garbage, freed: int | None, again: str) -> None:
    from wds_pipeline.dataset.retain_summary import describe, kept
    from wds_pipeline.dataset.wording import human_bytes

    for line in describe(garbage, "--grace"):
        click.echo(line)
    if not garbage:
        click.echo(f"nothing to remove; {kept(config)}")
    elif freed is None:
        click.echo(f"\n{human_bytes(garbage.bytes)} in shards would be freed; {kept(config)}")
        click.echo(f"nothing was removed; do it with: wds-pipeline gc {config.name}{again} --yes")
    else:
        click.echo(f"\nremoved: {human_bytes(freed)} in shards were freed")
