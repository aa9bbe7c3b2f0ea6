"""A version, or an index of foreign tars → what other tools read: one module a format.

versions/00000007/exports/<name>/…   each format's files; `export.json` among them says that all are there

Files that belong to one shard alone (`.idx`, `.tar.idx`) stand next to it, for all versions that hold it.
Exports are made of member indexes and seals; no tar is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from wds_pipeline import __version__
from wds_pipeline.config_values import EXPORTS, did_you_mean
from wds_pipeline.dataset import version
from wds_pipeline.dataset.export.base import Export
from wds_pipeline.dataset.export.contents import Contents, of_index, of_version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, DestinationError
from wds_pipeline.storage import Storage

__all__ = [
    "Contents",
    "Export",
    "check",
    "complete",
    "files",
    "folder",
    "into_view",
    "names",
    "of_index",
    "of_version",
    "stage",
    "write",
]

FORMAT_VERSION = 1
DONE = "export.json"
# What its tool looks for among the brace-able names.
_IN_VIEW = {"open_clip": ("sizes.json",), "huggingface": ("README.md",)}


def names() -> tuple[str, ...]:
    """The formats there are."""
    return EXPORTS


def folder(number: int, name: str = "") -> str:
    """Where a version's exports lie, or one of them, with a slash at its end."""
    return f"{version.folder(number)}exports/{name}{'/' if name else ''}"


def check(wanted: Iterable[str], storage: Storage, dataset: str) -> None:
    """Raises ConfigError for a format that is not known, or cannot be made of what is in this store."""
    for name in wanted:
        check_format = getattr(_module(name), "check", None)
        if check_format is not None:
            check_format(storage, dataset)


def _module(name: str) -> Any:
    if name not in EXPORTS:
        raise ConfigError(
            f"{name!r}: no such export{did_you_mean(name, EXPORTS)}; there are {', '.join(EXPORTS)}"
        )
    return import_module(f"{__name__}.{name}")


def write(
    name: str, contents: Contents, storage: Storage, where: str, home: str | None = None
) -> None:
    """Writes one format's files to the folder `where` of a storage; `home` is where they will be read,
    if that is elsewhere in it.

    Raises ConfigError for an unknown format, DataError for what its tool would misread,
    DestinationError.
    """
    module = _module(name)
    module.write(Export(name, contents, storage, where, where if home is None else home))
    if contents.in_place:  # an index that is made again says it all
        return
    done = {
        "format": name,
        "format_version": FORMAT_VERSION,
        "dataset": contents.dataset,
        "version": contents.version,
        "digest": contents.digest,
        "shards": len(contents.shards),
        "samples": contents.samples,
        "writer": f"wds_pipeline {__version__}",
    }
    storage.put(where + DONE, (json.dumps(done, indent=2) + "\n").encode())


def stage(storage: Storage, manifest: Manifest) -> None:
    """Writes the exports that its configuration wants, of a version that is about to be committed, next
    to its other files. Raises what `write` does.
    """
    # Another release may have known others: an old version can be restored without them.
    wanted = [name for name in manifest.config.get("exports") or () if name in EXPORTS]
    if not wanted:
        return
    staged = version.build_folder(manifest.version, manifest.write_id)
    contents = of_version(storage, manifest)
    for name in dict.fromkeys(wanted):
        home = folder(manifest.version, name)
        write(name, contents, storage, f"{staged}exports/{name}/", home)


def complete(storage: Storage, manifest: Manifest, wanted: Iterable[str]) -> list[str]:
    """Writes those exports of a published version that it lacks; returns their names.

    Raises what `write` does.
    """
    lacking = [
        each for each in wanted if storage.stat(folder(manifest.version, each) + DONE) is None
    ]
    if not lacking:
        return []
    contents = of_version(storage, manifest)
    for name in lacking:
        write(name, contents, storage, folder(manifest.version, name))
    into_view(storage, manifest)
    return lacking


def files(storage: Storage, where: str) -> Iterator[str]:
    """The paths of all files in a folder and below it; `export.json` of each folder last."""
    found = sorted((each.path for each in storage.list_files(where)), key=_done_last)
    for name in storage.list_folders(where):
        yield from files(storage, f"{where.rstrip('/')}/{name}/")
    yield from found


def _done_last(path: str) -> tuple[bool, str]:
    return path.endswith(f"/{DONE}"), path


def into_view(storage: Storage, manifest: Manifest) -> None:
    """Links what a tool looks for next to the shards into the folder of their brace-able names."""
    if not storage.hard_links:
        return
    there = set(storage.list_folders(folder(manifest.version)))
    view = version.view_folder(manifest.version)
    for name in _IN_VIEW.keys() & there:
        for file in _IN_VIEW[name]:
            made = folder(manifest.version, name) + file
            if storage.stat(made) is not None and not storage.same_file(view + file, made):
                with suppress(DestinationError):  # a filesystem without hard links
                    storage.link(view + file, made)
