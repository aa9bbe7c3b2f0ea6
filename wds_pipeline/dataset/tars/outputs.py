"""Where tars go: files that appear when they are whole, and stdout."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from wds_pipeline.config_storage import Place, absolute, check_no_password, check_slashes, is_folder
from wds_pipeline.dataset.tars.inputs import STREAM, Tar
from wds_pipeline.dataset.tars.write import TarWriter
from wds_pipeline.errors import ConfigError, DestinationError
from wds_pipeline.storage import Storage, open_storage

_NUMBER = re.compile(r"%0?(\d*)d")


class _Stdout:
    """Raises BrokenPipeError when its reader went away."""

    def write(self, data: bytes | memoryview, /) -> None:
        sys.stdout.buffer.write(data)


@contextmanager
def open_output(name: str, inputs: Sequence[Tar], force: bool = False) -> Iterator[TarWriter]:
    """A tar to write to, at a path or URL, or `-`. It is there, whole, when the block ends without an error;
    what has gone to stdout then lacks the archive's end, so that its reader notices.

    Raises ConfigError for a terminal, DestinationError for a file that is there, unless `force`.
    """
    if name == STREAM:
        if sys.stdout.isatty():
            raise ConfigError("-o -: a tar is nothing for a terminal; use a pipe, or name a file")
        tar = TarWriter(_Stdout())
        yield tar
        tar.finish()
        sys.stdout.buffer.flush()
        return
    storage, path = place_of(name)
    check_free(storage, path, inputs, force)
    with _written(storage, path) as tar:
        yield tar


@contextmanager
def _written(storage: Storage, path: str) -> Iterator[TarWriter]:
    with storage.create(path) as file:
        tar = TarWriter(file)
        yield tar
        tar.finish()


def place_of(name: str) -> tuple[Storage, str]:
    """The folder of an output, and its name in there. Raises ConfigError."""
    try:
        check_no_password(name)
        check_slashes(name)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    url = absolute(name.removeprefix("file://") if name.startswith("file:///") else name, "")
    folder, _, path = url.rpartition("/")
    if not path or name.endswith("/") or (is_folder(url) and os.path.isdir(url)):
        raise ConfigError(f"{name}: found a folder; expected the name of a tar to write")
    return open_storage(Place(url=folder or "/")), path


def check_free(
    storage: Storage, path: str, inputs: Sequence[Tar], force: bool, *, at_the_end: bool = True
) -> None:
    """Raises DestinationError when a file is there, unless `force`; for one of the inputs always, if they are
    not all read when it appears (`at_the_end`)."""
    where = storage.locate(path)
    is_input = any(where == each.where or _same(where, each) for each in inputs)
    if is_input and not (force and at_the_end):
        then = "; --force replaces it once all is read" if at_the_end else ""
        raise DestinationError(f"{where}: is one of the inputs{then}; choose another name")
    if not force and storage.stat(path) is not None:
        raise DestinationError(f"{where}: is there already; --force replaces it")


def _same(where: str, tar: Tar) -> bool:
    try:
        return tar.seekable and os.path.samefile(where, tar.where)
    except OSError:
        return False


class Outputs:
    """Tars of one numbered name, `out-%06d.tar` or `out-{000000..000575}.tar`, written one after the other.

    Leaving the block by an error removes those that were written in it.
    """

    def __init__(self, pattern: str, inputs: Sequence[Tar], force: bool = False) -> None:
        """Raises ConfigError, or DestinationError when tars of such names are there, unless `force`."""
        self._pattern, self._inputs, self._force = pattern, inputs, force
        self._names = _braces(pattern)
        self._storage, self._glob = place_of(self._names[0] if self._names else pattern)
        if not self._names:
            if (
                len(_NUMBER.findall(self._glob)) != 1
                or self._glob.replace("%%", "").count("%") != 1
            ):
                raise ConfigError(
                    f"{pattern}: expected one number in the name, such as out-%06d.tar or "
                    "out-{000..575}.tar"
                )
            self._glob = _NUMBER.sub("*", self._glob)
        self.written: list[str] = []
        self._before = self._there()
        for path in self._before:
            check_free(self._storage, path, inputs, force, at_the_end=False)

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for path in self.written:
                self._storage.delete(path)
        else:
            for path in set(self._before) - set(self.written):  # of a set that was longer
                self._storage.delete(path)

    def locate(self, path: str) -> str:
        """Where other programs find one."""
        return self._storage.locate(path)

    @contextmanager
    def next(self) -> Iterator[TarWriter]:
        """The next tar to write, which is there when the block ends without an error.

        Raises DestinationError.
        """
        path = self._path(len(self.written))
        if path not in self._before:
            check_free(self._storage, path, self._inputs, self._force, at_the_end=False)
        with _written(self._storage, path) as tar:
            yield tar
        self.written.append(path)

    def _path(self, number: int) -> str:
        if not self._names:
            name = self._pattern.rpartition("/")[2]
            return _NUMBER.sub(lambda match: str(number).zfill(int(match[1] or 0)), name)
        if number >= len(self._names):
            raise DestinationError(
                f"{self._pattern}: names {len(self._names):,} tars, and there are more samples; name "
                "more, or write out-%06d.tar for as many as it takes"
            )
        return self._names[number].rpartition("/")[2]

    def _there(self) -> list[str]:
        """Tars of such names that are there."""
        if self._names:
            names = [each.rpartition("/")[2] for each in self._names]
            there = set(self._storage.list_names(""))
            return [each for each in names if each in there]
        shape = re.escape(self._glob).replace(r"\*", r"\d+")
        return [
            each
            for each in sorted(self._storage.list_names(""))
            if fnmatchcase(each, self._glob) and re.fullmatch(shape, each)
        ]


def _braces(pattern: str) -> list[str]:
    """The names that braces stand for; none if there are no braces."""
    from braceexpand import braceexpand

    try:
        names = list(braceexpand(pattern))
    except ValueError:
        raise ConfigError(
            f"{pattern}: a brace is not closed; expected such as {{000..575}}"
        ) from None
    if len(names) == 1:
        return []
    if len({each.rpartition("/")[0] for each in names}) > 1:
        raise ConfigError(
            f"{pattern}: names several folders; expected braces in the file's name only"
        )
    return names
