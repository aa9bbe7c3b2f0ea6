"""What the commands on tars have in common: their arguments, and what they say at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from wds_pipeline.dataset.tars.account import Account

Command = TypeVar("Command", bound=Callable[..., Any])
_POLICIES = ("error", "rename", "keep-first")

tars_argument = click.argument("tars", nargs=-1, required=True)
force_option = click.option("--force", is_flag=True, help="Replace what is there.")


def duplicates_option(*more: str, help: str = "") -> Callable[[Command], Command]:
    """Adds `--duplicates`, of which a command may know more."""
    return click.option(
        "--duplicates",
        type=click.Choice((*_POLICIES, *more)),
        default="error",
        show_default=True,
        help=f"Samples whose key was there before: an error, renamed (a-2), left out{help}.",
    )


def output_option(help: str) -> Callable[[Command], Command]:
    """Adds `-o`, which has no default, so that nothing is overwritten by mistake."""
    return click.option("-o", "--output", metavar="TAR", required=True, help=help)


def stream_options(command: Command) -> Command:
    """Adds TARS, and what each command on a stream of samples takes but `--duplicates`."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="Say nothing unless something is odd."),
        force_option,
        click.option(
            "--keep-whole", is_flag=True, help="Of damaged tars, take the samples that are whole."
        ),
        tars_argument,
    ):
        command = option(command)
    return command


def report(account: Account, quiet: bool) -> None:
    """Says on stderr what became of the samples: stdout may be a tar."""
    lines = list(account.lines())
    for line in lines[1:] if quiet else lines:
        click.echo(line, err=True)


@contextmanager
def whole_or_not(output: str) -> Iterator[None]:
    """For what writes to `output`: what an interrupt leaves of it is said."""
    from wds_pipeline.cli.interrupt import interruptible

    left = "what went to stdout lacks its end" if output == "-" else "nothing was written"
    with interruptible(left):
        yield


class SizeType(click.ParamType):
    """A size in bytes, such as 256MB."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pydantic import TypeAdapter, ValidationError

        from wds_pipeline.config_values import Size

        try:
            size = int(TypeAdapter(Size).validate_python(value))
        except ValidationError:
            size = 0
        if size <= 0:
            self.fail(f"{value!r}; expected a size such as 256MB or 1GiB", param, ctx)
        return size
