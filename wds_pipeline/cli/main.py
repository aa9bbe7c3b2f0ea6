"""The group of commands: loads each when it is called, and turns errors into messages.

Exit codes: 0 done, or nothing to do; 1 the operation failed; 2 a mistake in the call or in the
configuration; 130 interrupted (143 by SIGTERM); 141 when the reader of the output went away. `diff` alone
has those of diff(1): 0 the same, 1 different, 2 it cannot be said.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from wds_pipeline import __version__
from wds_pipeline.cli.interrupt import Interrupted
from wds_pipeline.errors import ConfigError, WdsPipelineError

# Command → its line in the overview. Each is `command` of the module of its name, which is imported
# when it is called: the overview must be there at once.
_COMMANDS = {
    "init": "Look at a folder and write its dataset's YAML file.",
    "plan": "Show what a build would do and why; write nothing.",
    "build": "Build what changed and publish it as a new version.",
    "verify": "Read a published version back and check all of it.",
    "versions": "List the published versions, the newest first.",
    "show": "Show one sample: its fields, text, image size and place.",
    "urls": "Print the shards' paths, one a line.",
    "combine": "Make one memory-mapped folder of a token dataset.",
    "export": "Write what another tool reads a version by: wids, Energon, DALI, …",
    "index": "Index tars that somebody else made, where they are, and check them.",
    "view": "Make brace-able names for a version's shards.",
    "restore": "Make an old version the newest, as a new commit.",
    "repack": "Lay out all shards anew, as a new version.",
    "read-bench": "Measure how fast a dataset is read, and what is the limit.",
    "gc": "Remove old versions and what no version needs.",
    "datasets": "List the configured datasets, each with its newest version.",
    "schema": "Print the JSON schema of a dataset's YAML file.",
    # One-off work on tars.
    "cat": "Join tars, sample by sample, or take a part of them.",
    "split": "Write tars anew in another size; no sample is cut.",
    "sort": "Sort the samples of tars, by key or by content.",
    "shuffle": "Shuffle the samples of tars, over all of them.",
    "map": "Run a command or a transform on each sample of tars.",
    "diff": "Show which samples differ between two versions, or two sets of tars.",
    "cp": "Copy tars, or a whole published version, to another folder or store.",
}
# What the system says of files and disks; anything else that is not expected gets its traceback.
_OF_THE_SYSTEM = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
}


def _module(command: str) -> str:
    return f"wds_pipeline.cli.{command.replace('-', '_')}"


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(_module(cmd_name)).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from wds_pipeline.config_values import did_you_mean

            near = did_you_mean(args[0], _COMMANDS)
            raise click.UsageError(
                f"no such command {args[0]!r}{near} Commands: {', '.join(_COMMANDS)}"
                if near
                else f"no such command {args[0]!r}; commands: {', '.join(_COMMANDS)}",
                ctx,
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # no name of a file may break a message
                stream.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:
            _drop_output(error)
            ctx.exit(141)
        except Interrupted as stop:
            _say(str(stop))
            ctx.exit(stop.exit_code)
        except KeyboardInterrupt:
            _say("interrupted")
            ctx.exit(130)
        except WdsPipelineError as error:
            _say(f"error: {error}")
            ctx.exit(2 if isinstance(error, ConfigError) else 1)
        except OSError as error:
            if error.errno not in _OF_THE_SYSTEM:
                raise
            _drop_output(error)
            _say(f"error: {os.fspath(error.filename or 'the output')}: {error.strerror}")
            ctx.exit(1)


def _drop_output(error: OSError) -> None:
    """What is still buffered for an output that failed must not fail again when the process ends."""
    if error.filename is None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    from wds_pipeline.dataset.wording import printable

    click.echo(printable(message, lines=True), err=True)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="wds-pipeline")
def main() -> None:
    """Raw files to published, immutable WebDataset versions.

    \b
    A dataset is one YAML file in ./datasets, or in the folder that WDS_PIPELINE_DATASETS names.
    Start with:  wds-pipeline init SOURCE DESTINATION

    \b
    Exit codes: 0 done, or nothing to do; 1 the operation failed; 2 a mistake in the call or the
    configuration; 130 interrupted.
    """
