"""A published version in a few lines, for the end of a build: on a terminal, in a log, in the UI."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version, view
from wds_pipeline.dataset.preview import reasons
from wds_pipeline.dataset.reading import snippet
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import (
    aligned,
    clip,
    counted,
    human_bytes,
    listed_changes,
    printable,
)
from wds_pipeline.storage import Storage

_WIDTH = 110


def summary(config: DatasetConfig, storage: Storage, manifest: Manifest) -> str:
    """What a version holds, what was left out and why, how to read it, and what to try next.

    Raises VersionError, VerificationError when the version's files cannot be read.
    """
    parts = [_head(manifest), _splits(manifest), _transforms(manifest)]
    parts.append(_quarantine(storage, manifest))
    parts += [_verification(storage, manifest), _reading(storage, manifest)]
    parts.append(_next(config, storage, manifest))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest: Manifest) -> str:
    packed = manifest.new.shards
    origin = f"{packed} of {counted(manifest.total_shards, 'shard')} are new in it"
    if packed and manifest.parent:
        origin += f": {listed_changes(manifest.changes)}"
    if manifest.restored_from is not None:
        origin = f"restored from version {manifest.restored_from}"
    return f"{manifest.dataset}, version {manifest.version} of {manifest.created} ({origin})"


def _splits(manifest: Manifest) -> str:
    rows = [("split", "shards", "samples", "bytes")]
    rows += [
        (name, f"{split.shards:,}", f"{split.samples:,}", human_bytes(split.bytes))
        for name, split in manifest.splits.items()
    ]
    if len(manifest.splits) > 1:
        rows.append(
            (
                "total",
                f"{manifest.total_shards:,}",
                f"{manifest.total_samples:,}",
                human_bytes(manifest.total_bytes),
            )
        )
    return "\n".join("  " + line for line in aligned(rows, right=(1, 2, 3)))


def _transforms(manifest: Manifest) -> str:
    if not manifest.transforms:
        return ""
    inputs = sum(split.of_source for split in manifest.splits.values())
    lines = [
        f"transforms: {', '.join(manifest.transforms)}: {counted(inputs, 'sample')} of the source became "
        f"{manifest.total_samples:,}"
    ]
    lines += [
        f"  {name}: {counted(count, 'sample')} left out"
        for name, count in manifest.left_out.items()
    ]
    return "\n".join(lines)


def _quarantine(storage: Storage, manifest: Manifest) -> str:
    count = sum(manifest.quarantined.values())
    if not count:
        return "quarantine: no sample was left out"
    table = version.read_table(storage, manifest, version.QUARANTINE)
    total = count + sum(split.of_source for split in manifest.splits.values())
    lines = [f"quarantine: {counted(count, 'sample')} of {total:,} left out"]
    found = reasons(table)
    heads = aligned([(each.reason, f"{each.count:,}") for each in found], right=(1,))
    indent = " " * (len(heads[0]) + 4)
    for each, head in zip(found, heads, strict=True):
        advice = textwrap.wrap(each.advice, _WIDTH - len(indent)) or [""]
        lines.append(f"  {head}  {advice[0]}")
        lines += [indent + more for more in advice[1:]]
        lines.append(f"{indent}e.g. {clip(each.examples[0], _WIDTH - len(indent) - 5)}")
    return "\n".join(lines)


def _verification(storage: Storage, manifest: Manifest) -> str:
    result = manifest.verification
    errors, warnings = result.get("errors", 0), result.get("warnings", 0)
    verdict = "passed" if result.get("passed") else f"failed with {counted(errors, 'error')}"
    line = f"verification: {verdict} at level {result.get('level', '?')}"
    if warnings:
        named = ", ".join(f"{count:,} {code}" for code, count in result["findings"].items())
        line += f", {counted(warnings, 'warning')} ({named})"
    page = storage.locate(version.folder(manifest.version) + version.REPORT_HTML)
    return f"{line}\nreport: {printable(page)}"


def _reading(storage: Storage, manifest: Manifest) -> str:
    if view.has_view(storage, manifest):
        patterns = view.patterns(storage, manifest)
        lines = ["shards:", *(f"  {name}: {url}" for name, url in patterns.items())]
        urls: str | list[str] = patterns[_main_split(manifest)]
    else:
        lines = [f"shards: `wds-pipeline view {manifest.dataset}` makes brace-able names"]
        urls = [storage.locate(manifest.of_split(_main_split(manifest))[0].path)]
    lines += [
        "",
        "read them with plain webdataset:",
        *("  " + line for line in snippet(storage, urls)),
    ]
    return "\n".join(lines)


def _main_split(manifest: Manifest) -> str:
    return max(manifest.splits, key=lambda name: (name == "train", manifest.splits[name].samples))


def program() -> str:
    """How this user starts the command line: it may lie in a virtual environment that is not active."""
    beside = Path(sys.executable).with_name("wds-pipeline")
    if shutil.which("wds-pipeline") or not beside.exists():
        return "wds-pipeline"
    return shlex.quote(os.path.relpath(beside))


def _next(config: DatasetConfig, storage: Storage, manifest: Manifest) -> str:
    name, start = manifest.dataset, program()
    ledger = version.read_table(storage, manifest, version.LEDGER)
    keys = ledger["key"].slice(0, 200).to_pylist()
    key = min(keys, key=lambda each: (not each.replace("/", "").isascii(), len(each), each))
    change = {
        "url": f"edit a file in {config.source_url}",
        "dataset": f"publish another version of {config.source_url}",
        "shards": f"replace one of {config.source_url}",
    }.get(config.source.kind, f"edit {config.source_url}")
    # Which samples transforms made, the ledger does not know.
    one = "" if manifest.transforms else f" {shlex.quote(key)}"
    rows = [
        (f"  {change}", f"then: {start} plan {name}"),
        (f"  {start} show {name}{one}", "look at one sample"),
        (f"  {start} versions {name}", "what is published"),
        (f"  {start} build {name}", "build again: only what changed"),
    ]
    if name == "demo":
        rows.append((f"  {start} build demo_small", "smaller pictures, made of this dataset"))
        rows.append(("  make ui", "the same in Dagster's web interface"))
    return "\n".join(["next:", *aligned(rows)])
