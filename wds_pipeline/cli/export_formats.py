"""The option `--format`: names of `dataset.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def formats_option(*, required: bool = False) -> Callable[[Command], Command]:
    """Adds `--format`, as the parameter `formats`: a list without repetitions."""
    return click.option(
        "--format",
        "formats",
        multiple=True,
        required=required,
        metavar="FORMAT",
        callback=_formats,
        help="What another tool reads: wids, energon, dali, …; several by commas.",
    )


def _formats(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> list[str]:
    from wds_pipeline.config_values import EXPORTS, did_you_mean

    wanted = list(dict.fromkeys(name for each in given for name in each.split(",") if name))
    for name in wanted:
        if name not in EXPORTS:
            near = did_you_mean(name, EXPORTS)
            raise click.BadParameter(f"{name!r} is none{near}; there are {', '.join(EXPORTS)}")
    return wanted
