"""`wds-pipeline show`: one sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_version, version_option
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.show import Member, Sample
    from wds_pipeline.storage import Storage

_TEXT = 300  # characters


@click.command("show")
@dataset_argument
@click.argument("key", required=False)
@version_option
@click.option(
    "--save",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the sample's files there.",
)
@json_option
def command(
    config: DatasetConfig, key: str | None, number: int | None, folder: Path | None, as_json: bool
) -> None:
    """Show one sample: its fields, text, image size and place.

    KEY is the files' path in the source without the extension, as coast/0001; without it, the first
    sample is shown.
    """
    from wds_pipeline.dataset.show import read_sample, save_sample

    storage, manifest = open_version(config, number)
    sample = read_sample(storage, manifest, key)
    saved = save_sample(storage, sample, folder) if folder is not None else []
    if as_json:
        values = _values(storage, sample)
        print_json({"version": manifest.version, **values, "saved": [str(p) for p in saved]})
        return
    _print(storage, sample, manifest.version)
    for path in saved:
        click.echo(f"saved: {path}")


def _values(storage: Storage, sample: Sample) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "key": sample.key,
        "split": sample.split,
        "shard": storage.locate(sample.shard.path),
        "position": sample.position,
        "fields": {
            member.field: {k: v for k, v in asdict(member).items() if k != "field"}
            for member in sample.members
        },
    }


def _print(storage: Storage, sample: Sample, version: int) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import clip, human_bytes, printable

    click.echo(printable(f"key:    {sample.key}"))
    click.echo(f"split:  {sample.split}, version {version}")
    click.echo(f"shard:  {printable(storage.locate(sample.shard.path))}")
    click.echo(f"        sample {sample.position + 1:,} of {sample.shard.samples:,}\n")
    print_table(
        ("field", "size", "offset", "what it is"),
        [
            (each.field, human_bytes(each.size), f"{each.offset:,}", _what(each))
            for each in sample.members
        ],
        right=("size", "offset"),
    )
    for member in sample.members:
        if member.text:
            click.echo(f"\n{member.field}: {clip(member.text, _TEXT)}")


def _what(member: Member) -> str:
    if member.kind == "image":
        if member.width is None:
            return "image, not readable"
        return f"image, {member.width} × {member.height} pixels, {member.format}"
    return "" if member.kind == "other" else member.kind
