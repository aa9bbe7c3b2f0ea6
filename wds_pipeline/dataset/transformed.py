"""Which transforms touch which samples: their digests are part of the digests of those alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.dataset.samples import Samples
from wds_pipeline.transforms.registry import Step


def transformed(found: Samples, steps: Sequence[Step]) -> Samples:
    """The samples with the digests that they have when these transforms are run on them.

    A transform of some fields is known not to touch a sample without them, as long as none before it may have
    made such a field. A transform of whole shards decides over all their samples, and makes others, of which
    those behind it may concern any.
    """
    count = len(found)
    touched = np.zeros(count, bool)
    which = np.zeros(count, np.uint64)  # a bit a step; there are never 64
    whole = False
    for number, step in enumerate(steps):
        whole |= step.whole
        concerned = np.ones(count, bool) if whole else _by_key(found, step)
        if step.fields is not None and not whole:
            concerned &= touched | _with_any(found, step.fields)
        touched |= concerned
        which |= concerned.astype(np.uint64) << np.uint64(number)
    digests = found.digests.copy()
    for bits in np.unique(which).tolist():
        if not bits:
            continue
        chain = "\0".join(step.digest for n, step in enumerate(steps) if bits >> n & 1).encode()
        rows = np.flatnonzero(which == bits)
        some = np.ascontiguousarray(digests[rows]).tobytes()
        again = [
            xxhash.xxh3_128_digest(some[at : at + 16] + chain) for at in range(0, len(some), 16)
        ]
        digests[rows] = np.frombuffer(b"".join(again), "V16")
    return replace(found, digests=digests)


def _by_key(found: Samples, step: Step) -> np.ndarray:
    if step.keys is None:
        return np.ones(len(found), bool)
    return np.fromiter(map(step.wants, found.keys.to_pylist()), bool, len(found))


def _with_any(found: Samples, fields: Sequence[str]) -> np.ndarray:
    """Which samples have one of these fields."""
    has = pc.is_in(found.files["field"].cast(pa.string()), pa.array(fields, pa.string()))
    return np.logical_or.reduceat(np.asarray(has), found.first[:-1])
