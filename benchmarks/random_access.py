"""Single samples in random order, one process, raw bytes, page cache warm: side by side with wids."""

from __future__ import annotations

from random import Random

from benchmarks.measure import Contender, Section, Settings, Table, take_turns
from benchmarks.read import (
    FIELDS,
    OURS,
    WIDS,
    checked,
    open_wids,
    published,
    sizes,
    sizes_of,
    table,
    wids_sizes,
)
from wds_pipeline.training import open_dataset

ONE = f"{OURS}: `ds[i]`"


def run(settings: Settings) -> Section:
    tables = [_run(settings, name) for name in settings.corpora]
    notes = [f"fields: {', '.join(FIELDS)}; every sample once"]
    if all(WIDS not in [row[0] for row in each.rows] for each in tables):
        notes.append("wids (with torch) is not installed, so not here")
    return Section("Random access", tables, notes)


def _run(settings: Settings, name: str) -> Table:
    url = str(published(settings, name))
    dataset, captions = open_dataset(url), open_dataset(url, fields=["txt"])
    order = Random(0).sample(range(len(dataset)), len(dataset))
    wanted = sum(sizes_of(dataset))
    peer = open_wids(dataset)

    parts = [order[first : first + 64] for first in range(0, len(order), 64)]

    def batches() -> int:
        return sum(sizes(dataset.__getitems__(part)) for part in parts)

    def wids_batches() -> int:
        return sum(sum(map(wids_sizes, [peer[number] for number in part])) for part in parts)

    def only_captions() -> int:
        return sum(len(captions[number]["txt"]) for number in order)

    contenders = [
        Contender(ONE, checked(lambda: sizes(dataset[number] for number in order), wanted)),
        Contender(f"{OURS}: batches of 64", checked(batches, wanted)),
        Contender(f"{OURS}, `fields=['txt']`", checked(only_captions, 100 * len(order))),
    ]
    if peer is not None:
        by_wids = checked(lambda: sum(wids_sizes(peer[number]) for number in order), wanted)
        contenders.append(Contender(WIDS, by_wids))
        contenders.append(Contender(f"{WIDS}: batches of 64", checked(wids_batches, wanted)))
    seconds = take_turns(contenders, settings.rounds)
    dataset.close()
    captions.close()
    return table(name, len(order), seconds, ONE if peer is None else WIDS)
