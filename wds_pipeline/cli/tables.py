"""Tables for people: aligned columns, as wide as the terminal; uncut and without colour elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wds_pipeline.dataset.wording import printable

_UNCUT = 100_000  # columns; a table takes no more than it needs


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """Prints rows under headers; the columns named in `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(
            header,
            justify="right" if header in right else "left",
            overflow="fold",
            no_wrap=header != headers[-1],
        )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=None if terminal else _UNCUT,
        color_system=None if os.environ.get("NO_COLOR") or not terminal else "auto",
        force_terminal=terminal,
        highlight=False,
        soft_wrap=False,
    )
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        click.echo(line.rstrip())
