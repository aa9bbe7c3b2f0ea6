"""`wds-pipeline init`: from a folder of raw files to a dataset's YAML file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.json_output import json_option, print_json
from wds_pipeline.cli.progress import progress_bars

if TYPE_CHECKING:
    from wds_pipeline.dataset.discover import Discovery


@click.command("init")
@click.argument("source")
@click.argument("destination")
@click.option("--name", help="The dataset's name; by default the source folder's.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The YAML file; by default NAME.yaml in the folder of datasets.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@json_option
def command(
    source: str, destination: str, name: str | None, output: Path | None, force: bool, as_json: bool
) -> None:
    """Look at a folder and write its dataset's YAML file.

    SOURCE is the folder of raw files, DESTINATION the one in which versions will be published.
    Nothing is built, and nothing is written but the YAML file; its comments say why it proposes
    what it does.
    """
    from wds_pipeline.config_file import datasets_folder
    from wds_pipeline.dataset.discover import discover
    from wds_pipeline.dataset.discover_yaml import render
    from wds_pipeline.storage import Place, open_storage

    name = name or _name_of(source)
    file = output or datasets_folder() / f"{name}.yaml"
    values = {
        "name": name,
        "source": {"url": _from(file, source)},
        "destination": {"url": _from(file, destination)},
    }
    _check(file, values, force)
    with progress_bars() as progress:
        found = discover(
            open_storage(Place(url=_absolute(source), dataset=name, part="source")),
            values,
            progress,
        )
    _write(file, render(found), found, force)
    if as_json:
        print_json(_values(file, found))
    else:
        _print(file, found)


def _name_of(source: str) -> str:
    """A dataset's name after its folder: lower case, digits and `_`."""
    last = os.path.basename(os.path.normpath(_absolute(source))).lower()
    name = re.sub(r"[^a-z0-9]+", "_", last).strip("_")
    if not name:
        raise click.UsageError(f"{source!r} gives the dataset no name; choose one with --name")
    return name if name[0].isalpha() else f"data_{name}"


def _absolute(url: str) -> str:
    if "://" in url:
        return url
    return os.path.abspath(os.path.expanduser(url))


def _from(file: Path, url: str) -> str:
    """A path as the YAML file needs it, for there relative ones start at the file's folder."""
    if "://" in url or os.path.isabs(os.path.expanduser(url)):
        return url
    return os.path.relpath(os.path.abspath(url), os.path.abspath(file.parent))


def _check(file: Path, values: dict[str, Any], force: bool) -> None:
    """What can be told before a long scan. Raises ConfigError, DestinationError."""
    from wds_pipeline.config_file import load_config
    from wds_pipeline.dataset import version
    from wds_pipeline.dataset.build import Build
    from wds_pipeline.errors import ConfigError

    if file.exists() and not force:
        raise ConfigError(
            f"{file}: is there already; --force replaces it, --name or --output chooses another"
        )
    config = _validated(file, values)
    for path in sorted(file.absolute().parent.glob("*.y*ml")):
        if path == file.absolute():
            continue
        try:
            other = load_config(path)
        except ConfigError:
            continue  # its own mistake, which the next command tells
        if other.name == config.name:
            raise ConfigError(f"{path}: is the dataset {config.name!r} already; choose --name")
        if other.destination_url == config.destination_url:
            raise ConfigError(
                f"{config.destination_url}: is the destination of {other.name!r} already ({path}); "
                "give each dataset a folder of its own"
            )
    version.check_marker(Build(config).destination, config.name)


def _validated(file: Path, values: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.errors import ConfigError

    try:
        config = DatasetConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    config._file = file.absolute()
    return config


def _write(file: Path, text: str, found: Discovery, force: bool) -> None:
    """Writes the file, whole or not at all; what it says is read back first."""
    from wds_pipeline.config_file import load_config
    from wds_pipeline.errors import ConfigError

    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        if load_config(temporary).model_dump() != found.config.model_dump():
            raise ConfigError(
                f"{file}: cannot say what was found, because of unusual names of files or folders; "
                "write the YAML by hand (see `wds-pipeline schema`)"
            )
        if force:
            os.replace(temporary, file)
        else:
            os.link(temporary, file)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already; --force replaces it") from None
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(f"{file}: cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _values(file: Path, found: Discovery) -> dict[str, Any]:
    return {
        "file": str(file),
        "name": found.config.name,
        "samples": found.samples,
        "quarantined": {each.reason: each.count for each in found.quarantined},
        "fields": {each.name: each.samples for each in found.fields},
        "ignored": found.ignored,
        "shards": len(found.plan.shards),
        "config": found.values,
    }


def _print(file: Path, found: Discovery) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.config_file import ENVIRONMENT_VARIABLE, datasets_folder
    from wds_pipeline.dataset.wording import counted, human_bytes, printable

    listing = found.listing
    click.echo(
        f"found {counted(listing.files.num_rows, 'file')} ({human_bytes(listing.bytes)}): "
        f"{counted(found.samples, 'sample')}, for {counted(len(found.plan.shards), 'shard')} of up "
        f"to {found.values['shards']['max_bytes']}\n"
    )
    required = found.values["samples"]["required"]
    print_table(
        ("field", "made of", "samples", ""),
        [
            (
                each.name,
                ", ".join(each.extensions),
                f"{each.samples:,}",
                "required" if each.name in required else "",
            )
            for each in found.fields
        ],
        right=("samples",),
    )
    if found.ignored:
        names = ", ".join(f"{name} ({count:,})" for name, count in found.ignored.items())
        click.echo(printable(f"left out: {names}"))
    if found.folders is not None:
        click.echo(printable(f"samples are joined across: {', '.join(found.folders.folders)}"))
    for each in found.quarantined:
        click.echo(printable(f"quarantine: {each.count:,} {each.reason}, e.g. {each.examples[0]}"))
    click.echo(f"\nwritten: {printable(str(file))}")
    prefix = ""
    if file.absolute().parent != datasets_folder().absolute():
        prefix = f"{ENVIRONMENT_VARIABLE}={file.parent} "
    click.echo(f"next: {prefix}wds-pipeline plan {found.config.name}")
