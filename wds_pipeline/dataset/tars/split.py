"""A stream of samples into tars of a size; no sample is cut."""

from __future__ import annotations

from collections.abc import Sequence

from wds_pipeline.dataset import tar
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.inputs import find_inputs, read_all
from wds_pipeline.dataset.tars.keys import UniqueKeys
from wds_pipeline.dataset.tars.outputs import Outputs
from wds_pipeline.dataset.tars.write import LaidOut, TarWriter, lay_out


def split(
    names: Sequence[str],
    pattern: str,
    *,
    max_bytes: int | None = None,
    max_samples: int | None = None,
    duplicates: str = "error",
    keep_whole: bool = False,
    force: bool = False,
) -> tuple[Account, list[str]]:
    """Writes the samples of all tars, in order, into tars of a numbered name; returns where these are.

    A tar has at most `max_bytes`, its end included, unless one sample alone has more, and at most
    `max_samples`. `pattern` as `Outputs` takes it, all else as `cat`. With `force`, what is left of a
    longer set of tars of this name is removed.
    """
    account = Account()
    inputs = find_inputs(names)
    with Outputs(pattern, inputs, force) as outputs:
        samples = UniqueKeys(duplicates, account).of(read_all(inputs, account, keep_whole))
        waiting = map(lay_out, samples)
        each = next(waiting, None)
        while each is not None or not outputs.written:  # of no sample, one empty tar
            with outputs.next() as writer:
                while each is not None and _fits(each, writer, max_bytes, max_samples):
                    writer.add(each)
                    account.written += 1
                    each = next(waiting, None)
            account.bytes += writer.size
    return account, [outputs.locate(each) for each in outputs.written]


def _fits(
    sample: LaidOut, writer: TarWriter, max_bytes: int | None, max_samples: int | None
) -> bool:
    """Whether a sample goes into the tar under way; the first always does."""
    if not writer.samples:
        return True
    if max_samples is not None and writer.samples >= max_samples:
        return False
    after = writer.size + sample.size
    return max_bytes is None or after + len(tar.end(after)) <= max_bytes
