"""A shell command for each sample: its fields are files, and so is what comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from wds_pipeline.dataset.commands import Commands
from wds_pipeline.dataset.tars.map import Failed
from wds_pipeline.dataset.tars.read import LARGE, Spool
from wds_pipeline.dataset.tars.sample import Data, Member, Sample, pieces
from wds_pipeline.storage.base import BLOCK

STEM = "sample."
_SHELL = "/bin/sh"
_TOLD = 2_000  # bytes of what a failing command said last


class Command:
    """Runs a command for a sample, in a folder of its own that has `sample.jpg`, `sample.txt`, …

    The files that are there afterwards are the sample's fields; if there is none, it is left out. The key
    is in the variable WDS_KEY; temporary files have a folder of their own, TMPDIR. What the command prints
    is shown when it fails.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._commands = Commands()

    def __call__(self, sample: Sample) -> list[Sample] | Failed:
        with tempfile.TemporaryDirectory(
            prefix="wds-pipeline-", ignore_cleanup_errors=True
        ) as root:
            folder, temporary = Path(root, "sample"), Path(root, "tmp")
            folder.mkdir()
            temporary.mkdir()
            for field, data, _ in sample.members:
                try:
                    with (folder / f"{STEM}{field}").open("wb") as file:
                        for piece in pieces(data):
                            file.write(piece)
                except OSError as error:
                    return Failed(f"its field {field!r} cannot be a file: {error.strerror}")
            with tempfile.TemporaryFile(dir=root) as said:
                code = self._run(sample, folder, temporary, said)
                if code:
                    return Failed(f"{_told(code)}: {self._command}", _last(said))
            return _result(sample, folder)

    def stop(self) -> None:
        """Ends the commands that run, with all that they started; no other begins."""
        self._commands.stop()

    def _run(self, sample: Sample, folder: Path, temporary: Path, said: IO[bytes]) -> int:
        environment = {**os.environ, "WDS_KEY": sample.key, "TMPDIR": str(temporary)}
        with self._commands.run(
            [_SHELL, "-c", self._command],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process:
            return process.wait()


def _told(code: int) -> str:
    if code > 0:
        return f"the command exited with {code}"
    return f"the command was ended by {signal.Signals(-code).name}"


def _last(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _TOLD))
    text = said.read().decode(errors="backslashreplace").rstrip()
    return f"…{text}" if size > _TOLD else text


def _result(sample: Sample, folder: Path) -> list[Sample] | Failed:
    found: dict[str, Data] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(STEM) or not path.is_file():
            return Failed(
                f"the command left {path.name!r}; expected files named {STEM}FIELD only (temporary ones "
                "belong into $TMPDIR)"
            )
        found[path.name.removeprefix(STEM)] = _content(path)
    if not found:
        return []
    before = [field for field, _, _ in sample.members if field in found]
    order = before + [field for field in found if field not in before]
    return [Sample(sample.key, [Member(field, found[field]) for field in order], sample.where)]


def _content(path: Path) -> Data:
    size = path.stat().st_size
    if size <= LARGE:
        return path.read_bytes()
    spool = Spool()
    with path.open("rb") as file:
        while chunk := file.read(BLOCK):
            spool.write(chunk)
    return spool.part(0, spool.size)
