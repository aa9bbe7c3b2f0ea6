"""The seal of a combined folder, `combined.json`: what is in it, and reading it back.

input_ids.memmap, …   a file a column, and meta.json: what `TensorDict.load_memmap` reads
combined.json         written last: the folder is whole
.combining/           while it is made: the journal of the shards that are done, and a lock
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from wds_pipeline.errors import VerificationError, VersionError

SEAL = "combined.json"
META = "meta.json"
MEMMAP = ".memmap"
FORMAT_VERSION = 1
CHUNK = 512 * 1024
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Column:
    """One array of the folder: a row's shape, and the type by numpy's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """How many bytes a row has."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Piece:
    """The rows that one shard, or one partial result, gives: `rows` from the row `offset` on.

    `digest` is of its source, `kept` of which rows are left out there (empty if none). Of a piece that is
    missing, the rows are there and not written. `columns` are the digests of what was copied.
    """

    name: str
    digest: str
    rows: int
    offset: int
    kept: str = ""
    missing: bool = False
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, int, int, str, bool]:
        """What tells whether the same rows are to stand at the same place."""
        return self.digest, self.rows, self.offset, self.kept, self.missing


@dataclass(frozen=True)
class Combined:
    """A sealed folder. `about` is what the blocks' `tokens.json` says, `duplicates` counts rows left out."""

    rows: int
    columns: dict[str, Column]
    sources: list[dict[str, Any]]
    about: dict[str, Any]
    pieces: list[Piece]
    duplicates: int = 0
    unwritten: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def missing(self) -> list[str]:
        """The shards whose rows are not written."""
        return [piece.name for piece in self.pieces if piece.missing]

    def dump(self) -> bytes:
        """The content of `combined.json`."""
        values = {**asdict(self), "complete": not self.missing}
        return (json.dumps(values) + "\n").encode()


def read(folder: Path) -> Combined | None:
    """The seal of a folder, or None if it has none.

    Raises VerificationError when it is not readable, VersionError for one of a newer format.
    """
    path = folder / SEAL
    try:
        values = json.loads(path.read_bytes())
        if values["format_version"] > FORMAT_VERSION:
            raise VersionError(
                f"{path}: format version {values['format_version']}; this release reads up to "
                f"{FORMAT_VERSION}. Update wds_pipeline"
            )
        del values["complete"]
        values["columns"] = columns_from(values["columns"])
        values["pieces"] = [Piece(**each) for each in values["pieces"]]
        return Combined(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VerificationError(
            f"{path}: not a seal ({error}); remove the folder and combine again"
        ) from error


def columns_from(values: dict[str, Any]) -> dict[str, Column]:
    """Columns as JSON has them."""
    return {name: Column(tuple(each["shape"]), each["dtype"]) for name, each in values.items()}


def check(folder: Path, progress: Progress | None = None) -> Combined:
    """Reads a sealed folder back, and compares each shard's rows with the digests of what was copied.

    Raises VerificationError, saying which files and shards differ.
    """
    found = read(folder)
    if found is None:
        raise VerificationError(f"{folder}: not combined: there is no {SEAL}; combine it first")
    total = found.rows * sum(column.row_bytes for column in found.columns.values())
    done, wrong = 0, []
    for name, column in found.columns.items():
        path = folder / f"{name}{MEMMAP}"
        try:
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size != found.rows * column.row_bytes:
                    wrong.append(
                        f"{path}: {size:,} bytes, {found.rows * column.row_bytes:,} expected"
                    )
                    continue
                for piece in found.pieces:
                    if _digest(file.fileno(), piece, column) != piece.columns[name]:
                        wrong.append(f"{path}: the rows of {piece.name} are not what was copied")
                    done += piece.rows * column.row_bytes
                    if progress is not None:
                        progress("check", done, total)
        except OSError as error:
            wrong.append(f"{path}: not readable ({error.strerror})")
    if wrong:
        raise VerificationError(listed(wrong, "damaged; remove the folder and combine again"))
    return found


def _digest(fd: int, piece: Piece, column: Column) -> str:
    state = xxhash.xxh3_128()
    at, end = piece.offset * column.row_bytes, (piece.offset + piece.rows) * column.row_bytes
    while at < end:
        data = os.pread(fd, min(CHUNK, end - at), at)
        if not data:
            break
        state.update(data)
        at += len(data)
    return f"xxh3-128:{state.hexdigest()}"


def listed(wrong: Iterable[str], advice: str, shown: int = 10) -> str:
    """Several things that are wrong, a line each, and what to do."""
    lines = list(wrong)
    more = [f"… and {len(lines) - shown:,} more"] if len(lines) > shown else []
    return "\n".join([*lines[:shown], *more, advice])
