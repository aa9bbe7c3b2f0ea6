"""`wds-pipeline schema`: the JSON schema of a dataset's YAML file."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("schema")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there, not to stdout.",
)
def command(output: Path | None) -> None:
    """Print the JSON schema of a dataset's YAML file.

    With this first line in the file, editors complete and check it:

    # yaml-language-server: $schema=schema.json
    """
    from wds_pipeline.config import json_schema
    from wds_pipeline.errors import DestinationError

    text = json.dumps(json_schema(), indent=2) + "\n"
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DestinationError(f"{output}: cannot be written: {error.strerror}") from error
    click.echo(f"written: {output}")
