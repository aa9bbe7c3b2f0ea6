"""Permutations of 0..n-1 that a key decides, the same on every machine and with every NumPy.

`np.random` promises no stream of numbers for ever; a job that resumes with another NumPy needs one.
"""

from __future__ import annotations

import numpy as np
import xxhash

_SMALL = 1 << 16
_ROUNDS = 6
_UP = np.uint64(0x9E3779B97F4A7C15)  # the constants of splitmix64, by Sebastiano Vigna (2015)
_ONE, _TWO = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key_of(*parts: object) -> int:
    """64 bits that some texts and numbers decide."""
    return xxhash.xxh3_64_intdigest(" ".join(map(str, parts)).encode())


def scatter(values: np.ndarray, key: int) -> np.ndarray:
    """Each value as 64 bits that look random: uint64, as many."""
    with np.errstate(over="ignore"):
        found = (values.astype(np.uint64) + np.uint64(key)) * _UP
        found ^= found >> np.uint64(30)
        found *= _ONE
        found ^= found >> np.uint64(27)
        found *= _TWO
        found ^= found >> np.uint64(31)
    return found


def permutation(count: int, key: int) -> np.ndarray:
    """0..count-1 in random order: int64."""
    return np.argsort(scatter(np.arange(count), key), kind="stable")


class Permutation:
    """0..count-1 in random order, any stretch of it in time and memory that do not grow with `count`.

    A Feistel network on the next power of two, walked until it is inside: J. Black and P. Rogaway,
    Ciphers with Arbitrary Finite Domains, 2002. Few numbers are sorted instead, since such a network
    does not reach all their orders.
    """

    def __init__(self, count: int, key: int) -> None:
        self._count = count
        self._table = permutation(count, key) if count <= _SMALL else None
        bits = max(count - 1, 1).bit_length()
        self._low = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [key_of(key, each) for each in range(_ROUNDS)]

    def at(self, positions: np.ndarray) -> np.ndarray:
        """What is at these positions: int64."""
        if self._table is not None:
            return self._table[positions]
        found = self._network(positions.astype(np.uint64))
        outside = np.flatnonzero(found >= self._count)
        while len(outside):
            again = self._network(found[outside])
            found[outside] = again
            outside = outside[again >= self._count]
        return found.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        high, low = values >> self._low, values & self._low_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _round(high, key) & self._low_mask
            else:
                high ^= _round(low, key) & self._high_mask
        return (high << self._low) | low


def _round(values: np.ndarray, key: int) -> np.ndarray:
    """32 bits of each value and a key: half the work of `scatter`, which several rounds make up for."""
    with np.errstate(over="ignore"):
        found = values + np.uint64(key)
        found *= _UP
        found ^= found >> np.uint64(32)
        found *= _ONE
    found >>= np.uint64(32)
    return found
