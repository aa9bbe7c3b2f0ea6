"""Single samples in random order, one process, raw bytes, page cache warm: side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import readers
from benchmarks.measure import Contender, Section, Settings, Table, take_turns
from benchmarks.read import OURS, checked, published, table
from benchmarks.readers import FIELDS, LITDATA, MOSAIC, WIDS, sizes
from wds_pipeline.training import Dataset, open_dataset

ONE = f"{OURS}: `ds[i]`"
_BATCH = 64
_FEW = 2000  # of litdata, which takes a chunk anew for most of them: milliseconds each
_LITDATA = f"{LITDATA}, {_FEW:,} samples"


def run(settings: Settings) -> Section:
    with readers.quiet():
        tables = [_run(settings, name) for name in settings.corpora]
    notes = [f"Fields: {', '.join(FIELDS)}. Each sample once, but for litdata."]
    return Section("Random access", tables, notes + readers.missing((WIDS, MOSAIC, LITDATA)))


def _run(settings: Settings, name: str) -> Table:
    url = str(published(settings, name))
    with open_dataset(url) as dataset, open_dataset(url, fields=["txt"]) as captions:
        order = Random(0).sample(range(len(dataset)), len(dataset))
        ways = {**_ours(dataset, order), **_peers(dataset, settings.folder, order)}
        wanted = readers.wanted_bytes(dataset)
        contenders = [Contender(who, checked(way, wanted)) for who, way in ways.items()]
        only = f"{OURS}, `fields=['txt']`: `ds[i]`"
        txt = readers.wanted_bytes(dataset, ("txt",))
        by_caption = checked(lambda: sum(len(captions[i]["txt"]) for i in order), txt)
        contenders.append(Contender(only, by_caption))
        if readers.here(LITDATA):
            few = order[:_FEW]
            litdata = readers.open_litdata(readers.write_litdata(dataset, settings.folder))
            by_litdata = checked(
                lambda: sizes(litdata[number] for number in few), sizes(dataset.__getitems__(few))
            )
            contenders.append(Contender(_LITDATA, by_litdata))
        seconds = take_turns(contenders, settings.rounds)
    base = WIDS if WIDS in seconds else ONE
    return table(name, len(order), seconds, base, {_LITDATA: len(order[:_FEW])})


def _ours(dataset: Dataset, order: list[int]) -> dict[str, Callable[[], int]]:
    parts = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
    return {
        ONE: lambda: sizes(dataset[number] for number in order),
        f"{OURS}: batches of {_BATCH}": lambda: sum(
            sizes(dataset.__getitems__(part)) for part in parts
        ),
    }


def _peers(dataset: Dataset, folder: Path, order: list[int]) -> dict[str, Callable[[], int]]:
    parts = [order[first : first + _BATCH] for first in range(0, len(order), _BATCH)]
    ways: dict[str, Callable[[], int]] = {}
    if readers.here(WIDS):
        wids = readers.open_wids(dataset)
        ways[WIDS] = lambda: sum(readers.wids_sizes(wids[number]) for number in order)
        ways[f"{WIDS}: batches of {_BATCH}"] = lambda: sum(
            sum(map(readers.wids_sizes, [wids[number] for number in part])) for part in parts
        )

    if readers.here(MOSAIC):
        mosaic: Any = readers.open_mosaic(readers.write_mosaic(dataset, folder))
        ways[MOSAIC] = lambda: sizes(mosaic[number] for number in order)
    return ways
