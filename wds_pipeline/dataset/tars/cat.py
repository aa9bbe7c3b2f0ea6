"""Many tars into one, or a part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.choose import Choice
from wds_pipeline.dataset.tars.inputs import find_inputs, read_all
from wds_pipeline.dataset.tars.keys import UniqueKeys
from wds_pipeline.dataset.tars.outputs import open_output
from wds_pipeline.dataset.tars.sample import Sample
from wds_pipeline.dataset.tars.write import TarWriter, lay_out


def write_all(samples: Iterator[Sample], tar: TarWriter, account: Account) -> None:
    """Writes samples to a tar, and counts them. Raises what reading and writing do."""
    for sample in samples:
        tar.add(lay_out(sample))
        account.written += 1


def cat(
    names: Sequence[str],
    output: str,
    choice: Choice | None = None,
    *,
    duplicates: str = "error",
    keep_whole: bool = False,
    force: bool = False,
) -> Account:
    """Writes the samples of all tars, in order, into one.

    `names` as `find_inputs` takes them, `output` as `open_output`. `duplicates` is one of `keys.POLICIES`;
    with `keep_whole`, of a damaged tar what is whole is taken. Raises ConfigError, SourceError, DataError,
    DestinationError; then nothing is written.
    """
    account = Account()
    inputs = find_inputs(names)
    with open_output(output, inputs, force) as tar:
        samples = (choice or Choice()).of(read_all(inputs, account, keep_whole), account)
        write_all(UniqueKeys(duplicates, account).of(samples), tar, account)
    account.bytes = tar.size
    return account
