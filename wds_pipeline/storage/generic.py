"""Any store that fsspec knows, below one root: what the verbs have in common, whatever the store."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import islice
from typing import BinaryIO, TypeVar

import pyarrow as pa
import xxhash

from wds_pipeline.config_storage import Place, StorageConfig
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    SourceChanged,
    SourceError,
    WdsPipelineError,
)
from wds_pipeline.storage import conditional, fingerprint
from wds_pipeline.storage.asking import BeyondEnd, Failure, explain, within
from wds_pipeline.storage.base import (
    BLOCK,
    CONTENT,
    KEYS,
    TEMPORARY,
    UNREADABLE,
    FileInfo,
    Read,
    Reads,
    Storage,
    Stored,
    Writer,
    check_content,
)
from wds_pipeline.storage.connections import threads
from wds_pipeline.storage.fingerprint import Facts
from wds_pipeline.storage.kinds import Found, Kind, kind_of
from wds_pipeline.storage.ranged import open_ranged, read_range

_ROWS = 20_000
_PARTS_AHEAD = 4
_SECONDS_TO_CHECK = 10.0
# A second write within the grain of a store's times is not seen: the clock's tick, or, where times
# are told without fractions (HTTP, SFTP), a second.
_TICK = 0.02
_SECOND = 1.0
_OF_S3 = (
    "profile",
    "endpoint_url",
    "region",
    "addressing_style",
    "requester_pays",
    "sse",
    "sse_kms_key",
)
Answer = TypeVar("Answer")


def open_generic(place: Place) -> GenericStorage:
    """The store behind a place of any scheme but `file` and `s3`. Nothing is asked of it yet.

    Raises ConfigError for a scheme that is not known or whose package is not installed, or settings
    that are not for it; DestinationError for a destination that cannot be written.
    """
    storage = GenericStorage(place)
    default = StorageConfig()
    wrong = [name for name in _OF_S3 if getattr(place.storage, name) != getattr(default, name)]
    if place.storage.anonymous and not storage.kind.anonymous:
        wrong.append("anonymous")
    if wrong:
        raise ConfigError(
            f"{place.named}: storage.{wrong[0]} is not for {place.scheme}://; its settings go into "
            "storage.options, as its fsspec filesystem takes them"
        )
    if place.part == "destination" and place.dataset:  # else it may be somebody who only reads
        storage.kind.check_writable()
    return storage


class GenericStorage(Storage):
    """Any store that fsspec knows."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.ranges = place.storage.concurrency
        self._kind: Kind = kind_of(place, self.usage)
        self._process = os.getpid()

    @property
    def kind(self) -> Kind:
        """The way to it, of this process: connections do not outlive a fork."""
        if self._process != os.getpid():
            self.usage.after_fork()
            self._kind, self._process = kind_of(self.place, self.usage), os.getpid()
        return self._kind

    def check(self) -> None:
        """Whether the store is there and lets us in: within seconds, without trying again.

        Raises SourceError or DestinationError, by the place's part.
        """
        seconds = min(self.place.storage.timeout_seconds, _SECONDS_TO_CHECK)
        limits = {"retry_seconds": 0.0, "timeout_seconds": seconds}
        storage = self.place.storage.model_copy(update=limits)
        kind = kind_of(self.place.model_copy(update={"storage": storage}), self.usage)
        try:
            within(seconds + 1, kind.check)
        except WdsPipelineError:
            raise
        except FileNotFoundError as error:
            raise self.kind.ask.error("", Failure(_of(error), absent=True)) from error
        except Exception as error:
            raise self.kind.ask.error("", explain(error)) from error

    # Reading what is at a destination.

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return self.kind.fetch(path)[0]

    def open(self, path: str) -> BinaryIO:
        """The file for reading, seekable. Raises FileNotFoundError."""
        return open_ranged(self.kind, path, threads(self.ranges), self.locate(path))

    def read_range(
        self, path: str, offset: int, size: int, known: Stored | None = None
    ) -> tuple[memoryview, Stored]:
        """Some bytes of a file, and the state of it. Raises FileNotFoundError, SourceChanged."""
        return read_range(self.kind, path, offset, size, known)

    def stat(self, path: str) -> FileInfo | None:
        """The file's facts, or None when there is none."""
        try:
            return FileInfo(*self.kind.look(path)[:3])
        except FileNotFoundError:
            return None

    def list_files(self, folder: str = "") -> Iterator[FileInfo]:
        """The files in a folder, not deeper, in no order; none when there is no such folder."""
        return iter([FileInfo(*each[:3]) for each in self._folder(folder)[0]])

    def list_folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, sorted."""
        return self._folder(folder)[1]

    def _folder(self, folder: str) -> tuple[list[Found], list[str]]:
        try:
            return self.kind.folder(f"{folder.rstrip('/')}/" if folder else "")
        except (FileNotFoundError, NotADirectoryError):
            return [], []

    def is_empty(self) -> bool:
        """Whether the root does not exist or holds nothing but unfinished writes."""
        files, folders = self._folder("")
        return not folders and all(each.path.startswith(TEMPORARY) for each in files)

    # Reading a source's files.

    def start_reads(self, reads: Sequence[Read]) -> Reads:
        """Begins to read files, `storage.concurrency` at a time (of at most 64); what it returns waits.

        Waiting raises SourceChanged when one vanished, is unreadable, or has another size or
        fingerprint; SourceError when the store stays away.
        """
        under_way = [threads(self.ranges).submit(self._read, each) for each in reads]

        def cancel() -> None:
            for each in under_way:
                each.cancel()

        def wait() -> None:
            try:
                for each in under_way:
                    each.result()
            except BaseException:
                cancel()
                # Nobody may write into the views once this has returned.
                for each in under_way:
                    with suppress(BaseException):
                        each.exception()
                raise

        return Reads(wait, cancel)

    def _read(self, read: Read) -> None:
        size = len(read.view)
        if not size:  # some stores have no range for it
            self.check_source(read.path, size, read.fingerprint)
            return
        data, facts = self._changed(read.path, lambda: self.kind.fetch(read.path))
        if len(data) != size:
            raise SourceChanged(read.path, f"{len(data):,} bytes now, {size:,} were scanned")
        if read.fingerprint.startswith(CONTENT):
            check_content(read.path, xxhash.xxh3_128_hexdigest(data), read.fingerprint)
        else:
            self._check_state(read.path, facts, size, read.fingerprint)
        read.view[:] = data

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        """Like `read_into`, for a file too large for memory; the last check follows the last byte."""
        content = xxhash.xxh3_128() if fingerprint.startswith(CONTENT) else None
        starts = iter(range(0, size, BLOCK))
        ahead: deque[tuple[int, Future[tuple[bytes, Facts]]]] = deque()
        facts: Facts = {}

        def begin() -> None:
            for start in starts:
                end = min(start + BLOCK, size)
                ahead.append(
                    (end - start, threads(self.ranges).submit(self.kind.fetch, path, start, end))
                )
                if len(ahead) >= _PARTS_AHEAD:
                    return

        try:
            begin()
            at = 0
            while ahead:
                wanted, coming = ahead.popleft()
                data, facts = self._changed(path, coming.result)
                at += len(data)
                if len(data) != wanted:
                    raise SourceChanged(path, f"{at:,} bytes could be read, {size:,} were scanned")
                if content is not None:
                    content.update(data)
                elif facts:
                    self._check_state(path, facts, size, fingerprint, look=False)
                begin()
                yield memoryview(data)
        finally:
            for _, coming in ahead:
                coming.cancel()
        if content is None:
            self._check_state(path, facts, size, fingerprint)
            return
        self._check_size(path, size)
        check_content(path, content.hexdigest(), fingerprint)

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        """Raises SourceChanged when `read_into` would, as far as can be said without reading."""
        if not fingerprint.startswith(CONTENT):
            self._check_state(path, {}, size, fingerprint)
        elif size:
            self._check_size(path, size)
        else:
            self._check_size(path, size)
            check_content(path, xxhash.xxh3_128_hexdigest(b""), fingerprint)

    def _check_size(self, path: str, size: int) -> Found:
        found = self._changed(path, lambda: self.kind.look(path))
        if found.size != size:
            raise SourceChanged(path, f"{found.size:,} bytes now, {size:,} were scanned")
        return found

    def _check_state(
        self, path: str, facts: Facts, size: int, state: str, *, look: bool = True
    ) -> None:
        """Compares the state of what was read with the one scanned: by what came with the bytes, else
        by asking after them."""
        same = fingerprint.same(state, facts)
        if same is None and self.kind.unchanging and size:
            return
        if same is None and look:
            same = fingerprint.same(state, self._check_size(path, size).facts)
        if same is False or (same is None and look):
            raise SourceChanged(path, "it was modified after the scan")

    def _changed(self, path: str, act: Callable[[], Answer]) -> Answer:
        """Acts; what is gone or refused is for this file alone, and the store may be well."""
        try:
            return act()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise SourceChanged(path, "it is gone") from error
        except BeyondEnd as error:
            raise SourceChanged(path, "it has fewer bytes now than were scanned") from error
        except (SourceError, DestinationError) as error:
            failure = explain(error.__cause__) if error.__cause__ else None
            if failure is not None and failure.of_one_file:
                raise SourceChanged(path, f"{UNREADABLE}: {failure.text}") from error
            raise

    def list_keys(self, after: str = "") -> Iterator[pa.Table]:
        """The files below the root behind the path `after`, sorted by the bytes of their paths.

        Raises SourceError when they cannot be listed, or the store tells of a file neither a checksum
        nor a time.
        """
        newest = 0.0
        try:
            for rows in _batches(self.kind.below(after)):
                table, time_of_it = self._table(rows)
                newest = max(newest, time_of_it)
                yield table
        except FileNotFoundError as error:
            raise self.kind.ask.error("", Failure(_of(error), absent=True)) from error
        # After this, an edit of any listed file gets another time than the one listed.
        tick = _SECOND if newest.is_integer() else _TICK
        age = time.time() - newest
        if 0 <= age < tick:
            time.sleep(tick - age)

    def _table(self, rows: list[Found]) -> tuple[pa.Table, float]:
        """The rows as a table; the newest time among them that is all that is known of its file."""
        states = [fingerprint.choose(each.facts, self.kind.order) for each in rows]
        if not all(states):
            raise SourceError(
                f"{self.place.named.rstrip('/')}/{rows[states.index('')].path}: the store tells neither "
                "a checksum nor a time of it, so that a later change would go unseen; expected an "
                "ETag or a time of modification"
            )
        times = [
            each.modified
            for each, state in zip(rows, states, strict=True)
            if state.startswith("mtime:")
        ]
        columns = ([each.path for each in rows], [each.size for each in rows], states)
        arrays = [pa.array(values, each.type) for values, each in zip(columns, KEYS, strict=True)]
        return pa.table(arrays, schema=KEYS), max(times, default=0.0)

    # Writing.

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        """Writes a file that appears, whole, under `path` when the block ends without an error.

        Raises DestinationError.
        """
        with self._told(path):
            upload = self.kind.upload(path)
        try:
            yield upload
            with self._told(path):
                upload.finish()
        except BaseException:
            with suppress(Exception):
                upload.abandon()
            raise

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Writes a whole file unless one exists; says whether it did.

        Raises DestinationError; then it is not known whether.
        """
        if self.place.single_writer:
            return conditional.put_as_single_writer(self, path, data)
        self.check_put_if_absent()
        with self._told(path):
            return self.kind.create(path, data)

    def check_put_if_absent(self) -> None:
        """Raises DestinationError where the store has no conditional create, and the user has not
        said that there is one writer only. Creates a file twice, once in a process."""
        with self._told(""):
            conditional.check_put_if_absent(self, self.kind.create)

    def link(self, path: str, target: str) -> None:
        """Makes `path` a copy of the file `target`, in place of any other file there; by the store
        itself where it can. Raises DestinationError."""
        with self._told(path, f"{target} is not there"):
            self.kind.copy(path, target)

    def touch(self, path: str) -> bool:
        """Sets the time of modification to now; says whether the file was there."""
        with self._told(path):
            try:
                self.kind.touch(path)
            except FileNotFoundError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Removes a file, if it is there. Raises DestinationError."""
        with self._told(path), suppress(FileNotFoundError):
            self.kind.remove(path)

    @contextmanager
    def _told(self, path: str, missing: str = "not found") -> Iterator[None]:
        """Makes an error of the destination of whatever is none of ours yet."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, FileExistsError, OSError) as error:
            text = missing if isinstance(error, FileNotFoundError) else explain(error).text
            raise DestinationError(f"{self.locate(path)}: cannot be written: {text}") from error


def _batches(found: Iterator[Found]) -> Iterator[list[Found]]:
    while rows := list(islice(found, _ROWS)):
        yield rows


def _of(error: FileNotFoundError) -> str:
    cause = error.__cause__ or error
    return explain(cause).text
