"""`wds-pipeline cat`: samples of many tars into one."""

from __future__ import annotations

import click

from wds_pipeline.cli.tar_options import (
    duplicates_option,
    output_option,
    report,
    stream_options,
    whole_or_not,
)


@click.command("cat")
@stream_options
@duplicates_option()
@output_option("The tar to write, a path or URL; - is stdout.")
@click.option("-f", "--select", metavar="FIELDS", help="Only these fields, as jpg,txt.")
@click.option(
    "--match", metavar="GLOB", multiple=True, help="Only samples whose key matches, as 'cats/**'."
)
@click.option("--keys", "keys_file", metavar="FILE", help="Only the keys in a file, one a line.")
@click.option("--start", type=click.IntRange(min=0), default=0, help="Leave out so many of those.")
@click.option("--stop", type=click.IntRange(min=0), help="End before the sample of this number.")
@click.option("--max-samples", type=click.IntRange(min=0), help="Take so many at most.")
def command(
    tars: tuple[str, ...],
    output: str,
    select: str | None,
    match: tuple[str, ...],
    keys_file: str | None,
    start: int,
    stop: int | None,
    max_samples: int | None,
    duplicates: str,
    keep_whole: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Join tars, sample by sample, or take a part of them.

    TARS are paths or URLs: 'cc3m-{0000..0575}.tar', several, joined by ::, with *, or folders; - is a tar on
    stdin. The same samples give the same bytes.
    """
    from wds_pipeline.dataset.tars.cat import cat
    from wds_pipeline.dataset.tars.choose import Choice, read_keys

    fields = [name.strip(" .") for name in (select or "").split(",") if name.strip(" .")]
    if select is not None and not fields:
        raise click.BadParameter("expected fields such as jpg,txt", param_hint="--select")
    if max_samples is not None:
        stop = start + max_samples if stop is None else min(stop, start + max_samples)
    choice = Choice(
        fields=fields,
        match=match,
        keys=read_keys(keys_file) if keys_file is not None else None,
        start=start,
        stop=stop,
    )
    with whole_or_not(output):
        account = cat(
            tars, output, choice, duplicates=duplicates, keep_whole=keep_whole, force=force
        )
    report(account, quiet)
