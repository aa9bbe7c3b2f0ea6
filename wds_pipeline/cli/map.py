"""`wds-pipeline map`: a command or a transform for each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from wds_pipeline.cli.tar_options import (
    duplicates_option,
    output_option,
    report,
    stream_options,
    whole_or_not,
)

if TYPE_CHECKING:
    from wds_pipeline.dataset.tars.map import Made, Work
    from wds_pipeline.dataset.tars.sample import Sample

    Over = Callable[[Iterator[Sample]], Iterator[Made]]


def _parameter(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    import yaml

    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{each!r}; expected such as size=256")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.BadParameter(f"{each!r}; expected a value as in YAML") from None
    return found


@click.command("map")
@stream_options
@duplicates_option()
@output_option("The tar to write, a path or URL; - is stdout.")
@click.option(
    "-c", "--command", "shell", metavar="COMMAND", help="A shell command for each sample."
)
@click.option("--call", metavar="NAME", help="A transform's name, or package.module:function.")
@click.option(
    "-p",
    "--param",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parameter,
    help="A parameter of --call, as size=256; several.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="How many samples are at work at a time."
)
@click.option(
    "--on-error",
    type=click.Choice(("stop", "skip", "keep")),
    default="stop",
    show_default=True,
    help="A sample that fails: end, leave it out, or keep it as it is.",
)
def command(
    tars: tuple[str, ...],
    output: str,
    shell: str | None,
    call: str | None,
    parameters: dict[str, Any],
    workers: int | None,
    on_error: str,
    duplicates: str,
    keep_whole: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Run a command or a transform on each sample of tars.

    TARS are paths, URLs or patterns of them, or folders; - is a tar on stdin. The order stays.

    A command runs in a folder that has the sample's fields as sample.jpg, sample.txt, …; those that are there
    afterwards are its fields. The key is in $WDS_KEY. If none is left, so is the sample.

    Exit code 1 when a sample fails, and then nothing is written; with --on-error skip or keep, only if all
    do.
    """
    from wds_pipeline.dataset.tars.map import map_tars

    if (shell is None) == (call is None):
        raise click.UsageError("give either --command or --call")
    if parameters and call is None:
        raise click.UsageError("--param is for --call")
    with whole_or_not(output), _over(shell, call, parameters, workers, on_error) as over:
        account = map_tars(
            tars,
            output,
            over,
            on_error=on_error,
            duplicates=duplicates,
            keep_whole=keep_whole,
            force=force,
        )
    report(account, quiet)


@contextmanager
def _over(
    shell: str | None,
    call: str | None,
    parameters: dict[str, Any],
    workers: int | None,
    on_error: str,
) -> Iterator[Over]:
    """What is done, and who does it: threads wait for commands, processes run transforms."""
    if shell is not None:
        from wds_pipeline.dataset.tars.command import Command

        run = Command(shell)
        with _each(run, "threads", workers) as over:
            try:
                yield over
            finally:
                run.stop()
        return
    from wds_pipeline.dataset.tars.call import Call, is_over_shard, load_call, map_over

    step = load_call(call or "", parameters)
    if is_over_shard(step):
        if workers is not None:
            raise click.UsageError(f"--workers: {call} is one for all samples, in one process")
        yield map_over(step, on_error)
        return
    with _each(Call(step), "processes", workers) as over:
        yield over


@contextmanager
def _each(work: Work, kind: Literal["threads", "processes"], workers: int | None) -> Iterator[Over]:
    from wds_pipeline.compute import open_pool
    from wds_pipeline.config_compute import ComputeConfig
    from wds_pipeline.dataset.tars.map import map_each

    with open_pool(ComputeConfig(kind=kind, workers=workers)) as pool:
        yield map_each(work, pool)
