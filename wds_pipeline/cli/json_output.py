"""`--json`: one JSON document on stdout, and nothing else there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Adds `--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def print_json(value: Any) -> None:
    """Prints a value. Names that are not UTF-8 come as escapes, so that every reader can parse it."""
    click.echo(json.dumps(value, indent=2))
