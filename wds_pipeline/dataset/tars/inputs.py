"""The tars that a command reads, by the names that users give; `-` is stdin."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import BinaryIO

from wds_pipeline.config_storage import scheme_of
from wds_pipeline.dataset.tar_paths import find_tars
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.read import Spool, TarReader
from wds_pipeline.dataset.tars.sample import Sample, Stored
from wds_pipeline.errors import ConfigError, SourceChanged, SourceError
from wds_pipeline.storage import FileInfo, LocalStorage, Storage

STREAM = "-"
_PIPE = 1024 * 1024  # bytes that a pipe holds, where the system lets it


class Tar:
    """One tar of a store, as it was when it was found; or stdin, without a store."""

    def __init__(self, storage: Storage | None, info: FileInfo | None) -> None:
        self.storage = storage
        self.info = info

    @property
    def where(self) -> str:
        """How messages name it, and where other programs find it."""
        if self.storage is None or self.info is None:
            return "stdin"
        return self.storage.locate(self.info.path)

    @property
    def seekable(self) -> bool:
        """Whether parts of it are had at once: a file of this machine."""
        return isinstance(self.storage, LocalStorage)

    def open(self) -> BinaryIO:
        """For reading, front to back. Raises SourceError."""
        if self.storage is None or self.info is None:
            stream = _stdin()
            with suppress(OSError, AttributeError, ValueError):  # no pipe; not Linux
                fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
            return stream
        try:
            return self.storage.open(self.info.path)
        except OSError as error:
            raise SourceError(
                f"{self.where}: cannot be read ({error.strerror or error})"
            ) from error

    def range(self, offset: int, size: int) -> Stored:
        """A part of it, which is read when it is wanted."""
        storage, info = self.storage, self.info
        assert storage is not None and info is not None

        def read(at: int, count: int) -> memoryview:
            try:
                return storage.read_range(info.path, offset + at, count)[0]
            except (SourceChanged, OSError) as error:
                raise SourceError(f"{self.where}: {_CHANGED}") from error

        return Stored(read, size)

    def check_unchanged(self) -> None:
        """Raises SourceError when it is no longer what was found."""
        if self.storage is None or self.info is None:
            return
        now = self.storage.stat(self.info.path)
        if now is None or (now.size, now.modified) != (self.info.size, self.info.modified):
            raise SourceError(f"{self.where}: {_CHANGED}")

    def samples(
        self, account: Account, *, keep_whole: bool = False, copy: Spool | None = None
    ) -> Iterator[Sample]:
        """Its samples; `copy` gets all its bytes. Raises DataError for damage, SourceError."""
        account.tars += 1
        ranges = None if self.storage is None else self.range
        file = self.open()
        try:
            reader = TarReader(
                file, self.where, account, ranges=ranges, copy=copy, keep_whole=keep_whole
            )
            for sample in reader.samples():
                account.read += 1
                yield sample
            self.check_unchanged()
        except OSError as error:
            raise SourceError(
                f"{self.where}: cannot be read ({error.strerror or error})"
            ) from error
        finally:
            if self.storage is not None:
                file.close()


_CHANGED = "it was changed or removed while it was read; do it again when nobody writes to it"


def _stdin() -> BinaryIO:
    stream = sys.stdin
    if stream is None or stream.isatty():
        raise ConfigError(
            "-: expected a tar on stdin, found a terminal; name a file, or use a pipe"
        )
    return stream.buffer


def find_inputs(names: Sequence[str]) -> list[Tar]:
    """The tars that the names stand for, in their order; one that is named twice is read once.

    Names are paths or URLs with `{0000..0575}`, `*`, `::`, folders, and `-`. Raises ConfigError, SourceError.
    """
    parts = [part for name in names for part in name.split("::") if part]
    if not parts:
        raise ConfigError("which tars? Give paths or URLs, such as 'cc3m-{0000..0575}.tar', or -")
    if parts.count(STREAM) > 1:
        raise ConfigError("-: stdin can be read once only")
    found: list[Tar] = []
    for store, some in groupby(parts, _store):
        if store == STREAM:
            found.append(Tar(None, None))
        else:
            tars = find_tars(list(some))
            found += [Tar(tars.storage, info) for info in tars.files]
    return list({each.where: each for each in found}.values())


def _store(name: str) -> str:
    """Names of one store are found at once."""
    if name == STREAM:
        return STREAM
    return (
        f"{scheme_of(name)}://{name.partition('://')[2].partition('/')[0] if '://' in name else ''}"
    )


def read_all(tars: Sequence[Tar], account: Account, keep_whole: bool = False) -> Iterator[Sample]:
    """The samples of all tars, one after the other. Raises DataError, SourceError."""
    for each in tars:
        yield from each.samples(account, keep_whole=keep_whole)
