"""More samples, an edit, a deletion: what a build writes for them, against building all anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks import corpus as corpora
from benchmarks.measure import Section, Settings, Table, in_subprocess, log
from benchmarks.peers import folder_bytes

_SHARDS = 100
_SHARD_BYTES = 4_000_000
_ADDITIONS = 5


def run(settings: Settings) -> Section:
    corpus = corpora.CORPORA["small"]
    member_bytes = corpus.image + 3 * 1024
    samples = _SHARDS * _SHARD_BYTES // member_bytes
    root = settings.folder / "growing"
    destination = settings.folder / "incremental"
    parts: dict[str, Any] = {
        "shards": {"max_bytes": _SHARD_BYTES},
        "samples": {"max_quarantined": 1},
        "verify": {"level": "samples"},
    }
    log(f"making {samples:,} samples, and the first build")
    corpora.add(corpus, root, 0, samples)
    first = _build(root, destination, parts)
    table = Table(
        f"{samples:,} samples of 10 KB in {first['packed']} shards of 4 MB",
        [
            "change",
            "shards packed",
            "tar MB written",
            "MB added",
            "bytes written per byte added",
            "s",
        ],
    )
    table.rows.append(
        [
            "first build",
            first["packed"],
            first["tars"] / 1e6,
            first["tars"] / 1e6,
            1.0,
            first["seconds"],
        ]
    )
    ratios, seconds = [], []
    more = samples // 100
    for number in range(2 if settings.quick else _ADDITIONS):
        before = _live(destination)
        corpora.add(corpus, root, samples + number * more, samples + (number + 1) * more)
        done = _build(root, destination, parts)
        added = _live(destination) - before
        ratios.append(done["tars"] / added)
        seconds.append(done["seconds"])
        row = [f"1 % more samples ({number + 1})", done["packed"], done["tars"] / 1e6, added / 1e6]
        table.rows.append([*row, ratios[-1], seconds[-1]])
    victim = next(root.rglob("*.txt"))
    victim.write_bytes(b"another caption".ljust(120))
    table.rows.append(_row("one caption edited", _build(root, destination, parts)))
    for ending in (".jpg", ".txt", ".json"):
        victim.with_suffix(ending).unlink()
    table.rows.append(_row("one sample deleted", _build(root, destination, parts)))
    anew = _build(root, settings.folder / "anew", parts)
    table.rows.append(_row("all anew", anew))
    for folder in (root, destination, settings.folder / "anew"):
        shutil.rmtree(folder)
    mean, took = sum(ratios) / len(ratios), sum(seconds) / len(seconds)
    notes = [
        f"1 % more: {mean:.2f} bytes written per byte added on average (how full the open shard "
        f"happens to be decides each one); {took:.2f} s, {anew['seconds'] / took:.1f} × as fast as "
        "building all anew (both with the start of Python and its workers' libraries).",
    ]
    return Section("Small changes", [table], notes)


def _build(root: Path, destination: Path, parts: dict[str, Any]) -> dict[str, Any]:
    """A build, and with its result the bytes of the tars that it wrote."""
    folder = destination / "shards"
    before = set(folder.glob("*.tar"))
    arguments = {"source": str(root), "destination": str(destination), **parts}
    result: dict[str, Any] = in_subprocess("build_once", **arguments)
    new = set(folder.glob("*.tar")) - before
    if len(new) != result["packed"]:
        raise RuntimeError(f"{result['packed']} shards were packed, {len(new)} are new")
    result["tars"] = sum(path.stat().st_size for path in new)
    return result


def _live(destination: Path) -> int:
    """The bytes of the newest version's tars."""
    return folder_bytes(max((destination / "views").iterdir()), "*.tar")


def _row(change: str, done: dict[str, Any]) -> list[object]:
    return [change, done["packed"], done["tars"] / 1e6, "", "", done["seconds"]]
