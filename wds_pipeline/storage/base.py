"""The verbs of the door to bytes, which every kind of store has; and what they deal in.

Paths are relative to the root, with `/`. Nothing here renames or assumes folders. Every write is whole
or absent. What a store cannot do for the moment (it is away, throttles, stalls) is an error whose
`passing` is true, raised when the store's own budget of tries is spent.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

import pyarrow as pa

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import SourceChanged

TEMPORARY = ".tmp-"  # names with this prefix are unfinished writes; `gc` removes old ones
CONTENT = "xxh3-128:"  # a fingerprint that is a hash of the content starts so
BLOCK = 8 * 1024 * 1024  # of a large file, asked for or sent at a time
Item = TypeVar("Item")
Result = TypeVar("Result")
UNREADABLE = "cannot be read"  # how the reason of a SourceChanged begins that is none of content

# What `list_keys` yields: the store's own order, by the bytes of the path.
KEYS = pa.schema(
    [
        pa.field("path", pa.large_string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("fingerprint", pa.large_string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class FileInfo:
    """One stored file: `path` relative to the root, `size` in bytes, `modified` in seconds."""

    path: str
    size: int
    modified: float


class Writer(Protocol):
    """A file under way; it exists under its name once the `create` block ends without an error."""

    def write(self, data: bytes | memoryview, /) -> None: ...


@dataclass
class Usage:
    """What was asked of a store: requests by kind, bytes that came and went. Tries count, each.

    Folders of this machine count no requests.
    """

    list: int = 0
    head: int = 0
    get: int = 0
    put: int = 0
    copy: int = 0
    delete: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    retries: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def count(self, kind: str, *, requests: int = 1, read: int = 0, written: int = 0) -> None:
        """Adds requests of a kind (`get`, …) and what they carried."""
        with self._lock:
            setattr(self, kind, getattr(self, kind) + requests)
            self.bytes_read += read
            self.bytes_written += written

    def add(self, other: Usage) -> None:
        """Adds what was counted elsewhere, in a worker say."""
        with self._lock:
            for name, value in other.values().items():
                setattr(self, name, getattr(self, name) + value)

    def after_fork(self) -> None:
        """Of what the parent's threads held, nothing is held here."""
        self._lock = threading.Lock()

    def values(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in _COUNTERS}

    @property
    def requests(self) -> int:
        """All of them."""
        return self.list + self.head + self.get + self.put + self.copy + self.delete

    def __getstate__(self) -> dict[str, int]:
        return self.values()

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]


_COUNTERS = tuple(Usage.__dataclass_fields__)


class Read(NamedTuple):
    """A source's file to read: into `view`, which has its size, if it is still the one scanned."""

    path: str
    view: memoryview
    fingerprint: str


class Reads:
    """Reads under way. Calling it waits for all of them; `cancel` gives up those that are not begun."""

    def __init__(
        self, wait: Callable[[], None], cancel: Callable[[], object] | None = None
    ) -> None:
        self._wait = wait
        self._cancel = cancel

    def __call__(self) -> None:
        self._wait()

    def cancel(self) -> None:
        if self._cancel is not None:
            self._cancel()


class Stored(NamedTuple):
    """One state of a stored file: its `size` in bytes and, where the store tells, what tells it from
    others (`state`, else "")."""

    size: int
    state: str


REPLACED = "it was replaced while it was read"


def check_range(path: str, offset: int, size: int, found: Stored, known: Stored | None) -> None:
    """Raises SourceChanged when a file is not in the state that is known, or has no such bytes."""
    if known is not None and found != known:
        raise SourceChanged(path, REPLACED)
    if offset + size > found.size:
        raise SourceChanged(
            path, f"found {found.size:,} bytes; expected {offset + size:,} at least"
        )


def check_content(path: str, digest: str, fingerprint: str) -> None:
    """Raises SourceChanged when a file's digest is not the one of its fingerprint, of kind CONTENT."""
    if digest != fingerprint.removeprefix(CONTENT):
        raise SourceChanged(path, "its content changed after the scan")


class Storage(ABC):
    """One end of a dataset: where raw files are, or where versions are published."""

    hard_links = False
    """Whether a second name for a file costs nothing, and shows its bytes for good."""
    folders = False
    """Whether it is a tree of folders, to be walked; else its keys are listed."""
    windows = 4
    """How many windows of small files pay to be read at a time: each waits for all of its files."""
    window_bytes = BLOCK
    """How large such a window is."""
    lookups = 64
    """How many small files of the store's own pay to be read at a time."""
    ranges = 64
    """How many ranges of files pay to be read at a time."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.usage = Usage()
        self._contacted = False

    @property
    def url(self) -> str:
        """The root as users write it."""
        return self.place.url

    def locate(self, path: str) -> str:
        """Where other programs find `path`."""
        return f"{self.url.rstrip('/')}/{path}"

    def check(self) -> None:  # noqa: B027
        """Whether the store is there and lets us in: within seconds, where other verbs try for long.

        Raises SourceError or DestinationError, by the place's part.
        """

    def contact(self) -> None:
        """`check`, unless this object did it before: what opens a store begins with it."""
        if not self._contacted:
            self.check()
            self._contacted = True

    def at_once(self, work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Does the work for each item, as many at a time as pays here; the results, in their order."""
        with ThreadPoolExecutor(self.lookups) as threads:
            return list(threads.map(work, items))

    # Reading what is at a destination.

    @abstractmethod
    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """The file for reading, seekable. Raises FileNotFoundError, here or at the first read."""

    @abstractmethod
    def stat(self, path: str) -> FileInfo | None:
        """The file's facts, or None when there is none."""

    @abstractmethod
    def list_files(self, folder: str = "") -> Iterator[FileInfo]:
        """The files in a folder, not deeper, in no order; none when there is no such folder."""

    def list_names(self, folder: str) -> Iterator[str]:
        """The names of the files in a folder."""
        for file in self.list_files(folder):
            yield file.path.rpartition("/")[2]

    @abstractmethod
    def list_folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, sorted."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether the root does not exist or holds nothing but unfinished writes."""

    def read_range(
        self, path: str, offset: int, size: int, known: Stored | None = None
    ) -> tuple[memoryview, Stored]:
        """Some bytes of a file, one at least, and the state of it that they are of.

        Raises FileNotFoundError; SourceChanged when the file has not all of these bytes, or is in
        another state than the one `known`.
        """
        with self.open(path) as file:
            stored = Stored(file.seek(0, os.SEEK_END), "")
            check_range(path, offset, size, stored, known)
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise SourceChanged(path, REPLACED)
        return memoryview(data), stored

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Does the work, which asks this store for something, in one of its threads: `ranges` of them
        run at a time."""
        from wds_pipeline.storage.connections import threads

        return threads(self.ranges, "ranges").submit(work)

    # Reading a source's files, which must be those that the scan saw.

    @abstractmethod
    def start_reads(self, reads: Sequence[Read]) -> Reads:
        """Begins to read files, as many at a time as pays; what it returns waits for all of them.

        Waiting raises SourceChanged when one vanished, is unreadable, or has another size or
        fingerprint.
        """

    def read_into(self, path: str, view: memoryview, fingerprint: str) -> None:
        """Fills `view` with the file, which must be the one that the scan saw. Raises SourceChanged."""
        self.start_reads([Read(path, view, fingerprint)])()

    @abstractmethod
    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        """Like `read_into`, for a file too large for memory; the last check follows the last byte."""

    @abstractmethod
    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        """Raises SourceChanged when `read_into` would, as far as can be said without reading."""

    def list_keys(self, after: str = "") -> Iterator[pa.Table]:
        """The files below the root behind the path `after`, all of them, as tables of `KEYS`.

        Only where `folders` is False.
        """
        raise NotImplementedError

    # Writing.

    @abstractmethod
    def create(self, path: str) -> AbstractContextManager[Writer]:
        """Writes a file that appears, whole, under `path` when the block ends without an error.

        Raises DestinationError.
        """

    def put(self, path: str, data: bytes) -> None:
        """Writes a whole file, in place of any other. Raises DestinationError."""
        with self.create(path) as file:
            file.write(data)

    @abstractmethod
    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Writes a whole file unless one exists; says whether it did.

        Of two that write at once, one does. Raises DestinationError; then it is not known whether.
        """

    def check_put_if_absent(self) -> None:  # noqa: B027
        """Raises DestinationError where the store has no conditional create, and the user has not
        said what to do then."""

    @abstractmethod
    def link(self, path: str, target: str) -> None:
        """Gives the file `target` a second name, in place of any other file there: a hard link or a
        copy that the server makes. Raises DestinationError."""

    def same_file(self, one: str, other: str) -> bool:
        """Whether two names are known to be of the same bytes. (A copy is not changed afterwards.)"""
        return True

    @abstractmethod
    def touch(self, path: str) -> bool:
        """Sets the time of modification to now; says whether the file was there."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Removes a file, if it is there. Raises DestinationError."""

    def free_bytes(self) -> int | None:
        """How many bytes still fit; None where nobody knows."""
        return None

    def unfinished(self) -> Iterator[FileInfo]:
        """Writes that a process left unfinished when it died, outside of what `list_files` shows."""
        return iter(())

    def remove_unfinished(self, file: FileInfo) -> None:  # noqa: B027
        """Removes what `unfinished` found. Raises DestinationError."""
