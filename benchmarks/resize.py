"""Resizing: the transform `resize` against a plain Pillow loop, in as many processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.corpus import CORPORA, make, quick
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
    take_turns,
)
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import build
from wds_pipeline.transforms.resize import Resize

_SIDE = 128  # pixels
_QUALITY = 90
_PICTURES = 4_000


def run(settings: Settings) -> Section:
    """Resizes the typical corpus's pictures of 512 x 512 pixels, in memory to memory."""
    corpus = quick(CORPORA["typical"])
    corpus_folder = make(corpus, settings.folder)
    paths = sorted(map(str, corpus_folder.rglob("*.jpg")))
    paths = paths[: _PICTURES // 4 if settings.quick else _PICTURES]
    processes = os.cpu_count() or 1
    tables, notes = [], []
    for what, draft in (("with a draft", True), ("without a draft", False)):
        contenders = {
            "a plain Pillow loop": partial(_plain, draft=draft),
            "`resize`": partial(_ours, draft=draft),
        }
        took = take_turns(
            [
                Contender(name, partial(_in_processes, work, paths, processes))
                for name, work in contenders.items()
            ],
            settings.rounds,
        )
        plain, ours = (took[name] for name in contenders)
        columns = ["", "pictures a second", "seconds", "CPU seconds", "against plain Pillow"]
        table = Table(f"{what}, {len(paths):,} pictures, {processes} processes", columns)
        if draft:
            built = take_turns(
                [
                    Contender(name, partial(_build, corpus_folder, len(paths), level))
                    for name, level in (
                        ("a build with it, `verify: samples`", "samples"),
                        ("a build with it, `verify: decode`", "decode"),
                    )
                ],
                settings.rounds,
            )
            took |= built
        for name, rounds in took.items():
            ratio = best(plain) / best(rounds)
            table.rows.append([name, len(paths) / best(rounds), best(rounds), cpu(rounds), ratio])
        tables.append(table)
        log(f"{what}: {best(plain) / best(ours):.2f} of plain Pillow")
    notes.append(
        f"512 x 512 pixels to {_SIDE} x {_SIDE}, JPEG to JPEG of quality {_QUALITY}. Plain Pillow: with a "
        "draft `thumbnail` and `save`; without one `resize` and `save`. The builds list the folder, "
        "start their workers, resize all pictures of it, pack, read back and publish."
    )
    return Section("Resizing pictures", tables, notes)


def _build(raw: Path, count: int, level: str) -> Took:
    """Raw pictures to a published version of small ones: listed, resized, packed, read back."""
    folder = Path(tempfile.mkdtemp(prefix="resized-", dir=raw.parent))
    try:
        values = {
            "name": "resized",
            "source": {"url": str(raw), "include": ["**/*.jpg"]},
            "destination": {"url": str(folder / "published")},
            "transforms": [{"resize": {"fields": ["jpg"], "size": _SIDE, "quality": _QUALITY}}],
            "shards": {"max_samples": max(1, count // 16)},
            "verify": {"level": level},
        }
        watch = Stopwatch()
        build(DatasetConfig.model_validate(values))
        return watch.took()
    finally:
        shutil.rmtree(folder)


def _in_processes(work: object, paths: list[str], processes: int) -> Took:
    """The work over equal parts, without the time that processes take to start."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(processes + 1)
    workers = [
        context.Process(target=_part, args=(work, paths[number::processes], ready))
        for number in range(processes)
    ]
    for each in workers:
        each.start()
    ready.wait()
    watch = Stopwatch()
    for each in workers:
        each.join()
    if any(each.exitcode for each in workers):
        raise RuntimeError("a worker of the benchmark failed; its message is above")
    return watch.took()


def _part(work: partial[None], paths: list[str], ready: object) -> None:
    work(paths, ready.wait)  # type: ignore[attr-defined]


def _plain(paths: list[str], ready: object, draft: bool) -> None:
    ready()  # type: ignore[operator]
    for path in paths:
        picture = Image.open(io.BytesIO(Path(path).read_bytes()))
        if draft:
            picture.thumbnail((_SIDE, _SIDE))
            small: Image.Image = picture
        else:
            small = picture.resize((_SIDE, _SIDE))
        small.save(io.BytesIO(), "JPEG", quality=_QUALITY)


def _ours(paths: list[str], ready: object, draft: bool) -> None:
    resize = Resize(["jpg"], size=_SIDE, quality=_QUALITY, draft=draft)
    ready()  # type: ignore[operator]
    for path in paths:
        resize({"__key__": path, "jpg": Path(path).read_bytes()})
