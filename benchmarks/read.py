"""Reading all samples, one process, raw bytes, page cache warm: side by side.

The same shards for us, webdataset, wids and datasets; litdata and MosaicML streaming get their own format
of the same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import corpus, ours, readers
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
from benchmarks.readers import HUGGING_FACE, LITDATA, MOSAIC, WEBDATASET, WIDS, sizes
from wds_pipeline.training import Dataset, open_dataset

OURS = "`open_dataset`"
BUFFER = 1000  # samples: what webdataset's own examples shuffle

Ways = dict[str, tuple[Callable[[], int], int]]
"""By name, how to read all samples, which returns the bytes read; and how many these have to be."""


def run(settings: Settings) -> Section:
    with readers.quiet():
        tables = [_run(settings, name) for name in settings.corpora]
    notes = readers.missing((WEBDATASET, WIDS, MOSAIC, LITDATA, HUGGING_FACE))
    notes.append(
        "Every contender's bytes are counted and compared, but for Hugging Face's json, which it parses."
    )
    return Section("Reading", tables, notes)


def _run(settings: Settings, name: str) -> Table:
    url = str(published(settings, name))
    dataset = open_dataset(url)
    ways = {**_ours(url, dataset), **_peers(dataset, settings.folder)}
    contenders = [Contender(who, checked(way, wanted)) for who, (way, wanted) in ways.items()]
    seconds = take_turns(contenders, settings.rounds)
    dataset.close()
    return table(name, len(dataset), seconds, WEBDATASET)


def _ours(url: str, dataset: Dataset) -> Ways:
    ways: dict[str, Callable[[], int]] = {
        f"{OURS}, stored order": lambda: sizes(dataset),
        f"{OURS}, stored order, opened anew": lambda: sizes(open_dataset(url)),
        f"{OURS}: `.webdataset()`": lambda: sizes(dataset.webdataset()),
        f"{OURS}: `.webdataset(shuffle_shards=True).shuffle({BUFFER})`": lambda: sizes(
            dataset.webdataset(shuffle_shards=True).shuffle(BUFFER)
        ),
        f"{OURS}: `.stream(shuffle=False)`": lambda: sizes(dataset.stream(seed=0, shuffle=False)),
        f'{OURS}: `.stream(shuffle="window")`': lambda: sizes(dataset.stream(seed=0)),
        f'{OURS}: `.stream(shuffle="full")`': lambda: sizes(dataset.stream(seed=0, shuffle="full")),
        f"{OURS}: `.stream(batch_size=64)`": lambda: sum(
            sizes(batch) for batch in dataset.stream(seed=0, batch_size=64, last="short")
        ),
    }
    wanted = readers.wanted_bytes(dataset)
    return {name: (way, wanted) for name, way in ways.items()}


def _peers(dataset: Dataset, folder: Path) -> Ways:
    """Each as it reads in order, and as it shuffles."""
    wanted = readers.wanted_bytes(dataset)
    urls = dataset.urls
    ways: Ways = {}

    def add(name: str, samples: Callable[[], Any]) -> None:
        ways[name] = (lambda: sizes(samples()), wanted)

    if readers.here(WEBDATASET):
        add(WEBDATASET, lambda: readers.open_webdataset(urls))
        add(
            f"{WEBDATASET}, shards shuffled, `.shuffle({BUFFER})`",
            lambda: readers.open_webdataset(urls, BUFFER),
        )
    if readers.here(WIDS):
        wids = readers.open_wids(dataset)
        ways[WIDS] = (lambda: sum(readers.wids_sizes(wids[i]) for i in range(len(wids))), wanted)
    if readers.here(MOSAIC):
        mds = readers.write_mosaic(dataset, folder)
        add(MOSAIC, lambda: readers.open_mosaic(mds))
        add(f"{MOSAIC}, shuffled", lambda: readers.open_mosaic(mds, shuffle=True))
    if readers.here(LITDATA):
        chunks = readers.write_litdata(dataset, folder)
        add(LITDATA, lambda: readers.open_litdata(chunks))
        add(f"{LITDATA}, shuffled", lambda: readers.open_litdata(chunks, shuffle=True))
    if readers.here(HUGGING_FACE):
        opened = readers.open_hugging_face(urls)
        but_json = readers.wanted_bytes(dataset, ("jpg", "txt"))
        ways[HUGGING_FACE] = (lambda: readers.hugging_face_sizes(opened), but_json)
    return ways


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


def table(
    name: str,
    samples: int,
    seconds: dict[str, list[Took]],
    base: str,
    fewer: dict[str, int] | None = None,
) -> Table:
    """Samples a second of each contender, and how many times those of `base`.

    `fewer`: how many samples those read who did not read all.
    """
    columns = ["what", "samples/s", "median samples/s", "CPU s", f"× {base}"]
    found = Table(f"{name}: {samples:,} samples", columns)
    for who, rounds in seconds.items():
        count = (fewer or {}).get(who, samples)
        ratio = count / best(rounds) / (samples / best(seconds[base]))
        found.rows.append([who, count / best(rounds), count / median(rounds), cpu(rounds), ratio])
    return found


def checked(way: Callable[[], Any], wanted: Any, what: str = "bytes") -> Callable[[], Took]:
    """Takes the time of what returns what it has read. Raises RuntimeError for something else."""

    def run() -> Took:
        watch = Stopwatch()
        found = way()
        took = watch.took()
        if found != wanted:
            raise RuntimeError(f"{what}: found {found}; expected {wanted}")
        return took

    return run
