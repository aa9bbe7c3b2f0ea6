"""Reading a version joined with an overlay, against reading both apart; page cache warm: side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import readers
from benchmarks.measure import Contender, Section, Settings, Table, log, take_turns
from benchmarks.read import checked, published, table
from benchmarks.readers import sizes
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import build
from wds_pipeline.training import Dataset, open_dataset

APART = "base, then overlay, each alone: stored order"
_NEW = "caption"  # the new field, beside those of the base


def run(settings: Settings) -> Section:
    with readers.quiet():
        tables = [_run(settings, name) for name in settings.corpora]
    notes = [
        f"An overlay with a new field `{_NEW}` of 100 bytes for every sample. Joined, a sample is one dict "
        "of all fields; apart, nobody puts them together.",
        "Captions in the place of the base's `txt`: these are not read.",
    ]
    return Section("Overlays", tables, notes)


def _run(settings: Settings, name: str) -> Table:
    base = str(published(settings, name))
    alone = open_dataset(base)
    over = open_dataset(str(_overlay(settings, name, alone, base, _NEW)))
    new = open_dataset(base, overlays=[over.catalog.storage.url])
    texts = str(_overlay(settings, name, alone, base, "txt"))
    instead = open_dataset(base, overlays=[texts])
    wanted, more = readers.wanted_bytes(alone), 100 * len(alone)
    captioned = wanted - readers.wanted_bytes(alone, ("txt",)) + more
    ways: dict[str, tuple[Callable[[], int], int]] = {
        APART: (lambda: sizes(alone) + _new(over), wanted + more),
        "joined: stored order": (lambda: _all(new), wanted + more),
        "joined, opened anew: stored order": (
            lambda: _all(open_dataset(base, overlays=[over.catalog.storage.url])),
            wanted + more,
        ),
        "base alone: stored order": (lambda: sizes(alone), wanted),
        "joined, in the place of `txt`: stored order": (lambda: sizes(instead), captioned),
        "base, then overlay, each alone: `.stream()`": (
            lambda: sizes(alone.stream()) + _new(over.stream()),
            wanted + more,
        ),
        "joined: `.stream()`": (lambda: _all(new.stream()), wanted + more),
        "base, then overlay, each alone: `ds[i]`": (
            lambda: (
                sizes(alone[i] for i in range(len(alone))) + _new(over[i] for i in range(len(over)))
            ),
            wanted + more,
        ),
        "joined: `ds[i]`": (lambda: _all(new[i] for i in range(len(new))), wanted + more),
    }
    contenders = [Contender(who, checked(way, bytes_)) for who, (way, bytes_) in ways.items()]
    seconds = take_turns(contenders, settings.rounds)
    for each in (alone, over, new, instead):
        each.close()
    return table(name, len(alone), seconds, APART)


def _new(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of the new field."""
    return sum(len(sample[_NEW]) for sample in samples)


def _all(samples: Iterable[dict[str, Any]]) -> int:
    """The bytes of all fields."""
    found = 0
    for sample in samples:
        found += len(sample["jpg"]) + len(sample["json"]) + len(sample["txt"]) + len(sample[_NEW])
    return found


def _overlay(settings: Settings, name: str, base: Dataset, url: str, field: str) -> Path:
    """An overlay of a field of 100 bytes for every sample; made once, found again."""
    target = settings.folder / f"overlay-{field}-{name}-{len(base)}"
    if target.exists():
        return target
    log(f"publishing an overlay of {name}: {field}")
    raw = target.with_name(f"{target.name}-raw")
    for sample in open_dataset(url, fields=["txt"]):
        path = raw / f"{sample['__key__']}.{field}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"another caption of {path.stem}".encode().ljust(100, b"."))
    parts = {
        "name": "overlay",
        "source": {"url": str(raw)},
        "destination": {"url": str(target)},
        "overlay": {"base": {"url": url}, "max_missing": 0},
        "verify": {"level": "stat"},
    }
    build(DatasetConfig.model_validate(parts))
    return target
