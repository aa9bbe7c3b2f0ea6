"""The order of an epoch: a pure function of the shards' digest, the seed and the epoch.

Any stretch of it is had without what comes before it, in time and memory that grow with the stretch
and the number of shards alone.

The shuffle: shards in random order, some at a time; their samples in blocks, which is how bytes are
read, and the blocks of those shards in random order; then windows of adjacent blocks, and in each its
samples in random order. The order is dealt to lanes, each with windows of its own, position by
position: where the number of ranks divides that of lanes, each rank reads whole blocks, and in a batch
are samples of all lanes. (The canonical nodes of MosaicML's streaming serve the same end.)
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import ByteSize, TypeAdapter, ValidationError

from wds_pipeline.errors import ConfigError
from wds_pipeline.training.bounded import Bounded
from wds_pipeline.training.permute import Permutation, key_of, permutation
from wds_pipeline.training.planning import each_of

Kind = Literal["window", "full", "stored"]
_KINDS: tuple[Kind, ...] = ("window", "full", "stored")
GROUP_BYTES = 16 * 1024 * 1024
"""Of samples that are read as one where no window says how many."""
_BLOCKS = 128
_BYTES = TypeAdapter(ByteSize)


@dataclass(frozen=True)
class Shuffle:
    """How far samples are mixed. A number counts samples, a text such as `"128MB"` is bytes of them.

    `window`: so many at once in memory, of all lanes; `block`: so many adjacent samples are read at
    once, and where it is bytes, at most a 128th of the window; `shards`: so many are mixed with each
    other; `lanes`: a number that the numbers of ranks
    divide. `kind` "full" puts each sample anywhere, and "stored" shuffles nothing; the others do not
    count then.
    """

    kind: Kind = "window"
    window: int | str = "128MB"
    block: int | str = "256kB"
    shards: int = 64
    lanes: int = 8

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            kinds = ", ".join(f'"{each}"' for each in _KINDS)
            raise ConfigError(f"shuffle: found {self.kind!r}; expected one of {kinds}")
        for name in ("window", "block", "shards", "lanes"):
            _at_least_one(name, getattr(self, name))

    @classmethod
    def of(cls, given: Shuffle | bool | str | None) -> Shuffle:
        """What a user wrote: True is "window", False and None are "stored". Raises ConfigError."""
        if isinstance(given, Shuffle):
            return given
        if given is True:
            return cls()
        return cls("stored" if given in (None, False) else given)  # type: ignore[arg-type]


def seed_of(given: Any) -> int:
    """A seed as a plain value, for a state that is kept. Raises ConfigError: None is no random one."""
    try:
        return operator.index(given)
    except TypeError:
        raise ConfigError(f"seed: found {given!r}; expected a whole number") from None


def _at_least_one(name: str, value: int | str) -> None:
    texts = name in ("window", "block")
    if isinstance(value, bool) or not isinstance(value, (int, str) if texts else int):
        ok = False
    elif isinstance(value, str):
        try:
            ok = _BYTES.validate_python(value) >= 1
        except ValidationError:
            ok = False
    else:
        ok = value >= 1
    if not ok:
        also = ' of samples, or bytes such as "128MB"' if texts else ""
        raise ConfigError(f"shuffle.{name}: found {value!r}; expected a number from 1{also}")


class Ordered(Protocol):
    """An order of the samples of an epoch, by their numbers in some dataset."""

    identity: dict[str, Any]
    """What decides it, but for the epoch: a few plain values."""

    def __len__(self) -> int: ...

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The numbers of the samples at these positions, which are below its length: int64."""
        ...

    def cuts(self, start: int, stop: int) -> Iterator[int]:
        """Where to cut these positions into stretches that are best read as one; ends with `stop`."""
        ...


class Order:
    """The order of the samples 0..N-1, which lie in shards of `sizes` samples."""

    def __init__(
        self, sizes: np.ndarray, digest: str, seed: int, shuffle: Shuffle, mean_bytes: float
    ) -> None:
        """`mean_bytes`: of a sample, for what `shuffle` says in bytes."""
        self._sizes = sizes[sizes > 0].astype(np.int64)
        self._starts = (np.cumsum(sizes) - sizes)[sizes > 0].astype(np.int64)
        self._count = int(self._sizes.sum())
        self._key = key_of(digest, seed)
        self._plan = _Plan.of(shuffle, self._count, mean_bytes)
        self.identity = {"digest": digest, "seed": seed, "shuffle": self._plan.text}
        self._windows: Bounded[tuple[int, int, int], np.ndarray] = Bounded(4 * self._plan.lanes)
        self._epochs: Bounded[int, _Blocks | Permutation] = Bounded(2)

    def __len__(self) -> int:
        return self._count

    def at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The numbers of the samples at these positions: int64."""
        if self._plan.kind == "stored":
            return positions
        if self._plan.kind == "full":
            return self._full(epoch).at(positions)
        lanes, window, found = (
            self._plan.lanes,
            self._plan.window,
            np.empty(len(positions), np.int64),
        )
        place, lane = np.divmod(positions, lanes)
        number, inside = np.divmod(place, window)
        of_window = number * lanes + lane
        for each, mine in each_of(of_window):
            found[mine] = self._window(epoch, each % lanes, each // lanes)[inside[mine]]
        return found

    def cuts(self, start: int, stop: int) -> Iterator[int]:
        """Where windows end, and at last `stop`."""
        step = self._plan.window * self._plan.lanes
        while (end := (start // step + 1) * step) < stop:
            yield end
            start = end
        if start < stop:
            yield stop

    def _full(self, epoch: int) -> Permutation:
        found = self._epochs.get(epoch)
        if found is None:
            made = Permutation(self._count, key_of(self._key, epoch))
            found = self._epochs.add(epoch, made)
        assert isinstance(found, Permutation)
        return found

    def _window(self, epoch: int, lane: int, number: int) -> np.ndarray:
        found = self._windows.get((epoch, lane, number))
        if found is None:
            lanes, window = self._plan.lanes, self._plan.window
            share, more = divmod(self._count, lanes)
            begin = lane * share + min(lane, more)  # lanes are stretches of the blocks' order
            length = share + (lane < more)
            first, last = begin + number * window, begin + min((number + 1) * window, length)
            mixed = permutation(last - first, key_of(self._key, epoch, lane, number))
            found = self._blocks(epoch).samples(first, last)[mixed]
            found = self._windows.add((epoch, lane, number), found)
        return found

    def _blocks(self, epoch: int) -> _Blocks:
        found = self._epochs.get(epoch)
        if found is None:
            key = key_of(self._key, epoch)
            made = _Blocks(self._sizes, self._starts, key, self._plan.block, self._plan.shards)
            found = self._epochs.add(epoch, made)
        assert isinstance(found, _Blocks)
        return found


class _Plan(NamedTuple):
    """A shuffle in numbers of samples; the window is a lane's."""

    kind: Kind
    window: int
    block: int
    shards: int
    lanes: int

    @classmethod
    def of(cls, shuffle: Shuffle, count: int, mean_bytes: float) -> _Plan:
        def samples(value: int | str) -> int:
            if isinstance(value, int):
                return value
            return max(int(_BYTES.validate_python(value) / max(mean_bytes, 1.0)), 1)

        if shuffle.kind != "window":
            return cls(shuffle.kind, samples(f"{GROUP_BYTES}B"), 1, 1, 1)
        window, lanes = samples(shuffle.window), shuffle.lanes
        if window >= count:  # all in one window: no order is left out
            count = max(count, 1)
            return cls("window", count, min(samples(shuffle.block), count), count, 1)
        lanes = min(lanes, window)
        in_lane = -(-count // lanes)
        windows = max(round(in_lane / (window // lanes)), 1)  # of about the same size
        block = min(samples(shuffle.block), window)
        if isinstance(shuffle.block, str):  # a window of few blocks would mix little
            block = min(block, max(window // _BLOCKS, 1))
        return cls("window", -(-in_lane // windows), block, max(shuffle.shards // lanes, 1), lanes)

    @property
    def text(self) -> str:
        """It in one line, for the state."""
        if self.kind != "window":
            return self.kind
        return " ".join(f"{name}={value}" for name, value in self._asdict().items())


class _Blocks:
    """The blocks of all shards in the order of an epoch, one behind the other."""

    def __init__(
        self, sizes: np.ndarray, starts: np.ndarray, key: int, block: int, together: int
    ) -> None:
        order = permutation(len(sizes), key)
        self._sizes, self._starts = sizes[order], starts[order]
        self._key, self._block, self._together = key, block, together
        ends = np.cumsum(self._sizes)
        firsts = np.arange(0, len(sizes), together)
        self._bounds = np.append((ends - self._sizes)[firsts], ends[-1:])  # of the groups of shards
        self._groups: Bounded[int, tuple[np.ndarray, np.ndarray]] = Bounded(64)

    def samples(self, first: int, last: int) -> np.ndarray:
        """The numbers of the samples from the `first` up to the `last` in this order."""
        parts = []
        group = int(np.searchsorted(self._bounds, first, side="right")) - 1
        while first < last:
            begin, end = int(self._bounds[group]), int(self._bounds[group + 1])
            until = min(last, end)
            parts.append(self._inside(group, first - begin, until - begin))
            first, group = until, group + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _inside(self, group: int, first: int, last: int) -> np.ndarray:
        numbers, ends = self._group(group)
        one = int(np.searchsorted(ends, first, side="right"))
        other = int(np.searchsorted(ends, last, side="left")) + 1
        before = ends[one - 1] if one else 0
        lengths = np.diff(ends[one:other], prepend=before)
        moved = numbers[one:other] - (ends[one:other] - lengths)
        return np.repeat(moved, lengths)[first - before : last - before] + np.arange(first, last)

    def _group(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """The first sample of each block of some shards, and how many samples there are up to its end."""
        found = self._groups.get(group)
        if found is None:
            mine = slice(group * self._together, (group + 1) * self._together)
            sizes, starts = self._sizes[mine], self._starts[mine]
            counts = -(-sizes // self._block)
            shard = np.repeat(np.arange(len(sizes)), counts)
            within = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
            firsts = within * self._block
            lengths = np.minimum(self._block, sizes[shard] - firsts)
            mixed = permutation(len(shard), key_of(self._key, group))
            found = ((starts[shard] + firsts)[mixed], np.cumsum(lengths[mixed]))
            found = self._groups.add(group, found)
        return found
