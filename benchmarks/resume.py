"""From an interrupted epoch to its next sample: how long that takes, and whether it is the right one.

Each contender goes through a part of an epoch, notes its state and what comes next. Then everything is
opened anew, the state loaded, and the next sample or batch taken: it has to be that one.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import readers
from benchmarks.measure import Section, Settings, Table, log
from benchmarks.read import published
from benchmarks.readers import HUGGING_FACE, LITDATA, MOSAIC, WEBDATASET
from wds_pipeline.training import Dataset, open_dataset

_PARTS = (0.5, 0.9)
_BATCH = 64
_WORKERS = 2
_OURS = "wds_pipeline: `stream()`, window shuffle"
_OURS_STORED = "wds_pipeline: `stream(shuffle=False)`"
_OURS_FULL = 'wds_pipeline: `stream(shuffle="full")`'
_OURS_LOADER = "wds_pipeline: `stream().loader()`"
_STATEFUL = "torchdata's StatefulDataLoader"


@dataclass(frozen=True)
class Way:
    """How one reader does it. `open` gives what is iterated over; `state` and `load` are None where
    what was read is skipped, as there is no state."""

    name: str
    open: Callable[[], Any]
    state: Callable[[Any, int], Any] | None = None  # of what was opened, after so many items
    load: Callable[[Any, Any], object] | None = None


def run(settings: Settings) -> Section:
    section = Section("Resuming within an epoch")
    with readers.quiet():
        for name in settings.corpora:
            url = str(published(settings, name))
            dataset = open_dataset(url)
            for title, ways, batch in (
                ("in process", [*_ours(url), *_peers(dataset, settings.folder)], 1),
                (
                    f"a DataLoader of {_WORKERS} workers, batches of {_BATCH}",
                    [*_our_loaders(url), *_peers_loaders(dataset, settings.folder)],
                    _BATCH,
                ),
            ):
                title = f"{name}: {len(dataset):,} samples, {title}"
                section.tables.append(_table(title, ways, len(dataset) // batch, settings.rounds))
            dataset.close()
    section.notes += [
        "Milliseconds, the best of the rounds: of opening, with the import of nothing; and of loading the "
        "state and taking the next sample or batch, after so much of an epoch. With workers the start of "
        "these is in it.",
        "What came next was compared with what comes next without an interruption.",
        *readers.missing((WEBDATASET, MOSAIC, LITDATA, HUGGING_FACE)),
    ]
    return section


def _table(title: str, ways: list[Way], items: int, rounds: int) -> Table:
    """`items`: of an epoch."""
    places = {f"{part:.0%}": int(items * part) for part in _PARTS}
    table = Table(title, ["what", "opening, ms", *(f"next at {each}, ms" for each in places)])
    marks = {way.name: [_mark(way, place) for place in places.values()] for way in ways}
    took: dict[str, list[list[float]]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            found = [_resume(way, mark) for mark in marks[way.name]]
            took[way.name].append([min(each[0] for each in found), *(each[1] for each in found)])
            log(f"{way.name}: {', '.join(f'{each[1] * 1000:.1f} ms' for each in found)}")
    for way in ways:
        table.rows.append(
            [way.name, *(1000 * min(each) for each in zip(*took[way.name], strict=True))]
        )
    return table


@dataclass(frozen=True)
class _Mark:
    """A place in an epoch: the state there, and what comes next."""

    place: int
    state: Any
    next: list[str]


def _mark(way: Way, place: int) -> _Mark:
    opened = way.open()
    iterator = iter(opened)
    for _ in range(place):
        next(iterator)
    state = way.state(opened, place) if way.state else None
    mark = _Mark(place, state, _captions(next(iterator)))
    _end(iterator)
    return mark


def _resume(way: Way, mark: _Mark) -> tuple[float, float]:
    """The seconds of opening, and from there to the next sample. Raises RuntimeError for another one."""
    start = time.perf_counter()
    opened = way.open()
    ready = time.perf_counter()
    if way.load is not None:
        way.load(opened, mark.state)
    iterator = iter(opened)
    for _ in range(mark.place if way.load is None else 0):
        next(iterator)
    found = next(iterator)
    done = time.perf_counter()
    if _captions(found) != mark.next:
        raise RuntimeError(
            f"{way.name}: resumed after {mark.place:,} with {_captions(found)[0]!r}, but {mark.next[0]!r} "
            "was next"
        )
    _end(iterator)
    return ready - start, done - ready


def _end(iterator: Iterator[Any]) -> None:
    """Ends generators and worker processes now, and not within the time of another."""
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
    del iterator
    gc.collect()


def _captions(found: Any) -> list[str]:
    """Tells samples apart: the captions of one, or of a batch of them."""
    if isinstance(found, dict):
        texts = found["txt"] if isinstance(found["txt"], list) else [found["txt"]]
    else:
        texts = [sample["txt"] for sample in found]
    return [text if isinstance(text, str) else bytes(text).decode() for text in texts]


def _ours(url: str) -> list[Way]:
    def way(name: str, **options: Any) -> Way:
        return Way(
            name,
            lambda: open_dataset(url).stream(seed=0, **options),
            lambda stream, _: stream.state_dict(),
            lambda stream, state: stream.load_state_dict(state),
        )

    return [way(_OURS), way(_OURS_STORED, shuffle=False), way(_OURS_FULL, shuffle="full")]


def _peers(dataset: Dataset, folder: Path) -> list[Way]:
    ways: list[Way] = []
    if readers.here(MOSAIC):
        mds = readers.write_mosaic(dataset, folder)
        for name, shuffle in ((MOSAIC, False), (f"{MOSAIC}, shuffled", True)):
            ways.append(
                Way(
                    name,
                    partial(readers.open_mosaic, mds, shuffle=shuffle),
                    lambda opened, count: opened.state_dict(count, True),
                    lambda opened, state: opened.load_state_dict(state),
                )
            )
    if readers.here(LITDATA):
        chunks = readers.write_litdata(dataset, folder)
        for name, shuffle in ((LITDATA, False), (f"{LITDATA}, shuffled", True)):
            ways.append(
                Way(
                    name,
                    partial(readers.open_litdata, chunks, shuffle=shuffle),
                    lambda opened, count: opened.state_dict(count, 1, 1),
                    lambda opened, state: opened.load_state_dict(state),
                )
            )
    if readers.here(HUGGING_FACE):
        ways.append(
            Way(
                HUGGING_FACE,
                lambda: readers.open_hugging_face(dataset.urls),
                lambda opened, _: opened.state_dict(),
                lambda opened, state: opened.load_state_dict(state),
            )
        )
    if readers.here(WEBDATASET):
        urls = dataset.urls
        ways.append(Way(f"{WEBDATASET}, by skipping", lambda: readers.open_webdataset(urls)))
    return ways


def _stateful(name: str, dataset: Callable[[], Any], **options: Any) -> Way:
    """A dataset in torchdata's loader, which has the state of any that has one."""

    def opened() -> Any:
        library: Any = import_module("torchdata.stateful_dataloader")
        return library.StatefulDataLoader(
            dataset(), num_workers=_WORKERS, collate_fn=_as_it_is, **options
        )

    return Way(
        f"{name}, {_STATEFUL}",
        opened,
        lambda loader, _: loader.state_dict(),
        lambda loader, state: loader.load_state_dict(state),
    )


def _our_loaders(url: str) -> list[Way]:
    def stream() -> Any:
        return open_dataset(url).stream(seed=0, batch_size=_BATCH)

    ways = [
        Way(
            _OURS_LOADER,
            lambda: stream().loader(num_workers=_WORKERS),
            lambda loader, _: loader.state_dict(),
            lambda loader, state: loader.load_state_dict(state),
        )
    ]
    if readers.installed("torchdata"):
        ways.append(_stateful("wds_pipeline: `stream()`", stream, batch_size=None))
    return ways if readers.installed("torch") else []


def _peers_loaders(dataset: Dataset, folder: Path) -> list[Way]:
    loaders: dict[str, Callable[[], Any]] = {}
    if readers.here(MOSAIC):
        mds = readers.write_mosaic(dataset, folder)
        loaders[MOSAIC] = lambda: _loader("streaming", readers.open_mosaic(mds))
    if readers.here(LITDATA):
        chunks = readers.write_litdata(dataset, folder)
        loaders[LITDATA] = lambda: _loader("litdata", readers.open_litdata(chunks))
    ways = [
        Way(
            name,
            opened,
            lambda loader, _: loader.state_dict(),
            lambda loader, state: loader.load_state_dict(state),
        )
        for name, opened in loaders.items()
    ]
    urls = dataset.urls
    if readers.here(HUGGING_FACE) and readers.installed("torchdata"):
        made = lambda: readers.open_hugging_face(urls)  # noqa: E731
        ways.append(_stateful(HUGGING_FACE, made, batch_size=_BATCH))
    if readers.here(WEBDATASET) and readers.installed("torch"):
        ways.append(Way(f"{WEBDATASET}, by skipping", lambda: _webdataset_loader(urls)))
    return ways


def _loader(module: str, dataset: Any) -> Any:
    """The peer's own StreamingDataLoader."""
    made = import_module(module).StreamingDataLoader
    return made(dataset, batch_size=_BATCH, num_workers=_WORKERS, collate_fn=_columns)


def _webdataset_loader(urls: list[str]) -> Any:
    import webdataset

    pipeline = readers.open_webdataset(urls).batched(_BATCH, collation_fn=None)
    return webdataset.WebLoader(pipeline, batch_size=None, num_workers=_WORKERS)


def _columns(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """MosaicML's loader counts the samples of a dict right, and those of a list wrongly."""
    return {name: [sample[name] for sample in samples] for name in samples[0]}


def _as_it_is(samples: Any) -> Any:
    return samples
