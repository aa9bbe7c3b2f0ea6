"""`wds-pipeline shuffle`: samples in a random order."""

from __future__ import annotations

import click

from wds_pipeline.cli.tar_options import (
    duplicates_option,
    output_option,
    report,
    stream_options,
    whole_or_not,
)


@click.command("shuffle")
@stream_options
@duplicates_option()
@output_option("The tar to write, a path or URL; - is stdout.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another order.")
def command(
    tars: tuple[str, ...],
    output: str,
    seed: int,
    duplicates: str,
    keep_whole: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Shuffle the samples of tars, over all of them.

    TARS are paths, URLs or patterns of them, or folders; - is a tar on stdin. The same seed gives the same
    order. Contents are not held in memory; those of stdin or a store go to a temporary file (TMPDIR).
    """
    from wds_pipeline.dataset.tars.shuffle import shuffle

    with whole_or_not(output):
        account = shuffle(
            tars, output, seed=seed, duplicates=duplicates, keep_whole=keep_whole, force=force
        )
    report(account, quiet)
