"""`wds-pipeline urls`: what a reader of WebDataset shards is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_version, version_option
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.version import Manifest
    from wds_pipeline.storage import Storage


@click.command("urls")
@dataset_argument
@click.option("--split", metavar="SPLIT", help="Only this split's.")
@version_option
@click.option("--braces", is_flag=True, help="One pattern a split, as train-{000000..000575}.tar.")
@json_option
def command(
    config: DatasetConfig, split: str | None, number: int | None, braces: bool, as_json: bool
) -> None:
    """Print the shards' paths, one a line.

    A job that pins --version reads the same shards for as long as the version is kept.
    """
    storage, manifest = open_version(config, number)
    manifest.of_split(split)  # an unknown split is an error
    splits = [split] if split is not None else list(manifest.splits)
    urls = _patterns(storage, manifest) if braces else _paths(storage, manifest)
    chosen = {name: urls[name] for name in splits}
    if as_json:
        what = "patterns" if braces else "urls"
        print_json({"dataset": config.name, "version": manifest.version, what: chosen})
        return
    for value in chosen.values():
        for url in [value] if isinstance(value, str) else value:
            click.echo(url)


def _paths(storage: Storage, manifest: Manifest) -> dict[str, str | list[str]]:
    return {
        name: [storage.locate(shard.path) for shard in manifest.of_split(name)]
        for name in manifest.splits
    }


def _patterns(storage: Storage, manifest: Manifest) -> dict[str, str | list[str]]:
    from wds_pipeline.dataset.view import has_view, patterns
    from wds_pipeline.errors import VersionError

    if not has_view(storage, manifest):
        raise VersionError(
            f"{manifest.dataset}: version {manifest.version} has no brace-able names; "
            f"`wds-pipeline view {manifest.dataset} --version {manifest.version}` makes them"
        )
    return dict(patterns(storage, manifest))
