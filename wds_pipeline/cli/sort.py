"""`wds-pipeline sort`: samples in order."""

from __future__ import annotations

import click

from wds_pipeline.cli.tar_options import (
    duplicates_option,
    output_option,
    report,
    stream_options,
    whole_or_not,
)


@click.command("sort")
@stream_options
@duplicates_option("merge", help="; or joined, if they have no field in common")
@output_option("The tar to write, a path or URL; - is stdout.")
@click.option(
    "-s",
    "--by",
    default="key",
    show_default=True,
    metavar="WHAT",
    help="The key, a field's text (txt), or a value in a json field (json:size.width).",
)
@click.option("-n", "--numeric", is_flag=True, help="Texts are numbers.")
@click.option("--natural", is_flag=True, help="Digits in texts by their value: a2 before a10.")
@click.option("-r", "--reverse", is_flag=True, help="The largest first.")
def command(
    tars: tuple[str, ...],
    output: str,
    by: str,
    numeric: bool,
    natural: bool,
    reverse: bool,
    duplicates: str,
    keep_whole: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Sort the samples of tars, by key or by content.

    TARS are paths, URLs or patterns of them, or folders; - is a tar on stdin. Samples of equal values keep
    their order, and all of them are kept; those without a value come last. Contents are not held in memory;
    those of stdin or a store go to a temporary file (TMPDIR).
    """
    from wds_pipeline.dataset.tars.sort import Order, sort

    if numeric and natural:
        raise click.UsageError("--numeric and --natural exclude each other")
    order = Order(by=by, numeric=numeric, natural=natural, reverse=reverse)
    with whole_or_not(output):
        account = sort(
            tars, output, order, duplicates=duplicates, keep_whole=keep_whole, force=force
        )
    report(account, quiet)
