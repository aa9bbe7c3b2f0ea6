"""The argument NAME and the option `--version`: from what the user typed to what the library takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.version import Manifest
    from wds_pipeline.storage import Storage

Command = TypeVar("Command", bound=Callable[..., Any])


def dataset_argument(command: Command) -> Command:
    """Adds the argument NAME, as the parameter `config`: a configured dataset."""
    return click.argument(
        "config", metavar="NAME", required=False, callback=_load, shell_complete=_complete
    )(command)


def version_option(command: Command) -> Command:
    """Adds `--version`, as the parameter `number`: None is the newest."""
    return click.option(
        "--version",
        "number",
        type=click.IntRange(min=1),
        metavar="N",
        help="A version; the newest by default.",
    )(command)


def _load(ctx: click.Context, _param: click.Parameter, name: str | None) -> DatasetConfig | None:
    return None if ctx.resilient_parsing else find_dataset(name)


def find_dataset(name: str | None) -> DatasetConfig:
    """The configured dataset of a name. Raises ConfigError, saying which there are."""
    from wds_pipeline.config_file import check_folder, datasets_folder, read_configs
    from wds_pipeline.config_values import did_you_mean
    from wds_pipeline.errors import ConfigError

    check_folder(datasets_folder())
    configs, problems = read_configs(datasets_folder())
    if problems and name not in configs:
        raise ConfigError("\n".join(problems))
    for problem in problems:  # of other datasets, which are not wanted now
        click.echo(f"warning: {problem}", err=True)
    known = f"known datasets: {', '.join(configs)} (in {datasets_folder().absolute()})"
    if not configs:
        raise ConfigError(
            f"{datasets_folder().absolute()}: no dataset is there; write one with "
            "`wds-pipeline init SOURCE DESTINATION`"
        )
    if name is None:
        raise ConfigError(f"which dataset? {known}")
    if name not in configs:
        near = did_you_mean(name, configs)
        raise ConfigError(f"{name!r}: no such dataset{near or ';'} {known}")
    return configs[name]


def _complete(_ctx: click.Context, _param: click.Parameter, start: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    from wds_pipeline.config_file import load_configs
    from wds_pipeline.errors import ConfigError

    try:
        return [CompletionItem(name) for name in load_configs() if name.startswith(start)]
    except ConfigError:
        return []


def open_destination(config: DatasetConfig) -> Storage:
    """The dataset's destination, for reading. Raises DestinationError when it holds something else."""
    from wds_pipeline.dataset import version
    from wds_pipeline.storage import open_storage

    storage = open_storage(config.destination_place)
    version.check_marker(storage, config.name)
    return storage


def open_version(config: DatasetConfig, number: int | None) -> tuple[Storage, Manifest]:
    """A published version, or the newest. Raises DestinationError, VersionError."""
    from wds_pipeline.dataset import version

    storage = open_destination(config)
    return storage, version.read(storage, number, config.name)
