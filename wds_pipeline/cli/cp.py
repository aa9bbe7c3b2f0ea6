"""`wds-pipeline cp`: tars, or a published version, from one store to another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import version_option
from wds_pipeline.cli.json_output import json_option, print_json
from wds_pipeline.cli.tar_options import force_option

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.settle import Progress
    from wds_pipeline.dataset.tars.copy import Copied


@click.command("cp")
@click.argument("sources", nargs=-1, required=True, metavar="NAME|TARS…")
@click.argument("target", metavar="FOLDER")
@version_option
@click.option(
    "--workers", type=click.IntRange(min=1), default=8, show_default=True, help="Tars at a time."
)
@force_option
@json_option
def command(
    sources: tuple[str, ...],
    target: str,
    number: int | None,
    workers: int,
    force: bool,
    as_json: bool,
) -> None:
    """Copy tars, or a whole published version, to another folder or store.

    NAME is a configured dataset, whose newest version, or the one of --version, is copied with all that
    belongs to it: FOLDER, a path or URL, is then read by open_dataset as the destination is. TARS are
    paths, URLs or patterns of them; each goes to FOLDER under its own name.

    Each tar is read back and compared by its digest. What is there already and is the same is not copied,
    so the same command goes on where it was stopped.
    """
    from wds_pipeline.cli.interrupt import interruptible
    from wds_pipeline.cli.progress import progress_bars

    if "-" in sources:
        raise click.UsageError("-: a tar on stdin is written by `wds-pipeline cat - -o NAME`")
    again = "what is there is whole; the same command goes on from there"
    with interruptible(again), progress_bars() as progress:
        config = _dataset(sources)
        if config is not None:
            if force:
                raise click.UsageError("--force: a published version is never replaced")
            done = _copy_version(config, number, target, workers, progress)
        else:
            if number is not None:
                raise click.UsageError("--version is for a dataset's name")
            done = _copy_tars(sources, target, force, workers, progress)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(done))
    else:
        _print(done)


def _dataset(sources: tuple[str, ...]) -> DatasetConfig | None:
    """The dataset that is meant, if it is one: no path, no pattern, no tar.

    Raises ConfigError for a name of nothing.
    """
    from wds_pipeline.cli.dataset_argument import find_dataset
    from wds_pipeline.errors import ConfigError

    if len(sources) > 1 or any(each in sources[0] for each in "/:*?[{."):
        return None
    try:
        return find_dataset(sources[0])
    except ConfigError:
        if os.path.exists(sources[0]):
            return None
        raise


def _copy_version(
    config: DatasetConfig, number: int | None, target: str, workers: int, progress: Progress | None
) -> Copied:
    from wds_pipeline.cli.dataset_argument import open_version
    from wds_pipeline.config_storage import Place, StorageConfig, absolute, scheme_of
    from wds_pipeline.dataset.tars.copy import copy_version
    from wds_pipeline.storage import open_storage

    storage, manifest = open_version(config, number)
    url, settings = absolute(target, ""), config.destination.storage
    place = Place(
        url=url,
        storage=settings if scheme_of(url) == scheme_of(storage.url) else StorageConfig(),
        dataset=config.name,
        single_writer=config.destination_place.single_writer,
    )
    return copy_version(storage, manifest, open_storage(place), workers=workers, progress=progress)


def _copy_tars(
    sources: tuple[str, ...], target: str, force: bool, workers: int, progress: Progress | None
) -> Copied:
    from wds_pipeline.config_storage import absolute
    from wds_pipeline.dataset.tars.copy import copy_tars
    from wds_pipeline.dataset.tars.inputs import find_inputs
    from wds_pipeline.storage import open_storage

    folder = open_storage(absolute(target, ""))
    return copy_tars(find_inputs(sources), folder, force=force, workers=workers, progress=progress)


def _print(done: Copied) -> None:
    from wds_pipeline.dataset.wording import counted, human_bytes, printable

    for place in done.places:
        click.echo(printable(place))
    size = human_bytes(done.bytes)
    click.echo(
        f"{counted(done.tars, 'tar')} copied ({size}), {done.there:,} there already", err=True
    )
