"""The files that a table is made of: one file, or those of a folder, in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

from wds_pipeline.config_storage import Place, StorageConfig
from wds_pipeline.errors import ConfigError, SourceError
from wds_pipeline.storage import LocalStorage, Storage, open_storage

FORMATS = {
    "jsonl": "jsonl", "ndjson": "jsonl", "csv": "csv", "tsv": "tsv", "parquet": "parquet",
    "parq": "parquet", "pq": "parquet", "txt": "txt",
}  # fmt: skip
_COMPRESSED = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}


@dataclass(frozen=True)
class TableFile:
    """One file: `state` tells its states apart (size and fingerprint)."""

    path: str
    state: str


@dataclass(frozen=True)
class TableFiles:
    """The files of a table, below `storage`; `others` counts those of a folder that are none of them."""

    dataset: str
    storage: Storage
    format: str
    files: tuple[TableFile, ...]
    others: int = 0
    examples: list[str] = field(default_factory=list)

    def named(self, path: str) -> str:
        """How messages name a file."""
        return self.storage.locate(path)

    @contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """A file, unpacked where its name says that it is compressed. Raises SourceError."""
        with ExitStack() as stack:
            try:
                file: BinaryIO = stack.enter_context(self.storage.open(path))
                packed = _COMPRESSED.get(path.rpartition(".")[2].lower())
                if packed is None or self.format == "parquet":
                    yield file
                    return
                yield stack.enter_context(
                    pa.CompressedInputStream(pa.PythonFile(file, "r"), packed)
                )
            except FileNotFoundError:
                raise _passing(
                    f"{self.dataset}: {self.named(path)}: went since it was listed; build again"
                ) from None
            except OSError as error:
                what = str(error) or "it is cut or damaged"
                raise SourceError(
                    f"{self.dataset}: {self.named(path)}: not readable: {what}"
                ) from error


def find_table(url: str, storage: StorageConfig, dataset: str, wanted: str | None) -> TableFiles:
    """The files of the table or list at a URL; `wanted` is its format, if the user says it.

    Raises SourceError when there is none, ConfigError when its format is not known.
    """
    folder, name = split_url(url)
    parent = open_storage(Place(url=folder, storage=storage, dataset=dataset, part="source"))
    found = _one(parent, name) if name else None
    if found is not None:
        kind = wanted or _format(name)
        if kind is None:
            raise ConfigError(
                f"{dataset}: source.table.url: {url}: its name says no format; expected .jsonl, .csv, "
                ".tsv, .parquet or .txt, or set source.table.format"
            )
        return TableFiles(dataset, parent, kind, (found,))
    root = open_storage(Place(url=url, storage=storage, dataset=dataset, part="source"))
    return _folder(root, url, dataset, wanted)


def find_list(url: str, storage: StorageConfig, dataset: str) -> TableFiles:
    """The one file of a list. Raises SourceError when there is none."""
    folder, name = split_url(url)
    parent = open_storage(Place(url=folder, storage=storage, dataset=dataset, part="source"))
    found = _one(parent, name) if name else None
    if found is None:
        raise SourceError(
            f"{dataset}: source.recipe.url: {url}: no such file; expected a list of members; check the "
            "path, or mount it"
        )
    return TableFiles(dataset, parent, "list", (found,))


def split_url(url: str) -> tuple[str, str]:
    """A file's folder and name; no name where the URL ends with a slash."""
    folder, slash, name = url.rpartition("/")
    if not slash:
        return ".", name
    if folder.endswith(":/"):  # scheme://host alone
        return url, ""
    return folder or "/", name


def _one(storage: Storage, name: str) -> TableFile | None:
    """The file of this name, if it is one."""
    if isinstance(storage, LocalStorage):
        where = storage.locate(name)
        try:
            found = os.stat(where)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"{where}: not readable: {error.strerror}") from error
        if os.path.isdir(where):
            return None
        return TableFile(name, f"{found.st_size} {found.st_mtime_ns}")
    storage.contact()
    info = storage.stat(name)
    return None if info is None else TableFile(name, f"{info.size} {info.modified}")


def _folder(storage: Storage, url: str, dataset: str, wanted: str | None) -> TableFiles:
    found: list[TableFile] = []
    others: list[str] = []
    formats: dict[str, str] = {}
    for path, state in sorted(_all(storage)):
        name = path.rpartition("/")[2]
        kind = _format(name)
        if name.startswith((".", "_")) or kind is None or (wanted and kind != wanted):
            others.append(path)
            continue
        formats.setdefault(kind, path)
        found.append(TableFile(path, state))
    if not found:
        more = f", found {len(others):,} other files such as {others[0]}" if others else ""
        raise SourceError(
            f"{dataset}: source.table.url: {url}: no such table{more}; expected a file or a folder of "
            f"{wanted or 'jsonl, csv, tsv, parquet or txt'} files; check the path, or mount it"
        )
    if len(formats) > 1:
        named = " and ".join(f"{path} ({kind})" for kind, path in sorted(formats.items()))
        raise ConfigError(
            f"{dataset}: source.table.url: {url}: found files of several formats, such as {named}; say "
            "which to take by source.table.format"
        )
    return TableFiles(dataset, storage, next(iter(formats)), tuple(found), len(others), others[:3])


def _all(storage: Storage) -> Iterator[tuple[str, str]]:
    """(path, state) of all files below a root."""
    if not isinstance(storage, LocalStorage):
        storage.contact()
        for table in storage.list_keys():
            columns = (table[name].to_pylist() for name in ("path", "size", "fingerprint"))
            for path, size, fingerprint in zip(*columns, strict=True):
                yield path, f"{size} {fingerprint}"
        return

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise SourceError(f"{error.filename}: not readable: {error.strerror}") from error

    top = storage.locate("")
    for folder, _, names in os.walk(top, onerror=refuse):
        for name in names:
            where = os.path.join(folder, name)
            facts = os.stat(where)
            yield os.path.relpath(where, top), f"{facts.st_size} {facts.st_mtime_ns}"


def _format(name: str) -> str | None:
    stem, _, last = name.lower().rpartition(".")
    if last in _COMPRESSED:
        last = stem.rpartition(".")[2]
    return FORMATS.get(last)


def _passing(message: str) -> SourceError:
    error = SourceError(message)
    error.passing = True
    return error
