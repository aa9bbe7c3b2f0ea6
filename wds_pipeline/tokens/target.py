"""A combined folder under way: its files are filled piece by piece, and a journal says which are done.

Killed at any moment, it goes on from there. The order of what reaches the disk: a piece's rows, then its line
in the journal; `meta.json`, then the seal. A sealed folder that is combined again loses its seal, and with it
`meta.json`, before a byte of it changes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from wds_pipeline.errors import ConfigError, DestinationError
from wds_pipeline.tokens import combined
from wds_pipeline.tokens.combined import CHUNK, MEMMAP, META, SEAL, Column, Combined, Piece
from wds_pipeline.tokens.layouts import FILL, IDX
from wds_pipeline.tokens.text import EXTRA

WORK = ".combining"
_JOURNAL, _SCAFFOLD, _LOCK = "journal.jsonl", "scaffold", "lock"
_SYNC_BYTES = 256 * 1024 * 1024  # that a crash may cost
_FILLED_WITH = {IDX: FILL, "modality": FILL}


class Sink:
    """Where one piece's rows go: each column from its first row on."""

    def __init__(
        self, files: Mapping[str, int], columns: Mapping[str, Column], piece: Piece
    ) -> None:
        self._files = files
        self._columns = columns
        self.piece = piece
        self._digests = {name: xxhash.xxh3_128() for name in columns}
        self._at = {name: piece.offset * each.row_bytes for name, each in columns.items()}
        self.written = 0

    def write(self, name: str, rows: bytes | memoryview) -> None:
        """Appends rows' bytes to a column. Raises ValueError when the piece has no room for them."""
        view = memoryview(rows).cast("B")
        column, piece = self._columns[name], self.piece
        if self._at[name] + len(view) > (piece.offset + piece.rows) * column.row_bytes:
            raise ValueError(f"it has more rows of {name} than of {IDX}")
        self._digests[name].update(view)
        self.written += len(view)
        while view:
            done = os.pwrite(self._files[name], view, self._at[name])
            self._at[name] += done
            view = view[done:]

    def fill(self) -> None:
        """Writes all rows as not written, over whatever is there."""
        self._digests = {name: xxhash.xxh3_128() for name in self._columns}
        for name, column in self._columns.items():
            self._at[name] = self.piece.offset * column.row_bytes
            value = np.full(
                column.shape, _FILLED_WITH.get(name, 0), np.dtype(column.dtype)
            ).tobytes()
            many = max(1, CHUNK // max(1, len(value)))
            for left in range(self.piece.rows, 0, -many):
                self.write(name, value * min(many, left))

    def finished(self) -> Piece:
        """The piece with its digests. Raises ValueError when a column is not full."""
        for name, column in self._columns.items():
            if self._at[name] != (self.piece.offset + self.piece.rows) * column.row_bytes:
                raise ValueError(f"it has fewer rows of {name} than of {IDX}")
        found = {name: f"xxh3-128:{each.hexdigest()}" for name, each in self._digests.items()}
        return replace(self.piece, columns=found)


class Target:
    """A folder that is this process's alone, until `open_target` ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._work = folder / WORK
        self._columns: dict[str, Column] = {}
        self._files: dict[str, int] = {}
        self._done: dict[tuple[Any, ...], Piece] = {}
        self._waiting: list[Piece] = []
        self._waiting_bytes = 0

    def begin(self, columns: Mapping[str, Column], pieces: Sequence[Piece]) -> list[Piece]:
        """Makes the files ready; returns the pieces that are not there yet.

        Raises DestinationError when there is not enough space.
        """
        self._columns = dict(columns)
        rows = sum(piece.rows for piece in pieces)
        known = {each.identity: each for each in self._known()}
        self._done = {
            each.identity: replace(each, columns=known[each.identity].columns)
            for each in pieces
            if each.identity in known
        }
        self._check_space(rows)
        scaffold = self._scaffold(rows)
        self._write_journal()
        for name in (SEAL, META):
            _unlink(self.folder / name)
        _sync_folder(self.folder)
        for name, column in self._columns.items():
            path = self.folder / f"{name}{MEMMAP}"
            if not path.exists() or not self._done:
                os.replace(scaffold / path.name, path)
            self._files[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            os.ftruncate(self._files[name], rows * column.row_bytes)
        _sync_folder(self.folder)
        return [each for each in pieces if each.identity not in self._done]

    def unchanged(
        self, columns: Mapping[str, Column], pieces: Sequence[Piece], **values: Any
    ) -> Combined | None:
        """The seal that is there, if it says just what `seal` would say."""
        found = combined.read(self.folder)
        self._columns = dict(columns)
        if found is None or len(self._known()) != len(pieces):
            return None
        known = {each.identity: each for each in found.pieces}
        if any(each.identity not in known for each in pieces):
            return None
        there = [replace(each, columns=known[each.identity].columns) for each in pieces]
        rows = sum(piece.rows for piece in pieces)
        wanted = Combined(rows=rows, columns=self._columns, pieces=there, **values)
        return found if wanted == found and (self.folder / META).exists() else None

    def sink(self, piece: Piece) -> Sink:
        """Where a piece's rows go. For threads: each has a sink of its own."""
        return Sink(self._files, self._columns, piece)

    def note(self, sink: Sink) -> None:
        """A piece is copied, all of it. It is in the journal when its rows are on the disk."""
        self._waiting.append(sink.finished())
        self._waiting_bytes += sink.written
        if self._waiting_bytes >= _SYNC_BYTES:
            self.flush()

    def flush(self) -> None:
        """Brings to the disk, and into the journal, what was copied."""
        if not self._waiting:
            return
        for fd in self._files.values():
            os.fsync(fd)
        lines = b"".join(_line(asdict(piece)) for piece in self._waiting)
        fd = os.open(self._work / _JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write(fd, lines)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._done |= {piece.identity: piece for piece in self._waiting}
        self._waiting, self._waiting_bytes = [], 0

    def seal(self, pieces: Sequence[Piece], **values: Any) -> Combined:
        """Says that the folder is whole: all pieces must be done."""
        self.flush()
        for fd in self._files.values():  # what was cut or made longer, where no piece was copied
            os.fsync(fd)
        found = Combined(
            rows=sum(piece.rows for piece in pieces),
            columns=self._columns,
            pieces=[replace(each, columns=self._done[each.identity].columns) for each in pieces],
            **values,
        )
        for name in {each.name for each in self.folder.glob(f"*{MEMMAP}")}:
            if name.removesuffix(MEMMAP) not in self._columns:
                _unlink(self.folder / name)  # of another layout
        _put(self.folder / META, (self._work / _SCAFFOLD / META).read_bytes())
        _put(self.folder / SEAL, found.dump())
        return found

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    def _known(self) -> list[Piece]:
        """The pieces that are there, if the columns are still the same and their files whole."""
        sealed = combined.read(self.folder)
        if sealed is not None:
            columns, pieces = sealed.columns, sealed.pieces
        else:
            columns, pieces = self._read_journal()
        if columns != self._columns:
            return []
        rows = max((piece.offset + piece.rows for piece in pieces), default=0)
        for name, column in columns.items():
            try:
                if (self.folder / f"{name}{MEMMAP}").stat().st_size < rows * column.row_bytes:
                    return []
            except FileNotFoundError:
                return []
        return pieces

    def _read_journal(self) -> tuple[dict[str, Column], list[Piece]]:
        try:
            lines = (self._work / _JOURNAL).read_bytes().split(b"\n")[:-1]  # a torn one has no end
        except FileNotFoundError:
            return {}, []
        try:
            values = [json.loads(line) for line in lines]
            return combined.columns_from(values[0]["columns"]), [Piece(**v) for v in values[1:]]
        except (ValueError, TypeError, KeyError, IndexError):
            return {}, []  # nothing is taken for done

    def _write_journal(self) -> None:
        """The journal anew, with the pieces that stay: without a torn line, and without rows that others
        will be written over."""
        columns = {name: asdict(column) for name, column in self._columns.items()}
        lines = [
            _line({"columns": columns}),
            *(_line(asdict(each)) for each in self._done.values()),
        ]
        _put(self._work / _JOURNAL, b"".join(lines))

    def _check_space(self, rows: int) -> None:
        needed = rows * sum(column.row_bytes for column in self._columns.values())
        for name in self._columns:
            with suppress(FileNotFoundError):
                needed -= (self.folder / f"{name}{MEMMAP}").stat().st_blocks * 512
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DestinationError(
                f"{self.folder}: {free:,} bytes are free, {needed:,} more are needed; free some, or give "
                "another folder"
            )

    def _scaffold(self, rows: int) -> Path:
        """The folder as tensordict makes it: files of the right size, with holes, and `meta.json`."""
        torch, tensordict = _libraries()
        scaffold = self._work / _SCAFFOLD
        shutil.rmtree(scaffold, ignore_errors=True)
        made = tensordict({}, batch_size=[rows]).memmap_(str(scaffold))
        for name, column in self._columns.items():
            made.make_memmap(name, (rows, *column.shape), dtype=getattr(torch, column.dtype))
        return scaffold


@contextmanager
def open_target(folder: Path) -> Iterator[Target]:
    """A folder to combine into: a new or empty one, or one that was combined before.

    Raises DestinationError when it holds something else, another process is at it, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = set(os.listdir(folder))
        if names and not names & {SEAL, WORK}:
            raise DestinationError(
                f"{folder}: found a folder with other files ({', '.join(sorted(names)[:3])}); expected a "
                f"new one, or one that was combined before (with {SEAL})"
            )
        (folder / WORK).mkdir(exist_ok=True)
        with _locked(folder / WORK / _LOCK):
            target = Target(folder)
            try:
                yield target
            finally:
                target.close()
            if (folder / SEAL).exists():
                shutil.rmtree(folder / WORK, ignore_errors=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise DestinationError(
            f"{folder}: {error.strerror}; expected a folder that this user may write to, with enough space. "
            "What is done stays: combine again"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DestinationError(
                f"{path.parent.parent}: another process is combining into it; wait for its end"
            ) from None
        yield


def check_owner(folder: Path, sources: Sequence[Mapping[str, Any]]) -> None:
    """Raises DestinationError when a sealed folder was combined from something else altogether."""
    sealed = combined.read(folder)
    if sealed is None:
        return
    found, wanted = (
        {each.get("dataset", "") for each in some} for some in (sealed.sources, sources)
    )
    if not found & wanted:
        names = ", ".join(sorted(each or "partial results" for each in found))
        raise DestinationError(
            f"{folder}: was combined from {names}; give each its own folder, or remove this one"
        )


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        from tensordict import TensorDict
    except ImportError as error:
        raise ConfigError(f"combining needs the packages torch and tensordict; {EXTRA}") from error
    return torch, TensorDict


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _put(path: Path, data: bytes) -> None:
    """Writes a whole file: it is there with all its bytes, or as before."""
    temporary = path.with_name(f".tmp-{path.name}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
