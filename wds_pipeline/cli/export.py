"""`wds-pipeline export`: a version in the formats of other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_version, version_option
from wds_pipeline.cli.export_formats import formats_option
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig


@click.command("export")
@dataset_argument
@formats_option(required=True)
@version_option
@click.option(
    "--output",
    metavar="FOLDER",
    help="A folder or URL for the files; by default beside the version's manifest.",
)
@json_option
def command(
    config: DatasetConfig,
    formats: list[str],
    number: int | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Write what another tool reads a version by: wids, Energon, DALI, …

    No shard is read. With `exports: [wids, energon]` in the dataset's file, each build does it for its
    own version. In another folder than that version's, the files name the shards by absolute URLs.
    """
    from wds_pipeline.config_storage import Place, absolute
    from wds_pipeline.dataset import export
    from wds_pipeline.storage import open_storage

    storage, manifest = open_version(config, number)
    export.check(formats, storage, config.name)
    contents = export.of_version(storage, manifest)
    written = {}
    for name in formats:
        target, folder = storage, export.folder(manifest.version, name)
        if output is not None:
            target = open_storage(
                Place(url=absolute(output, ""), storage=config.destination.storage)
            )
            folder = f"{name}/" if len(formats) > 1 else ""
        export.write(name, contents, target, folder)
        written[name] = target.locate(folder)
    if output is None:
        export.into_view(storage, manifest)
    if as_json:
        print_json({"dataset": config.name, "version": manifest.version, "formats": written})
        return
    for name, place in written.items():
        click.echo(f"{name}: {place}")
