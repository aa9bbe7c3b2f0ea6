"""How fast a dataset is read with a job's own settings, and which part of it is the slowest.

The same samples are taken several times, each time with one part less: as asked, without decoding, and
the plain bytes of the shards; decoding and collating also alone, in memory. What is left of the whole is
Python's own work a sample. All of it is bounded in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle, islice, takewhile
from typing import Any

from wds_pipeline.dataset.wording import counted
from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.storage import LocalStorage
from wds_pipeline.training import page_cache
from wds_pipeline.training.dataset import Dataset
from wds_pipeline.training.threads import cores, mapped

_SHARES = {"asked": 0.4, "again": 0.25, "raw": 0.1, "decode": 0.1, "collate": 0.05, "disk": 0.05}
_IN_MEMORY = 128 * 1024 * 1024  # bytes of samples that are kept to be decoded again
_BLOCK = 4 * 1024 * 1024
_SLOWER = 1.5  # times, from which on the first pass is said to be slower than the second
_IN_CACHE = 0.9  # this part of shards in the page cache, or more, is all of them
_DRAWN = 0.1  # seconds between two reports of progress
_FEW = 32  # samples that a thread takes at a time, as in a stream

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What to measure: `seconds` is about how long all of it may take. `cold` drops local shards from
    the page cache before each pass. The others are those of `Dataset.stream` and of its loader."""

    seconds: float = 10.0
    batch_size: int | None = 64
    shuffle: str | bool = "window"
    threads: int | None = None
    workers: int = 0
    collate: Callable[[list[Any]], Any] | None = None
    cold: bool = False


@dataclass
class Pass:
    """Samples that were taken in so many seconds; `first` is when the first of them came, `waits` how
    long each step was waited for, both in seconds."""

    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    first: float = 0.0
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.seconds else 0.0

    def percentile(self, part: float) -> float:
        """How long a step was waited for, in seconds, at most, by this part of the steps."""
        waits = sorted(self.waits)
        return waits[min(int(part * len(waits)), len(waits) - 1)] if waits else 0.0


@dataclass
class ReadBench:
    """What was found. `hands` is how many threads or workers decoded and collated at a time. `parts` are
    the seconds that a sample takes in each part of the work, done by so many. `cached` is which part of
    local shards was in the page cache before the first pass; None where nobody knows."""

    dataset: Dataset
    settings: Settings
    hands: int
    cached: float | None
    first_pass: Pass
    again: Pass
    raw: Pass
    decode: Pass | None
    collate: Pass | None
    disk: Pass | None
    parts: dict[str, float]

    @property
    def sample_bytes(self) -> float:
        """Of a sample's fields, as they are stored."""
        return self.raw.bytes / max(self.raw.samples, 1)

    @property
    def bottleneck(self) -> str:
        """The part that takes longest: read, decode, collate or Python."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def was_cold(self) -> bool:
        """Whether the first pass was slower than the second because its bytes were not at hand."""
        slower = self.first_pass.rate * _SLOWER < self.again.rate
        # Of a store, that is what a cache of ours is for.
        return slower and (self.disk is None if self.cached is None else self.cached < _IN_CACHE)


def measure(dataset: Dataset, settings: Settings, progress: Progress | None = None) -> ReadBench:
    """Measures a dataset as it was opened, with its fields and decoding.

    Raises ConfigError for settings that cannot be, VersionError for a dataset without samples, and what
    reading and decoding raise.
    """
    if not len(dataset):
        raise VersionError(f"{dataset.catalog.named}: there are no samples to read")
    return _Measuring(dataset, settings, progress).all()


class _Measuring:
    def __init__(self, dataset: Dataset, settings: Settings, progress: Progress | None) -> None:
        self._dataset = dataset
        self._settings = settings
        self._progress = progress
        self._due = 0.0
        sizes = sum(shard.bytes for shard in dataset.catalog.shards)
        self._mean = sizes / max(len(dataset.catalog), 1)
        self._local = isinstance(dataset.catalog.storage, LocalStorage)
        if settings.cold and not (self._local and page_cache.can_drop()):
            raise ConfigError(
                f"{dataset.catalog.named}: cold: {dataset.catalog.storage.url} is no folder whose shards can "
                "be dropped from the page cache; leave it out"
            )
        self._stream()  # settings that cannot be are said at once
        dataset.catalog.members(0)  # what Python imports for it does not count

    def all(self) -> ReadBench:
        asked, decode, collate = self._dataset, None, None
        cached = page_cache.cached(self._paths()) if self._local else None
        first = self._pass("first pass", "asked", self._asked, 0)
        count = first.samples
        again = self._pass("again", "again", self._asked, count)
        plain = Dataset(
            asked.catalog,
            fields=asked.fields,
            cache=asked.cache,
            verify=asked.verify,
            indices=asked.indices,
        )
        with plain:
            self._dataset = plain
            raw = self._pass("reading alone", "raw", self._raw, count)
            samples = _up_to(self._raw(), count, self._limit("raw"))
        mean = sum(map(_size, samples)) / len(samples)
        self._dataset = asked
        if asked.decode is not None:
            parts = [samples[at : at + _FEW] for at in range(0, len(samples), _FEW)]
            decode = self._alone("decoding alone", "decode", parts, self._decode, _FEW)
        if self._settings.collate is not None:
            collate = self._collate(samples)
        disk = self._disk(count) if self._local else None
        for each in (first, again, raw):
            each.bytes = int(each.samples * mean)
        found = ReadBench(
            asked,
            self._settings,
            self._hands(),
            cached,
            first,
            again,
            raw,
            decode,
            collate,
            disk,
            {},
        )
        found.parts = self._parts(found)
        return found

    # What is iterated over.

    def _stream(self) -> Any:
        settings = self._settings
        stream = self._dataset.stream(
            shuffle=settings.shuffle,
            batch_size=settings.batch_size,
            threads=settings.threads,
            collate=settings.collate,
            last="short",
            rank=0,
            world_size=1,
        )
        if not settings.workers:
            return stream
        return stream.loader(settings.workers)

    def _asked(self) -> Iterator[int]:
        """How many samples each step has."""
        size = self._settings.batch_size
        left = len(self._dataset)
        for _ in self._stream():
            step = 1 if size is None else min(size, left)
            left -= step
            yield step

    def _raw(self) -> Iterator[Any]:
        shuffle = self._settings.shuffle
        yield from self._dataset.stream(
            shuffle=shuffle, threads=0, last="short", rank=0, world_size=1
        )

    def _decode(self, samples: list[Any]) -> list[Any]:
        assert self._dataset.decode is not None
        return list(self._dataset.errors.decoded(self._dataset.decode, samples))

    # Passes.

    def _limit(self, name: str) -> float:
        return self._settings.seconds * _SHARES[name]

    def _report(self, what: str, samples: int) -> None:
        # A bar that is drawn for each sample would be what is measured.
        if self._progress is not None and (now := time.perf_counter()) >= self._due:
            self._due = now + _DRAWN
            self._progress(what, int(samples * self._mean), 0)

    def _pass(self, what: str, name: str, take: Callable[[], Iterator[Any]], count: int) -> Pass:
        """Takes the first `count` samples of the epoch, over and over until the time is up; with 0, as
        many as there is time for, at most all of them once."""
        limit, found = self._limit(name), Pass()
        while True:
            self._one_pass(what, take, count, limit, found)
            if not count or found.seconds >= limit:
                return found

    def _one_pass(
        self,
        what: str,
        take: Callable[[], Iterator[Any]],
        count: int,
        limit: float,
        found: Pass,
    ) -> None:
        if self._settings.cold:
            page_cache.drop(self._paths())
        begin = last = time.perf_counter()
        taken, spent = 0, found.seconds
        iterator = take()
        with closing(iterator):  # type: ignore[type-var]
            for step in iterator:
                now = time.perf_counter()
                if not found.first:
                    found.first = now - begin
                taken += step if isinstance(step, int) else 1
                found.waits.append(now - last)
                self._report(what, found.samples + taken)
                last = now
                if (count and taken >= count) or spent + now - begin >= limit:
                    break
        found.samples += taken
        found.seconds += last - begin

    def _alone(
        self,
        what: str,
        name: str,
        parts: list[list[Any]],
        work: Callable[[list[Any]], Any],
        size: int,
    ) -> Pass:
        """Does the work for parts in memory, in as many threads as asked, until the time is up."""
        work(parts[0])  # what it imports does not count
        found, begin = Pass(), time.perf_counter()
        end = begin + self._limit(name)
        until = takewhile(lambda _: time.perf_counter() < end, cycle(parts))
        for _ in mapped(self._hands() if self._hands() > 1 else 0, work, until):
            found.samples += size
            found.seconds = time.perf_counter() - begin
            self._report(what, found.samples)
        return found

    def _collate(self, samples: list[Any]) -> Pass:
        size = min(self._settings.batch_size or 1, len(samples))
        batch = samples[:size]
        if self._dataset.decode is not None:
            batch = self._decode(batch)
        assert self._settings.collate is not None
        return self._alone("collating alone", "collate", [batch], self._settings.collate, size)

    def _disk(self, count: int) -> Pass:
        """The plain bytes of as many samples, in large blocks."""
        if self._settings.cold:
            page_cache.drop(self._paths())
        found, limit, begin = Pass(), self._limit("disk"), time.perf_counter()
        most = count * self._mean
        for path in self._paths():
            with open(path, "rb", buffering=0) as file:
                while block := file.read(_BLOCK):
                    found.bytes += len(block)
                    found.samples = max(int(found.bytes / self._mean), 1)
                    found.seconds = time.perf_counter() - begin
                    self._report("shards alone", found.samples)
                    if found.bytes >= most or found.seconds >= limit:
                        return found
        return found

    def _paths(self) -> list[str]:
        storage = self._dataset.catalog.storage
        return [storage.locate(shard.path) for shard in self._dataset.catalog.shards]

    # What it means.

    def _parts(self, found: ReadBench) -> dict[str, float]:
        """Seconds a sample, of each part. They overlap where there are threads or workers: what is left
        of the whole is Python's, at least what reading alone takes beyond the plain bytes."""
        first, again, raw = (
            each.seconds / max(each.samples, 1)
            for each in (found.first_pass, found.again, found.raw)
        )
        whole = min(first, again)  # a busy machine, or a cold cache, makes one of them longer
        parts = {"read": raw, "decode": 0.0, "collate": 0.0}
        if found.disk is not None:  # of these fields alone
            a_byte = found.disk.seconds / max(found.disk.bytes, 1)
            parts["read"] = min(raw, a_byte * found.sample_bytes)
        for name, each in (("decode", found.decode), ("collate", found.collate)):
            if each is not None:
                parts[name] = each.seconds / max(each.samples, 1)
        parts["Python"] = max(whole - sum(parts.values()), 0.0)
        return parts

    def _hands(self) -> int:
        """How many decode and collate at a time."""
        settings = self._settings
        if settings.workers:
            return min(settings.workers, cores())
        return max(min(cores() if settings.threads is None else settings.threads, cores()), 1)


def advice(found: ReadBench) -> str:
    """What may help against the slowest part, in a sentence or two."""
    part = found.bottleneck
    if part == "decode":
        assert found.decode is not None
        return (
            f"decoding alone comes to {found.decode.rate:,.0f} samples/s with "
            f"{counted(found.hands, 'thread')} on {counted(cores(), 'core')}: more of them help, or smaller "
            "pictures (ImageSpec(…, short_side=…)), or fewer fields"
        )
    if part == "collate":
        return (
            "stacking batches takes longest: decode to arrays of one size, or let threads collate"
        )
    if part == "read":
        if found.disk is None:
            return "the store is the limit: keep what was read on a local disk (cache=…), read fewer fields"
        if (found.cached or 0.0) >= _IN_CACHE and not found.settings.cold:
            return (
                "copying from memory is the limit, for these shards are in the page cache: fewer fields "
                "(fields=…) help; --cold says what the disk does"
            )
        return "the disk is the limit: a faster one, or fewer fields (fields=…), helps; more threads do not"
    if found.settings.workers:
        return (
            "handing samples from process to process takes longest: try threads in one process "
            "(--workers 0), or collate to tensors in the workers"
        )
    return (
        "Python's own work a sample takes longest: larger batches, or fewer and larger fields, help; "
        "several ranks or workers share it"
    )


def _size(sample: Any) -> int:
    return sum(len(data) for name, data in sample.items() if not name.startswith("__"))


def _up_to(samples: Iterable[Any], count: int, seconds: float) -> list[Any]:
    """The first samples, as many as are kept in memory, or come in so many seconds."""
    found, size, end = [], 0, time.perf_counter() + seconds
    for sample in islice(samples, count):
        found.append(sample)
        size += _size(sample)
        if size > _IN_MEMORY or time.perf_counter() > end:
            break
    return found
