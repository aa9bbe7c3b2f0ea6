"""A list of members as a source, as `tarp create` takes it: a line each, `name source`.

The grammar is tarp's (github.com/webdataset/tarp, tarp/create.go and dpipes/gopen.go): the name ends at the
first white space, the source is the rest of the line: a path, `file:path`, `text:content` or `pipe:command`,
which `bash -c` runs. Beyond tarp, blank lines and lines that begin with `#` are skipped, and a line may begin
with white space. So a name has no white space in it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import IO

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_storage import Place
from wds_pipeline.dataset.commands import Commands
from wds_pipeline.dataset.sources.base import Progress
from wds_pipeline.dataset.sources.declared import DATA, FILE, REMOTE, Declared, Names, as_text
from wds_pipeline.dataset.sources.fetch import fetch_all
from wds_pipeline.dataset.sources.kept import OK, Fetched, Kept, id_of
from wds_pipeline.dataset.sources.listed import ListedSource
from wds_pipeline.dataset.sources.table_files import TableFiles, find_list
from wds_pipeline.errors import ConfigError, DataError
from wds_pipeline.storage import CONTENT, open_storage

_LINE = re.compile(rb"\s*(\S+)\s+(.*)", re.DOTALL)
_PIPES = 4  # commands that run at a time
_TAIL = 300  # characters of what a failing command said last
_PIECE = 1024 * 1024
_ROWS = 50_000


class RecipeSource(ListedSource):
    """`source.recipe`. The output of commands is kept at the destination: a line that changes runs again."""

    keeps = "pipes"
    fetches = ("command", "commands")

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        if config.source.recipe is None:
            raise ConfigError(f"{config.name}: source.recipe is missing")
        self._recipe = config.source.recipe

    def check(self) -> None:
        """Whether the list is there. Raises SourceError, ConfigError."""
        self._find()

    def _find(self) -> TableFiles:
        return find_list(self.url, self._recipe.storage, self.dataset)

    def state(self) -> str:
        return ""  # paths are looked at each time

    def declare(self, progress: Progress | None = None) -> Declared:
        """Reads the lines. Raises SourceError, ConfigError, DataError."""
        found = self._find()
        place = found.storage.place
        if self._recipe.base:
            url = self.config.resolve(self._recipe.base)
            storage = self._recipe.storage
            place = Place(url=url, storage=storage, dataset=self.dataset, part="source")
        self.bases = [open_storage(place)]
        self.opened = [found.storage, *self.bases]
        file = found.files[0].path
        named = found.named(file)
        lines: list[int] = []
        declared = Declared(lambda row: f"{named}, line {lines[row]:,}")
        collected = _Lines(declared)
        with found.open(file) as stream:
            for number, line in enumerate(stream, 1):
                text = line.rstrip(b"\r\n")
                if not text.strip() or text.lstrip().startswith(b"#"):
                    continue
                lines.append(number)
                collected.add(*self._split(f"{self.dataset}: {named}:{number}", text))
                if progress is not None and not number % _ROWS:
                    progress("scan", number, 0)
        collected.close()
        return declared

    def _split(self, where: str, line: bytes) -> tuple[bytes, int, bytes]:
        """A line's name, and what kind of source it has. Raises DataError, ConfigError."""
        match = _LINE.fullmatch(line)
        if match is None:
            shown = line[:40].decode("utf-8", "backslashreplace")
            raise DataError(
                f"{where}: found {shown!r}; expected a member's name, a space, and its source: a path, "
                "file:path, text:content or pipe:command. Nothing was published"
            )
        name, source = match[1], match[2]
        if source.startswith(b"text:"):
            return name, DATA, source[5:]
        if source.startswith(b"pipe:"):
            if not self._recipe.allow_pipe:
                raise ConfigError(
                    f"{where}: pipe: runs a command; read the list, and if you trust it set "
                    "source.recipe.allow_pipe: true"
                )
            return name, REMOTE, source
        return name, FILE, source.removeprefix(b"file:")

    def fetch(
        self, table: pa.Table, rows: np.ndarray, kept: Kept, progress: Progress | None
    ) -> Counter[str]:
        """Runs the commands of these lines, in the folder of the base."""
        folder = self.bases[0].locate("") if self.bases[0].folders else None
        jobs = table["text"].take(pa.array(rows)).to_pylist()
        commands = Commands()
        work = partial(run, commands, folder, self._recipe.timeout_seconds)
        try:
            return fetch_all(
                jobs, len(rows), work, kept, concurrency=_PIPES, what="pipe", progress=progress
            )
        finally:
            commands.stop()


class _Lines:
    """Lines as columns, a chunk of them at a time."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._names: list[bytes] = []
        self._sources: dict[int, list[bytes | None]] = {DATA: [], FILE: [], REMOTE: []}
        self._first = 0

    def add(self, name: bytes, kind: int, source: bytes) -> None:
        """One line."""
        self._names.append(name)
        for each, values in self._sources.items():
            values.append(source if each == kind else None)
        if len(self._names) >= _ROWS:
            self.close()

    def close(self) -> None:
        """Takes the lines since the last call into the columns."""
        text, broken = as_text(pa.array(self._names, pa.large_binary()))
        problems = np.full(len(self._names), None, object)
        problems[broken] = "name_not_utf8"
        names = Names(self._first, text, pa.array(problems, pa.string()))
        self._declared.names(names)
        for kind, values in self._sources.items():
            cells = pa.array(values, pa.large_binary())
            if cells.null_count < len(cells):
                self._declared.add(names, "", kind, cells, 0 if kind == FILE else -1)
            values.clear()
        self._first += len(self._names)
        self._names = []


def run(commands: Commands, folder: str | None, seconds: float, source: str) -> Fetched:
    """Runs `pipe:command` and takes what it writes. A status of its own says how it failed."""
    command = source.removeprefix("pipe:")
    body: IO[bytes] = tempfile.SpooledTemporaryFile(_PIECE)  # type: ignore[assignment]  # noqa: SIM115
    name, began = id_of(source), time.monotonic()
    with tempfile.TemporaryFile() as said:
        bash = commands.run(
            ["bash", "-c", command], seconds, cwd=folder, stdout=subprocess.PIPE, stderr=said
        )
        with ExitStack() as stack:
            try:
                process = stack.enter_context(bash)
            except OSError as error:
                body.close()
                return Fetched(name, source, "cannot run", detail=f"bash: {error.strerror}")
            size, digest = 0, xxhash.xxh3_128()
            assert process.stdout is not None
            with process.stdout:
                while data := process.stdout.read(_PIECE):
                    size += len(data)
                    digest.update(data)
                    body.write(data)
            code = process.wait()
        if code:
            body.close()
            status = f"exit {code}"
            if code == -signal.SIGKILL and time.monotonic() - began >= seconds:
                status = f"ended after {seconds:g} s (timeout_seconds)"
            return Fetched(name, source, status, code=code, detail=_tail(said))
    body.seek(0)
    return Fetched(name, source, OK, body, size, CONTENT + digest.hexdigest(), code)


def _tail(said: IO[bytes]) -> str:
    """The end of what a command said."""
    end = said.seek(0, 2)
    said.seek(max(0, end - 4 * _TAIL))
    text = " ".join(said.read().decode("utf-8", "replace").split())
    return text[-_TAIL:] or "it said nothing"
