"""A store as any fsspec filesystem shows it; the kinds beside this file know theirs better.

A filesystem that is not asynchronous is one connection, which two threads cannot use at a time: there
are several, and each request borrows one.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, NamedTuple, TypeVar

import fsspec
from fsspec.spec import AbstractFileSystem

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import fingerprint
from wds_pipeline.storage.asking import Asking
from wds_pipeline.storage.base import TEMPORARY, Usage
from wds_pipeline.storage.connections import Connections, connections, threads
from wds_pipeline.storage.fingerprint import Facts

_GATHERED = 32 * 1024 * 1024  # bytes of a file under way that are held in memory; then on disk
_AHEAD = 8  # folders listed ahead, on each level
Answer = TypeVar("Answer")


class Found(NamedTuple):
    """A stored file: path below the root, bytes, seconds of its last change, and what tells its state."""

    path: str
    size: int
    modified: float
    facts: Facts


class Upload:
    """A file under way, gathered until it is whole; visible only after `finish`."""

    def __init__(self, send: Callable[[Any, int], None]) -> None:
        self._send = send
        self._file = tempfile.SpooledTemporaryFile(_GATHERED)  # noqa: SIM115
        self._size = 0

    def write(self, data: bytes | memoryview, /) -> None:
        self._size += self._file.write(data)

    def finish(self) -> None:
        """Makes it visible under its name."""
        self._file.seek(0)
        self._send(self._file, self._size)
        self._file.close()

    def abandon(self) -> None:
        """Leaves nothing behind."""
        self._file.close()


class Kind:
    """One store below one root. Paths are relative to it; blocking, and safe for threads.

    What is not there is FileNotFoundError; everything else that goes wrong is what `Asking` raises.
    """

    extra: ClassVar[str] = ""
    """The extra of this package that installs what it needs."""
    credentials: ClassVar[str] = ""
    """Where the store's tools look for them."""
    anonymous: ClassVar[dict[str, Any]] = {}
    """The options of the filesystem that send requests without credentials, where there are such."""
    order: ClassVar[tuple[str, ...]] = fingerprint.KINDS
    connections: ClassVar[int] = 16
    """At most so many at a time, of a filesystem that is not asynchronous."""
    unchanging = False
    """Whether nothing below the root ever changes: a commit, say."""

    def __init__(self, place: Place, usage: Usage) -> None:
        self.place = place
        self.ask = Asking(place, usage, self.credentials)
        self.timeout = place.storage.timeout_seconds
        self.cls = self._filesystem_class()
        self.root = ""
        self._lock = threading.Lock()
        self._connections: Connections | None = None

    # How the filesystem is made.

    def _filesystem_class(self) -> type[AbstractFileSystem]:
        scheme = self.place.scheme
        try:
            return self.load()
        except ValueError:
            known = "file, s3, gs, az, sftp, http, https, hf, memory"
            raise ConfigError(
                f"{self.place.named}: no store is known for {scheme}://; expected one of {known}, or "
                "another that fsspec knows"
            ) from None
        except ImportError as error:
            todo = f"run pip install 'wds-pipeline[{self.extra}]'" if self.extra else str(error)
            raise ConfigError(
                f"{self.place.named}: a package for {scheme}:// is not installed; {todo}"
            ) from error

    def load(self) -> type[AbstractFileSystem]:
        """The filesystem's class. Raises ImportError, or ValueError for a scheme that is not known."""
        return fsspec.get_filesystem_class(self.place.scheme)

    def options(self) -> dict[str, Any]:
        """What the filesystem is made with."""
        of_url = self.cls._get_kwargs_from_urls(self.place.url)
        anonymous = self.anonymous if self.place.storage.anonymous else {}
        return {**of_url, **anonymous, **self.place.storage.options}

    def connect(self) -> AbstractFileSystem:
        """A filesystem; for some that means a connection."""
        return self.cls(skip_instance_cache=True, **self.options())

    def drop(self, fs: AbstractFileSystem) -> None:
        """Ends a connection that failed."""

    @contextmanager
    def borrow(self) -> Iterator[AbstractFileSystem]:
        """A filesystem for one request."""
        with self._lock:
            if self._connections is None:
                most = min(self.connections, self.place.storage.concurrency)
                key = (self.place.url, self.place.storage.model_dump_json())
                self._connections = connections(key, self.connect, most)
        with self._connections.borrow(self.drop) as fs:
            self.root = self.root or self._root(fs)
            yield fs

    def _root(self, fs: AbstractFileSystem) -> str:
        return str(fs._strip_protocol(self.place.url)).rstrip("/")

    def where(self, path: str) -> str:
        """The filesystem's name of a path."""
        return f"{self.root}/{path}" if path else self.root or "/"

    def _do(self, request: str, path: str, act: Callable[[AbstractFileSystem], Answer]) -> Answer:
        def once() -> Answer:
            with self.borrow() as fs:
                return act(fs)

        return self.ask(request, path, once)

    # Looking.

    def check(self) -> None:
        """Raises what is wrong with the root, other than that there is nothing."""
        with suppress(FileNotFoundError):
            self.folder("")

    def check_writable(self) -> None:
        """Raises DestinationError where nothing can be written, whatever the credentials."""

    def look(self, path: str) -> Found:
        """A file's facts. Raises FileNotFoundError, also for a folder."""
        info = self._do("head", path, lambda fs: self._info(fs, path))
        if info.get("type") == "directory":
            raise FileNotFoundError(path)
        return self._found(path, info)

    def _info(self, fs: AbstractFileSystem, path: str) -> dict[str, Any]:
        fs.invalidate_cache()
        return fs.info(self.where(path))

    def _found(self, path: str, info: dict[str, Any]) -> Found:
        facts = fingerprint.facts_of(info)
        modified = float(facts.get("mtime", 0))
        return Found(path, int(info.get("size") or 0), modified, facts)

    def folder(self, folder: str) -> tuple[list[Found], list[str]]:
        """The files and the names of the folders in a folder (`""` or `a/b/`).

        Raises FileNotFoundError, or finds nothing, where there is no such folder.
        """
        path = folder.rstrip("/")
        entries = self._do("list", folder, lambda fs: self._ls(fs, path))
        here = self.where(path).strip("/")
        files, folders = [], []
        for info in entries:
            # A marker of the folder itself has its name; one of a folder below ends with a slash.
            where = str(info["name"])
            name = where.rstrip("/").rpartition("/")[2]
            if where.strip("/") == here:
                if info["type"] != "directory" and not where.endswith("/") and path:
                    raise FileNotFoundError(folder)  # it is a file
            elif info["type"] == "directory":
                folders.append(name)
            elif not where.endswith("/"):
                files.append(self._found(folder + name, info))
        return files, sorted(folders)

    def _ls(self, fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
        fs.invalidate_cache()
        return fs.ls(self.where(path), detail=True)

    def below(self, after: str) -> Iterator[Found]:
        """All files below the root behind `after`, by the bytes of their paths; folders are listed
        ahead, some at a time. Raises FileNotFoundError when there is no root."""
        yield from self._below("", self.folder(""), after)

    def _below(
        self, folder: str, listed: tuple[list[Found], list[str]], after: str
    ) -> Iterator[Found]:
        entries: list[tuple[str, Found | None]] = [(each.path, each) for each in listed[0]]
        # A folder's files stand where its name with a slash stands: `a-b`, `a.txt`, `a/x`.
        entries += [(f"{folder}{name}/", None) for name in listed[1]]
        entries = [
            (path, found)
            for path, found in sorted(entries, key=lambda entry: entry[0])
            if path > after or (found is None and after.startswith(path))
        ]
        folders = iter([path for path, found in entries if found is None])
        pool = threads(self.place.storage.concurrency, "folders")
        ahead: deque[Future[tuple[list[Found], list[str]]]] = deque()
        for path, found in entries:
            if found is not None:
                yield found
                continue
            while len(ahead) < _AHEAD and (below := next(folders, None)) is not None:
                ahead.append(pool.submit(self._listed, below))
            yield from self._below(path, ahead.popleft().result(), after)

    def _listed(self, folder: str) -> tuple[list[Found], list[str]]:
        try:
            return self.folder(folder)
        except FileNotFoundError:  # removed since its parent was listed
            return [], []

    # Reading.

    def fetch(self, path: str, start: int = 0, end: int | None = None) -> tuple[bytes, Facts]:
        """The bytes of a file from `start` to `end` (or its end), and what the answer says of its
        state, if anything."""
        data = self._do("get", path, lambda fs: self._cat(fs, path, start, end))
        self.ask.usage.count("get", requests=0, read=len(data))
        return data, {}

    def _cat(self, fs: AbstractFileSystem, path: str, start: int, end: int | None) -> bytes:
        whole = start == 0 and end is None
        return fs.cat_file(self.where(path), start=None if whole else start, end=end)

    # Writing.

    def upload(self, path: str) -> Upload:
        """Begins to write a file that others see when it is finished."""
        return Upload(lambda file, size: self._send(path, file, size))

    def _send(self, path: str, file: Any, size: int) -> None:
        def act(fs: AbstractFileSystem) -> None:
            file.seek(0)
            where = self.where(path)
            if not _renames(fs):
                self._store(fs, where, file, size)
                return
            folder, _, name = where.rpartition("/")
            temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:12]}-{name[-80:]}"
            fs.makedirs(folder, exist_ok=True)
            try:
                self._store(fs, temporary, file, size)
                fs.mv(temporary, where)
            except BaseException:
                with suppress(Exception):
                    fs.rm_file(temporary)
                raise

        self._do("put", path, act)
        self.ask.usage.count("put", requests=0, written=size)

    def _store(self, fs: AbstractFileSystem, where: str, file: Any, size: int) -> None:
        if size <= _GATHERED:
            fs.pipe_file(where, file.read())
            return
        with tempfile.NamedTemporaryFile() as named:
            while chunk := file.read(1024 * 1024):
                named.write(chunk)
            named.flush()
            fs.put_file(named.name, where)

    def create(self, path: str, data: bytes) -> bool:
        """The store's conditional create: writes a file unless there is one, says whether it did.

        Raises NotImplementedError where the filesystem knows of none.
        """

        def act(fs: AbstractFileSystem) -> None:
            if _renames(fs):
                fs.makedirs(self.where(path).rpartition("/")[0], exist_ok=True)
            try:
                fs.pipe_file(self.where(path), data, mode="create")
            except (TypeError, ValueError) as error:
                raise NotImplementedError("no conditional create") from error

        return self._created(path, data, act)

    def _created(self, path: str, data: bytes, act: Callable[[AbstractFileSystem], None]) -> bool:
        tries = []

        def counted(fs: AbstractFileSystem) -> None:
            tries.append(1)
            act(fs)

        try:
            self._do("put", path, counted)
        except FileExistsError:
            # The reply to a try that succeeded may have been lost; then the file there is ours.
            return len(tries) > 1 and self.fetch(path)[0] == data
        self.ask.usage.count("put", requests=0, written=len(data))
        return True

    def copy(self, path: str, target: str) -> None:
        """Makes `path` a copy of the file `target`, in the store where it can, else through here.

        Raises FileNotFoundError.
        """
        try:
            self._do("copy", path, lambda fs: fs.cp_file(self.where(target), self.where(path)))
        except NotImplementedError:
            self._copy_through(path, target)

    def _copy_through(self, path: str, target: str) -> None:
        size = self.look(target).size
        upload = self.upload(path)
        try:
            for start in range(0, size, _GATHERED):
                upload.write(self.fetch(target, start, min(start + _GATHERED, size))[0])
            upload.finish()
        except BaseException:
            upload.abandon()
            raise

    def touch(self, path: str) -> None:
        """Sets the time of modification to now. Raises FileNotFoundError."""
        data, _ = self.fetch(path)
        upload = self.upload(path)
        upload.write(data)
        upload.finish()

    def remove(self, path: str) -> None:
        """Removes a file. Raises FileNotFoundError."""
        self._do("delete", path, lambda fs: fs.rm_file(self.where(path)))


def _renames(fs: AbstractFileSystem) -> bool:
    """Whether it moves files by itself, as trees of folders do. Without, `mv` is a copy, and what is
    written is taken to appear when it is whole, as in object stores."""
    return type(fs).mv is not AbstractFileSystem.mv and not fs.async_impl
