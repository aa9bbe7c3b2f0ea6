"""The source sensor's looks, against the scan of the same tree: a pass in one look, and in several."""

from __future__ import annotations

import resource
from pathlib import Path

from benchmarks import corpus
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    median,
    take_turns,
)
from benchmarks.scan import FILES
from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.watch import Look, look
from wds_pipeline.storage import LocalStorage

_LOOKS = 10  # about so many, where a pass takes several


def run(settings: Settings) -> Section:
    files = FILES // 10 if settings.quick else FILES
    root = corpus.make_tree(files, settings.folder)
    storage, config = LocalStorage(root), SourceConfig(url=str(root))
    digest = scan(storage, config).digest
    watch = Stopwatch()
    _check(look(storage, config, "bench", 3600), digest)
    seconds = watch.took().seconds / _LOOKS
    contenders = [
        Contender("`scan()` and its digest", lambda: _scan(root)),
        Contender("a pass in one look", lambda: _pass(root, digest, 3600)),
        Contender(f"a pass in looks of {seconds:.2g} s", lambda: _pass(root, digest, seconds)),
    ]
    took = take_turns(contenders, settings.rounds)
    table = Table(f"{files:,} files", ["what", "best s", "median s", "CPU s", "files/s", "of scan"])
    baseline = best(took[contenders[0].name])
    for name, rounds in took.items():
        row: list[object] = [name, best(rounds), median(rounds), cpu(rounds), files / best(rounds)]
        table.rows.append([*row, baseline / best(rounds)])
    return Section("Watch", [table, _looks(root, digest, seconds)])


def _looks(root: Path, digest: str, seconds: float) -> Table:
    """How long the looks of one pass take beyond their time, and what is kept between them."""
    storage, config = LocalStorage(root), SourceConfig(url=str(root))
    took, kept = [], []
    last: Look | None = None
    while last is None or not last.complete:
        watch = Stopwatch()
        last = look(storage, config, "bench", seconds, last)
        took.append(watch.took().seconds)
        kept.append(len(last.model_dump_json()))
    _check(last, digest)
    table = Table("The looks of one pass", ["what", "value"])
    table.rows = [
        ["looks", len(took)],
        ["seconds that each may take", seconds],
        ["seconds that the longest took", max(took)],
        ["bytes kept between two", max(kept)],
        [
            "peak memory of this process, MB",
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        ],
    ]
    return table


def _scan(root: Path) -> Took:
    watch = Stopwatch()
    _ = scan(LocalStorage(root), SourceConfig(url=str(root))).digest
    return watch.took()


def _pass(root: Path, digest: str, seconds: float) -> Took:
    storage, config = LocalStorage(root), SourceConfig(url=str(root))
    watch = Stopwatch()
    last = look(storage, config, "bench", seconds)
    while not last.complete:
        last = look(storage, config, "bench", seconds, last)
    took = watch.took()
    _check(last, digest)
    return took


def _check(found: Look, digest: str) -> None:
    if found.digest != digest:
        raise RuntimeError(f"the pass gives {found.digest}, the scan {digest}")
