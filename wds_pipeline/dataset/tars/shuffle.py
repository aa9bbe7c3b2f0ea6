"""Samples in a random order that a seed decides, the same on every machine and with every NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.cat import write_all
from wds_pipeline.dataset.tars.inputs import find_inputs
from wds_pipeline.dataset.tars.outputs import open_output
from wds_pipeline.dataset.tars.places import Places

_STEP = np.uint64(0x9E3779B97F4A7C15)


def permutation(count: int, seed: int) -> np.ndarray:
    """The numbers below `count` in an order that any 64-bit seed decides."""
    numbers = np.arange(count, dtype=np.uint64)
    start = _mixed(np.array([seed % 2**64], np.uint64))[0]
    return np.argsort(_mixed(numbers * _STEP + start), kind="stable")


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): one to one, and each bit depends on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffle(
    names: Sequence[str],
    output: str,
    *,
    seed: int = 0,
    duplicates: str = "error",
    keep_whole: bool = False,
    force: bool = False,
) -> Account:
    """Writes the samples of all tars into one, in a random order over all of them.

    Arguments and errors as of `cat`; memory and room as of `sort`.
    """
    account = Account()
    inputs = find_inputs(names)
    places = Places(inputs)
    with open_output(output, inputs, force) as tar:
        for _ in places.read(account, duplicates=duplicates, keep_whole=keep_whole):
            pass
        order = permutation(len(places.keys), seed)
        write_all(places.samples(order.tolist()), tar, account)
    account.bytes = tar.size
    return account
