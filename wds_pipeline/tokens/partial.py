"""Results of other programs: what is on the disk, a folder or a file a worker, and which rows it has.

A result is a folder that `TensorDict.memmap` wrote, or a `.safetensors` file, with a column `idx` that counts
over the whole data set. Rows whose idx is -1 or whose write_flag is 0 were not written. A result whose name
begins with `tmp_` is of a worker that did not end.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline.tokens.combined import CHUNK, MEMMAP, META, Column
from wds_pipeline.tokens.layouts import FILL, IDX, WRITTEN
from wds_pipeline.tokens.target import Sink
from wds_pipeline.tokens.text import EXTRA

_UNFINISHED = "tmp_"
FILE = ".safetensors"
_MOVED = ".moved-meta.json"
_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


@dataclass(frozen=True)
class PartialResult:
    """One worker's rows."""

    path: Path
    unfinished: bool = False
    """Whether its worker did not end."""

    @property
    def files(self) -> list[Path]:
        """What it is stored in."""
        if self.path.suffix == FILE:
            return [self.path]
        return [self.path / META, *sorted(self.path.glob(f"*{MEMMAP}"))]

    @property
    def fingerprint(self) -> str:
        """Tells whether it changed: names, sizes and times of its files."""
        facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in self.files]
        return f"files:{xxhash.xxh3_128_hexdigest(repr(facts).encode())}"

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The columns, [rows, …] each, mapped. Raises SourceError when it is not readable."""
        try:
            found = self._mapped()
        except ImportError as error:
            raise ConfigError(f"{self.path}: {error}; {EXTRA}") from error
        except Exception as error:  # whatever the libraries raise for a damaged one
            raise SourceError(
                f"{self.path}: not readable ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
                "make it again, or move it away"
            ) from error
        if IDX not in found:
            raise DataError(
                f"{self.path}: found the columns {', '.join(found)}; expected {IDX} too: without it nobody "
                "can tell which rows are the same"
            )
        if len({len(each) for each in found.values()}) > 1:
            raise DataError(f"{self.path}: its columns have different numbers of rows")
        return found

    def _mapped(self) -> dict[str, Any]:
        if self.path.suffix == FILE:
            return _safetensors(self.path)
        from tensordict import TensorDict

        loaded = TensorDict.load_memmap(str(self.path))
        return {name: loaded[name].numpy() for name in sorted(map(str, loaded.keys()))}

    def columns(self) -> dict[str, Column]:
        """What its columns are; `write_flag` may be missing."""
        found = {
            name: Column(tuple(each.shape[1:]), str(each.dtype))
            for name, each in self.arrays.items()
        }
        return {**found, WRITTEN: Column((1,), "bool")}

    @cached_property
    def idx(self) -> NDArray[np.int64]:
        """Each row's idx."""
        return np.asarray(self.arrays[IDX], np.int64).reshape(-1)

    @property
    def written(self) -> NDArray[np.bool_]:
        """Which rows its worker wrote."""
        found: NDArray[np.bool_] = self.idx != FILL
        if WRITTEN in self.arrays:
            found = found & (np.asarray(self.arrays[WRITTEN]).reshape(-1) != 0)
        return found

    def copy(self, sink: Sink, kept: NDArray[np.bool_]) -> None:
        """Copies the rows that are kept, some at a time."""
        for name, column in self.columns().items():
            many = max(1, CHUNK // column.row_bytes)
            for first in range(0, len(kept), many):
                mask = kept[first : first + many]
                if name == WRITTEN:
                    sink.write(name, bytes([1]) * int(mask.sum()))
                else:
                    rows = np.ascontiguousarray(self.arrays[name][first : first + many][mask])
                    sink.write(name, rows.reshape(-1).view(np.uint8).data)

    def delete(self) -> None:
        """Removes its files, and its folder if nothing else is there. Killed in between, it is no result any
        more, and its folder has a mark by which the next run removes the rest."""
        if self.path.suffix == FILE:
            self.path.unlink()
            return
        os.replace(self.path / META, self.path / _MOVED)
        _delete_rest(self.path)


def _delete_rest(folder: Path) -> None:
    for each in folder.glob(f"*{MEMMAP}"):
        each.unlink()
    (folder / _MOVED).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _safetensors(path: Path) -> dict[str, Any]:
    """The arrays of a file, mapped: its own library would hold all of it in memory. The format: eight bytes
    with the length of a JSON header, the header, and the arrays behind it, at the offsets that it says."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name in sorted(header):
        each = header[name]
        start, end = each["data_offsets"]
        dtype, shape = np.dtype(_TYPES[each["dtype"]]), tuple(each["shape"])
        if end - start != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{name} has {end - start} bytes, another number than its shape")
        found[name] = np.memmap(path, dtype, "r", 8 + length + start, shape)
    return found


def find(folders: Sequence[Path | str], destination: Path) -> list[PartialResult]:
    """The results in some folders, sorted by path; without the destination. Raises SourceError."""
    found: dict[Path, PartialResult] = {}
    for each in map(Path, folders):
        if not each.exists():
            raise SourceError(f"{each}: not there; expected a folder of results, or a result")
        root = each.absolute()
        for path in _results(root, destination.absolute()):
            parts = path.relative_to(root.parent).parts
            unfinished = any(part.startswith(_UNFINISHED) for part in parts)
            found.setdefault(path.resolve(), PartialResult(path, unfinished))
    return [found[path] for path in sorted(found)]


def _results(path: Path, destination: Path) -> Iterator[Path]:
    if path == destination or path.name.startswith("."):
        return
    if (path.suffix == FILE and path.is_file()) or (path / META).is_file():
        yield path
    elif path.is_dir():
        for each in path.iterdir():
            yield from _results(each, destination)


def finish_deleting(folders: Sequence[Path | str]) -> None:
    """Removes what is left of results whose deletion was broken off."""
    for mark in [mark for each in folders for mark in Path(each).rglob(_MOVED)]:
        _delete_rest(mark.parent)
