"""`wds-pipeline split`: a stream of samples into tars of a size."""

from __future__ import annotations

import click

from wds_pipeline.cli.tar_options import (
    SizeType,
    duplicates_option,
    report,
    stream_options,
    whole_or_not,
)


@click.command("split")
@stream_options
@duplicates_option()
@click.option(
    "-o",
    "--output",
    metavar="PATTERN",
    required=True,
    help="Where the tars go: out-%06d.tar, or out-{000000..000575}.tar.",
)
@click.option(
    "-s",
    "--max-bytes",
    type=SizeType(),
    help="How large a tar may be; 256MB if neither is given.",
)
@click.option(
    "-c", "--max-samples", type=click.IntRange(min=1), help="How many samples a tar may have."
)
def command(
    tars: tuple[str, ...],
    output: str,
    max_bytes: int | None,
    max_samples: int | None,
    duplicates: str,
    keep_whole: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Write tars anew in another size; no sample is cut.

    TARS are paths, URLs or patterns of them, or folders; - is a tar on stdin. A sample that is larger than
    --max-bytes gets a tar of its own. Prints the tars' paths. With --force, tars of this pattern that are
    there are replaced, and what is left of a longer set is removed.
    """
    from wds_pipeline.dataset.tars.split import split

    if max_bytes is None and max_samples is None:
        max_bytes = 256_000_000
    with whole_or_not(output):
        account, written = split(
            tars,
            output,
            max_bytes=max_bytes,
            max_samples=max_samples,
            duplicates=duplicates,
            keep_whole=keep_whole,
            force=force,
        )
    for each in written:
        click.echo(each)
    report(account, quiet)
