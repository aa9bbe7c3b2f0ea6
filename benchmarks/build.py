"""A whole build, raw files to a published version, and where its time goes."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks import corpus as corpora
from benchmarks.measure import Section, Settings, Table, in_subprocess, log
from benchmarks.peers import folder_bytes

_LEVELS = ("digest", "samples", "decode")


def run(settings: Settings) -> Section:
    section = Section("A whole build")
    for name in settings.corpora:
        corpus = corpora.CORPORA[name]
        corpus = corpora.quick(corpus) if settings.quick else corpus
        root = corpora.make(corpus, settings.folder)
        size = folder_bytes(root)
        best: dict[str, dict[str, float]] = {}
        for number in range(min(settings.rounds, 3)):
            for level in _LEVELS:
                found = _build(settings, str(root), level, corpus)
                log(f"round {number + 1}: verify {level}: {found['whole']:.2f} s")
                if level not in best or found["whole"] < best[level]["whole"]:
                    best[level] = found
        columns = ["seconds of", *(f"verify.level: {level}" for level in _LEVELS)]
        table = Table(f"{name}: {corpus.samples:,} samples, {size / 1e6:,.0f} MB", columns)
        for step in best["decode"]:
            table.rows.append([step, *(best[level].get(step, 0.0) for level in _LEVELS)])
        table.rows.append(["**MB/s**", *(size / best[each]["whole"] / 1e6 for each in _LEVELS)])
        section.tables.append(table)
    return section


def _build(settings: Settings, root: str, level: str, corpus: corpora.Corpus) -> dict[str, float]:
    destination = settings.folder / "build"
    shutil.rmtree(destination, ignore_errors=True)
    parts: dict[str, Any] = {
        "shards": {"max_bytes": corpus.shard_bytes, "max_samples": 10**9},
        "verify": {"level": level},
    }
    found: dict[str, float] = in_subprocess(
        "build_stages", source=root, destination=str(destination), **parts
    )
    shutil.rmtree(destination)
    return found
