"""Samples of several open shards in no order: what to read is worked out for many of them at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from wds_pipeline.training.open_shard import OpenShard
from wds_pipeline.training.planning import each_of


def scattered(
    shards: dict[int, OpenShard], which: np.ndarray, samples: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Samples by their numbers in the shards `which`, in this order."""
    one = next(iter(shards.values()))
    names = one.names
    if names is None or any(each.names != names for each in shards.values()):
        for number, sample in zip(which.tolist(), samples.tolist(), strict=True):
            yield shards[number].sample(sample)
        return
    # Columns of plain numbers: a tuple for each sample would have the garbage collector look at all.
    bounds = np.empty((len(which), 2 * len(names)), np.int64)
    apart, starts = np.empty(len(which), bool), np.empty(len(which), np.int64)
    keys = np.empty(len(which), object)
    for number, where in each_of(which):
        members, mine = shards[number].members, samples[where]
        bounds[where] = members.bounds.reshape(len(members), -1)[mine]
        apart[where] = members.extents.apart[mine]
        keys[where] = members.keys.take(mine).to_numpy(zero_copy_only=False)
        starts[where] = shards[number].start
    begins = bounds[:, 0].copy()
    sizes = bounds[:, -1] - begins
    sizes[apart] = -1
    columns = (which, samples, starts + samples, keys, begins, sizes)
    cuts = zip(*(bounds - begins[:, None]).T.tolist(), strict=True)
    fds = {number: shard.fd for number, shard in shards.items()}
    urls = {number: shard.url for number, shard in shards.items()}
    pread = os.pread
    for number, sample, index, key, begin, size, cut in zip(
        *(column.tolist() for column in columns), cuts, strict=True
    ):
        if size < 0:
            yield shards[number].sample(sample)
            continue
        data = pread(fds[number], size, begin)
        if len(data) != size:
            data = shards[number].read_on(data, begin, size)
        found: dict[str, Any] = {"__key__": key, "__url__": urls[number], "__index__": index}
        at = iter(cut)
        for name in names:
            found[name] = data[next(at) : next(at)]
        yield found
