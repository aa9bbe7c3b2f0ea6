"""Reading all samples in stored order, one process, raw bytes, page cache warm: side by side.

The same shards for webdataset, wids and us; litdata and MosaicML streaming get their own format of the
same samples, where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import corpus, ours
from benchmarks.corpus import CORPORA
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    log,
    median,
    take_turns,
)
from wds_pipeline.training import Dataset, open_dataset

FIELDS = ("jpg", "json", "txt")
OURS = "`open_dataset`"
WEBDATASET = "webdataset `WebDataset`"
WIDS = "wids `ShardListDataset`"


def run(settings: Settings) -> Section:
    missing: set[str] = set()
    tables = [_run(settings, name, missing) for name in settings.corpora]
    notes = [f"not installed, so not here: {', '.join(sorted(missing))}"] if missing else []
    return Section("Reading in stored order", tables, notes)


def _run(settings: Settings, name: str, missing: set[str]) -> Table:
    url = str(published(settings, name))
    dataset = open_dataset(url)
    wanted = sum(sizes_of(dataset))
    ways: dict[str, Callable[[], int] | None] = {
        OURS: lambda: sizes(dataset),
        f"{OURS}, opened anew": lambda: sizes(open_dataset(url)),
        f"{OURS}`.webdataset()`": lambda: sizes(dataset.webdataset()),
        WEBDATASET: lambda: sizes(by_webdataset(dataset.urls)),
        **{peer: make(dataset, settings.folder) for peer, make in PEERS.items()},
    }
    missing |= {who for who, way in ways.items() if way is None}
    contenders = [Contender(who, checked(way, wanted)) for who, way in ways.items() if way]
    seconds = take_turns(contenders, settings.rounds)
    dataset.close()
    return table(name, len(dataset), seconds, WEBDATASET)


def published(settings: Settings, name: str) -> Path:
    """The destination of a corpus, made once and found again."""
    made = CORPORA[name]
    made = corpus.quick(made) if settings.quick else made
    target = settings.folder / f"published-{name}-{made.samples}"
    if not target.exists():
        raw = corpus.make(made, settings.folder)
        log(f"publishing the corpus {name}")
        parts: dict[str, Any] = {
            "shards": {"max_bytes": made.shard_bytes},
            "verify": {"level": "stat"},
        }
        ours.build_once(str(raw), str(target), **parts)
    return target


def table(name: str, samples: int, seconds: dict[str, list[Took]], base: str) -> Table:
    """Samples a second of each contender, and how many times those of `base`."""
    columns = ["what", "samples/s", "median samples/s", "CPU s", f"× {base}"]
    found = Table(f"{name}: {samples:,} samples", columns)
    for who, rounds in seconds.items():
        ratio = best(seconds[base]) / best(rounds)
        found.rows.append(
            [who, samples / best(rounds), samples / median(rounds), cpu(rounds), ratio]
        )
    return found


def checked(count: Callable[[], int], wanted: int) -> Callable[[], Took]:
    """Takes the time of what returns the bytes that it has read. Raises RuntimeError for too few."""

    def run() -> Took:
        watch = Stopwatch()
        found = count()
        took = watch.took()
        if found != wanted:
            raise RuntimeError(f"{found:,} bytes were read, {wanted:,} there are")
        return took

    return run


def sizes(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all fields."""
    found = 0
    for sample in samples:
        found += len(sample["jpg"]) + len(sample["json"]) + len(sample["txt"])
    return found


def sizes_of(dataset: Dataset) -> Iterator[int]:
    """The bytes of each shard's fields, as its member index has them."""
    for shard in range(len(dataset.catalog.shards)):
        yield int(dataset.catalog.members(shard).sizes.sum())


def by_webdataset(urls: list[str]) -> Any:
    """What everybody does."""
    import webdataset

    return webdataset.WebDataset(urls, shardshuffle=False)


def open_wids(dataset: Dataset) -> Any:
    """The same shards in wids, which takes local files as they are; None where it is not installed."""
    if not (importlib.util.find_spec("wids") and importlib.util.find_spec("torch")):
        return None
    import wids

    warnings.simplefilter("ignore", DeprecationWarning)
    shards = [
        {"url": shard.url, "nsamples": shard.samples, "filesize": shard.bytes}
        for shard in dataset.catalog.shards
    ]
    return wids.ShardListDataset(
        shards, localname=lambda url: url, keep=True, transformations=[], lru_size=100
    )


def wids_sizes(sample: dict[str, Any]) -> int:
    """The bytes of a sample's fields in wids: files in memory, with a dot in their names."""
    return sum(sample[f".{name}"].getbuffer().nbytes for name in FIELDS)


def _wids(dataset: Dataset, folder: Path) -> Callable[[], int] | None:
    opened = open_wids(dataset)
    if opened is None:
        return None
    return lambda: sum(wids_sizes(opened[number]) for number in range(len(opened)))


def _mosaic(dataset: Dataset, folder: Path) -> Callable[[], int] | None:
    if not importlib.util.find_spec("streaming"):
        return None
    from streaming import MDSWriter, StreamingDataset  # type: ignore[import-not-found]

    out = folder / f"mds-{len(dataset)}"
    shutil.rmtree(out, ignore_errors=True)
    with MDSWriter(out=str(out), columns=dict.fromkeys(FIELDS, "bytes")) as writer:
        for sample in dataset:
            writer.write({name: sample[name] for name in FIELDS})
    opened = StreamingDataset(local=str(out), shuffle=False, batch_size=64)
    return lambda: sizes(opened)


def _litdata(dataset: Dataset, folder: Path) -> Callable[[], int] | None:
    if not importlib.util.find_spec("litdata"):
        return None
    from litdata import StreamingDataset  # type: ignore[import-not-found]
    from litdata.streaming.writer import BinaryWriter  # type: ignore[import-not-found]

    out = folder / f"litdata-{len(dataset)}"
    shutil.rmtree(out, ignore_errors=True)
    writer = BinaryWriter(str(out), chunk_bytes="64MB")
    for number, sample in enumerate(dataset):
        writer.add_item(number, {name: sample[name] for name in FIELDS})
    writer.done()
    writer.merge(1)
    if not json.loads((out / "index.json").read_text())["chunks"]:
        raise RuntimeError(f"{out}: litdata wrote nothing")
    opened = StreamingDataset(str(out))
    return lambda: sizes(opened)


PEERS = {
    WIDS: _wids,
    "MosaicML streaming, its own format": _mosaic,
    "litdata, its own format": _litdata,
}
