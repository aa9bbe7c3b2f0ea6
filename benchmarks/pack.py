"""Packing raw files into shards, against copying, GNU tar and the scripts that people run today."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import corpus as corpora
from benchmarks import ours
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Table,
    Took,
    best,
    cpu,
    in_subprocess,
    log,
    median,
    take_turns,
    warm_memory,
)
from benchmarks.peers import Peers, check_bytes, check_tars, folder_bytes

_LIMIT = "`cat` of the same files, 2 processes (the limit)"
_TAR = "GNU tar, 2 processes"
_USUAL = "the usual script: 4 × TarWriter in the background, `wait`"
_SHARD_WRITER = "webdataset.ShardWriter, 1 process"
_OURS = "wds_pipeline, 2 workers (digest, member index, seal)"
_OURS_WHOLE = "the same, with the start of the workers"
_OURS_SHA256 = "the same, workers started, with sha256"


def run(settings: Settings) -> Section:
    section = Section("Packing")
    for name in settings.corpora:
        _corpus(settings, corpora.CORPORA[name], section)
    return section


def _corpus(settings: Settings, corpus: corpora.Corpus, section: Section) -> None:
    corpus = corpora.quick(corpus) if settings.quick else corpus
    root = corpora.make(corpus, settings.folder)
    parts: dict[str, Any] = {
        "shards": {"max_bytes": corpus.shard_bytes, "max_samples": 10**9},
        "compute": {"workers": 2},
    }
    plan = ours.plan_of(ours.config_of(str(root), str(settings.folder / "ours"), **parts))
    peers = Peers.make(plan, root, settings.folder, corpus.shard_bytes, settings.disk)
    found: list[dict[str, float]] = []
    mine = _ours(root, settings.folder / "ours", parts, found)
    sha256 = {**parts, "shards": {**parts["shards"], "digest": "sha256"}}
    sizes: dict[str, int] = {}

    def checked(name: str, check: Callable[[Path, Path], None]) -> Callable[[Path], None]:
        def run(folder: Path) -> None:
            check(root, folder)
            sizes[name] = folder_bytes(folder)

        return run

    contenders = [
        Contender(_LIMIT, peers.timed(peers.limit(), checked(_LIMIT, check_bytes))),
        Contender(_OURS, mine),
        Contender(_TAR, peers.timed(peers.gnu_tar(), checked(_TAR, check_tars))),
        Contender(_USUAL, peers.timed(peers.usual(), checked(_USUAL, check_tars))),
    ]
    if not settings.quick:
        contenders += [
            Contender(_OURS_SHA256, _ours(root, settings.folder / "ours", sha256, [])),
            Contender(
                _SHARD_WRITER, peers.timed(peers.shard_writer(), checked(_SHARD_WRITER, check_tars))
            ),
        ]
    size = folder_bytes(root)
    if not settings.disk:
        contenders = [_in_warm_memory(each, settings.folder, size) for each in contenders]
    seconds = take_turns(contenders, settings.rounds)
    seconds[_OURS_WHOLE] = [Took(each["whole"], each["whole_cpu"]) for each in found]
    sizes[_OURS] = sizes[_OURS_WHOLE] = sizes[_OURS_SHA256] = int(found[0]["bytes"])
    title = (
        f"{corpus.name}: {corpus.samples:,} samples, {size / 1e6:,.0f} MB in {corpus.samples * 3:,} "
        f"files, {len(plan.shards)} shards{', a real disk, fsync' if settings.disk else ''}"
    )
    columns = [
        "what",
        "best s",
        "median s",
        "CPU s",
        "MB/s",
        "of the limit",
        "× the usual script",
        "MB written",
    ]
    table = Table(title, columns)
    limit, usual = best(seconds[_LIMIT]), best(seconds[_USUAL])
    for name in sorted(seconds, key=lambda each: best(seconds[each])):
        took = best(seconds[name])
        row = [
            name,
            took,
            median(seconds[name]),
            cpu(seconds[name]),
            size / took / 1e6,
            limit / took,
            usual / took,
        ]
        table.rows.append([*row, sizes[name] / 1e6])
    section.tables.append(table)
    section.notes.append(
        f"{corpus.name}: start of the workers {min(each['pool'] for each in found):.2f} s; "
        f"peak memory of a worker {max(each['peak'] for each in found) / 1e6:,.0f} MB; every "
        "contender's output was read back with tarfile and compared with the raw files."
    )


def _ours(
    root: Path, destination: Path, parts: dict[str, Any], found: list[dict[str, float]]
) -> Callable[[], Took]:
    def run() -> Took:
        shutil.rmtree(destination, ignore_errors=True)
        result = in_subprocess("pack", source=str(root), destination=str(destination), **parts)
        if not found:
            log("reading it back")
            check_tars(root, destination)
            result["bytes"] = folder_bytes(destination)
        found.append(result)
        shutil.rmtree(destination)
        return Took(result["pack"], result["cpu"])

    return run


def _in_warm_memory(contender: Contender, folder: Path, size: int) -> Contender:
    def run() -> Took:
        warm_memory(folder, size * 5 // 4)
        return contender.run()

    return Contender(contender.name, run)
