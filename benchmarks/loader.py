"""Decoded images as a training loop takes them: batches of uint8 tensors, shuffled, side by side.

The limit is Pillow alone, on all processors, with the files' bytes in memory: it shuffles nothing and makes
no batches.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import readers
from benchmarks.corpus import CORPORA
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Table,
    best,
    cpu,
    median,
    take_turns,
)
from benchmarks.read import BUFFER, checked, published
from benchmarks.readers import WEBDATASET
from wds_pipeline.training import Dataset, open_dataset

_BATCH = 64
_WORKERS = 2
_THEIR_WORKERS = (0, 1, 2, 4)
_EACH = 24  # of so many pixels, one is added up: who decoded something else is noticed
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_LIMIT = f"Pillow alone, {_CORES} processes (the limit)"

_files: list[bytes] = []  # what forked processes find

Seen = tuple[int, int]
"""How many images, and the sum of some of their pixels."""


def run(settings: Settings) -> Section:
    section = Section("Decoded images for training")
    if not readers.installed("torch"):
        section.notes.append("torch is not installed, so nobody is here")
        return section
    with readers.quiet():
        for name in ("small",) if "small" in settings.corpora else settings.corpora:
            section.tables.append(_table(settings, name))
    section.notes += [
        f'JPEG to RGB, in shuffled order, batches of {_BATCH}. "best of webdataset" is its fastest set-up '
        "here; its samples are decoded, mixed and, but where it says otherwise, batched in the workers.",
        "The images are counted, and a part of their pixels added up: everybody's sums are the same.",
    ]
    return section


def _table(settings: Settings, name: str) -> Table:
    url = str(published(settings, name))
    with open_dataset(url, fields=["jpg"]) as dataset:
        _files[:] = [sample["jpg"] for sample in dataset]
        wanted = _pillow(range(len(_files)))
        ways = {**_limits(), **_ours(url), **_webdataset(dataset.urls)}
        contenders = [
            Contender(who, checked(way, wanted, f"{who}: images and sum of pixels"))
            for who, way in ways.items()
        ]
        seconds = take_turns(contenders, min(settings.rounds, 3))
    count = len(_files)
    _files.clear()
    theirs = min(best(rounds) for who, rounds in seconds.items() if who.startswith(WEBDATASET))
    table = Table(
        f"{name}: {count:,} images of {CORPORA[name].pixels} × {CORPORA[name].pixels} pixels",
        [
            *("what", "images/s", "median images/s", "CPU s", "of the limit"),
            "× best of webdataset",
        ],
    )
    for who, rounds in seconds.items():
        table.rows.append(
            [
                who,
                count / best(rounds),
                count / median(rounds),
                cpu(rounds),
                best(seconds[_LIMIT]) / best(rounds),
                theirs / best(rounds),
            ]
        )
    return table


def _limits() -> dict[str, Callable[[], Seen]]:
    parts = [range(start, len(_files), _CORES) for start in range(_CORES)]

    def processes() -> Seen:
        with multiprocessing.get_context("fork").Pool(_CORES) as pool:
            return _sum(pool.map(_pillow, parts))

    def threads() -> Seen:
        with ThreadPoolExecutor(_CORES) as pool:
            return _sum(pool.map(_pillow, parts))

    return {_LIMIT: processes, f"Pillow alone, {_CORES} threads": threads}


def _pillow(numbers: Iterable[int]) -> Seen:
    """Decodes these files, one after the other, and keeps none."""
    count = total = 0
    for number in numbers:
        image = np.asarray(Image.open(BytesIO(_files[number])).convert("RGB"))
        count += 1
        total += int(image[::_EACH, ::_EACH].sum())
    return count, total


def _sum(parts: Iterable[Seen]) -> Seen:
    counts, totals = zip(*parts, strict=True)
    return sum(counts), sum(totals)


def _ours(url: str) -> dict[str, Callable[[], Seen]]:
    from torch.utils.data import DataLoader

    def dataset() -> Dataset:
        return open_dataset(url, fields=["jpg"], decode={"jpg": "rgb8"})

    def stream(**options: Any) -> Any:
        options = {"batch_size": _BATCH, "last": "short", "collate": _stacked, **options}
        return dataset().stream(seed=0, **options)

    def by_index() -> Any:
        return DataLoader(
            dataset(),  # type: ignore[arg-type]
            _BATCH,
            shuffle=True,
            num_workers=_WORKERS,
            collate_fn=_stacked,
        )

    loader = f"wds_pipeline: `stream().loader({_WORKERS} workers)`"
    return {
        "wds_pipeline: `stream()`, threads": lambda: _seen(stream()),
        'wds_pipeline: `stream(shuffle="full")`, threads': lambda: _seen(stream(shuffle="full")),
        "wds_pipeline: `stream(threads=0)`": lambda: _seen(stream(threads=0)),
        loader: lambda: _seen(stream().loader(num_workers=_WORKERS)),
        f"wds_pipeline: `DataLoader(dataset, {_WORKERS} workers)`": lambda: _seen(by_index()),
    }


def _webdataset(urls: list[str]) -> dict[str, Callable[[], Seen]]:
    """Only the images, with its own shuffle and decoder."""
    import webdataset

    def samples() -> Any:
        made = readers.open_webdataset(urls, BUFFER, select_files=_is_jpg)
        return made.decode("rgb8").to_tuple("jpg")

    def loader(workers: int) -> Any:
        batches = samples().batched(_BATCH, collation_fn=_stacked_tuples)
        return webdataset.WebLoader(batches, batch_size=None, num_workers=workers)

    def single(workers: int) -> Any:
        found = webdataset.WebLoader(samples(), batch_size=None, num_workers=workers)
        return found.batched(_BATCH, collation_fn=_stacked_tuples)

    ways: dict[str, Callable[[], Seen]] = {}
    for workers in _THEIR_WORKERS:
        if workers <= len(urls):
            ways[f"{WEBDATASET}, WebLoader, {workers} workers"] = partial(_of, loader, workers)
    name = f"{WEBDATASET}, WebLoader, {_WORKERS} workers, batched behind them"
    ways[name] = partial(_of, single, _WORKERS)
    return ways


def _is_jpg(name: str) -> bool:
    return name.endswith(".jpg")


def _stacked(samples: list[dict[str, Any]]) -> Any:
    return _tensor([sample["jpg"] for sample in samples])


def _stacked_tuples(samples: list[tuple[Any]]) -> Any:
    return _tensor([image for (image,) in samples])


def _tensor(images: list[Any]) -> Any:
    import torch

    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def _of(make: Callable[[int], Iterable[Any]], workers: int) -> Seen:
    return _seen(make(workers))


def _seen(batches: Iterable[Any]) -> Seen:
    count = total = 0
    for batch in batches:
        count += len(batch)
        total += int(batch[:, ::_EACH, ::_EACH].sum())
    return count, total
