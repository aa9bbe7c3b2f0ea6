"""A folder of a local or mounted filesystem.

Every write is whole or absent: a temporary name, fsync, then one rename or link.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import xxhash

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import DestinationError, SourceChanged
from wds_pipeline.storage.base import (
    CONTENT,
    TEMPORARY,
    UNREADABLE,
    FileInfo,
    Read,
    Reads,
    Storage,
    Writer,
    check_content,
)

_CHUNK = 4 * 1024 * 1024
_TRIES = 20
Result = TypeVar("Result")


class LocalStorage(Storage):
    """A folder of a local or mounted filesystem."""

    hard_links = True
    folders = True
    windows = 1
    window_bytes = 4 * 1024 * 1024  # with its tar in the processor's cache
    lookups = 8

    def __init__(self, place: Place | Path) -> None:
        place = place if isinstance(place, Place) else Place(url=str(place))
        super().__init__(place)
        path = place.url.partition("://")[2] if "://" in place.url else place.url
        self.root = Path(path)
        self._prefix = os.path.join(path, "")

    @property
    def url(self) -> str:
        """The root as users write it."""
        return str(self.root)

    def locate(self, path: str) -> str:
        """Where other programs find `path`."""
        return self._prefix + path

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        return Path(self._prefix + path).read_bytes()

    def open(self, path: str) -> BinaryIO:
        """The file for reading, seekable. Raises FileNotFoundError."""
        return open(self._prefix + path, "rb")

    def start_reads(self, reads: Sequence[Read]) -> Reads:
        """Reads when it is waited for: the page cache is as fast one file after the other."""

        def wait() -> None:
            for each in reads:
                self.read_into(each.path, each.view, each.fingerprint)

        return Reads(wait)

    def read_into(self, path: str, view: memoryview, fingerprint: str) -> None:
        """Fills `view` with the file, which must be the one that the scan saw.

        Raises SourceChanged when it vanished, is unreadable, or has another size or fingerprint.
        One fstat *after* the read is enough: a write before it shows in the time of modification.
        """
        size = len(view)
        fd = self._open_source(path)
        try:
            got = os.readv(fd, [view]) if size else 0
            found = os.fstat(fd)
        except OSError as error:
            raise SourceChanged(path, f"{UNREADABLE}: {error.strerror}") from error
        finally:
            os.close(fd)
        # All is well with nearly every file: one comparison each, and the reasons below.
        if got != size or found.st_size != size or str(found.st_mtime_ns) != fingerprint:
            self._read_again(path, view, fingerprint)

    def _read_again(self, path: str, view: memoryview, fingerprint: str) -> None:
        """Reads a file that came in parts, has a content hash for its fingerprint, or changed."""
        fd = self._open_source(path)
        try:
            got, size = os.readv(fd, [view]) if len(view) else 0, len(view)
            while 0 < got < size:
                more = os.readv(fd, [view[got:]])
                if not more:
                    break
                got += more
            if got != size:
                raise SourceChanged(path, f"{got:,} bytes could be read, {size:,} were scanned")
            if fingerprint.startswith(CONTENT):
                check_content(path, xxhash.xxh3_128_hexdigest(view), fingerprint)
            else:
                _check_unchanged(path, os.fstat(fd), size, fingerprint)
        except OSError as error:
            raise SourceChanged(path, f"{UNREADABLE}: {error.strerror}") from error
        finally:
            os.close(fd)

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        """Like `read_into`, for a file too large for memory; the last check follows the last byte."""
        fd = self._open_source(path)
        view = memoryview(bytearray(min(size, _CHUNK)))
        content = xxhash.xxh3_128() if fingerprint.startswith(CONTENT) else None
        try:
            left = size
            while left:
                got = os.readv(fd, [view[: min(left, _CHUNK)]])
                if not got:
                    raise SourceChanged(
                        path, f"{size - left:,} bytes could be read, {size:,} were scanned"
                    )
                if content is not None:
                    content.update(view[:got])
                yield view[:got]
                left -= got
            if content is not None:
                check_content(path, content.hexdigest(), fingerprint)
            else:
                _check_unchanged(path, os.fstat(fd), size, fingerprint)
        except OSError as error:
            raise SourceChanged(path, f"{UNREADABLE}: {error.strerror}") from error
        finally:
            os.close(fd)

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        """Raises SourceChanged when `read_into` would, as far as can be said without reading."""
        fd = self._open_source(path)
        try:
            found = os.fstat(fd)
            known = str(found.st_mtime_ns) if fingerprint.startswith(CONTENT) else fingerprint
            _check_unchanged(path, found, size, known)
        finally:
            os.close(fd)

    def _open_source(self, path: str) -> int:
        try:  # without O_NONBLOCK, a pipe that took the file's place would keep us waiting
            return os.open(self._prefix + path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SourceChanged(path, f"{UNREADABLE}: {error.strerror}") from error

    def stat(self, path: str) -> FileInfo | None:
        """The file's facts, or None when there is none."""
        try:
            with self._explained(path, "readable"):
                found = os.stat(self._prefix + path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(path, found.st_size, found.st_mtime)

    def list_files(self, folder: str = "") -> Iterator[FileInfo]:
        """The files in a folder, not deeper, in no order; none when there is no such folder."""
        for entry in self._entries(folder):
            with suppress(FileNotFoundError):  # removed since it was listed
                if entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    path = f"{folder.rstrip('/')}/{entry.name}" if folder else entry.name
                    yield FileInfo(path, found.st_size, found.st_mtime)

    def list_names(self, folder: str) -> Iterator[str]:
        """The names of the files in a folder: `list_files` without a stat for each."""
        for entry in self._entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                yield entry.name

    def list_folders(self, folder: str = "") -> list[str]:
        """The names of the folders in a folder, sorted."""
        entries = self._entries(folder)
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with self._explained(folder, "readable"), os.scandir(self._prefix + folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []

    def is_empty(self) -> bool:
        """Whether the root does not exist or holds nothing but unfinished writes."""
        return all(entry.name.startswith(TEMPORARY) for entry in self._entries(""))

    def same_file(self, one: str, other: str) -> bool:
        """Whether two names are of one file, by a hard link."""
        try:
            return os.path.samefile(self._prefix + one, self._prefix + other)
        except OSError:
            return False

    def free_bytes(self) -> int | None:
        """How many bytes still fit; None where nobody knows."""
        folder = os.path.abspath(self.root)
        while not os.path.exists(folder) and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        return shutil.disk_usage(folder).free

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        """Writes a file that appears, whole, under `path` when the block ends without an error.

        Raises DestinationError when the folder is not writable or the disk is full.
        """
        fd, temporary = self._open_temporary(path)
        try:
            try:
                yield _LocalWriter(fd, path, self)
                with self._explained(path):
                    os.fsync(fd)
            finally:
                os.close(fd)
            with self._explained(path):
                os.replace(temporary, self._prefix + path)
                _sync_folder(os.path.dirname(temporary))
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def put(self, path: str, data: bytes) -> None:
        """Writes a whole file, in place of any other. Raises DestinationError."""
        with self.create(path) as file:
            file.write(data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Writes a whole file unless one exists; says whether it did. Raises DestinationError.

        A hard link is the conditional create: it fails when the name exists, and the name never
        shows a file that is not yet whole.
        """
        fd, temporary = self._open_temporary(path)
        try:
            with self._explained(path):
                try:
                    _LocalWriter(fd, path, self).write(data)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                try:
                    os.link(temporary, self._prefix + path)
                except FileExistsError:
                    return False
                _sync_folder(os.path.dirname(temporary))
                return True
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def link(self, path: str, target: str) -> None:
        """Gives the file `target` a second name, by a hard link, in place of any other file there.

        Raises DestinationError, also where the filesystem has no hard links.
        """
        temporary = self._temporary(path)
        with self._explained(path):
            _in_folder_of(temporary, lambda: os.link(self._prefix + target, temporary))
            try:
                os.replace(temporary, self._prefix + path)
            finally:
                # rename(2) does nothing when both names are already the same file
                with suppress(FileNotFoundError):
                    os.unlink(temporary)

    def touch(self, path: str) -> bool:
        """Sets the time of modification to now; says whether the file was there."""
        with self._explained(path):
            try:
                os.utime(self._prefix + path)
            except FileNotFoundError:
                return False
        return True

    def delete(self, path: str) -> None:
        """Removes a file, if it is there, and folders that this leaves empty. Raises DestinationError."""
        with self._explained(path), suppress(FileNotFoundError):
            os.unlink(self._prefix + path)
        folder = os.path.dirname(path)
        with suppress(OSError):
            while folder:
                os.rmdir(self._prefix + folder)
                folder = os.path.dirname(folder)

    def _temporary(self, path: str) -> str:
        folder, name = os.path.split(self._prefix + path)
        return os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{name[-80:]}")

    def _open_temporary(self, path: str) -> tuple[int, str]:
        temporary = self._temporary(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self._explained(path):
            fd = _in_folder_of(temporary, lambda: os.open(temporary, flags, 0o644))
        return fd, temporary

    @contextmanager
    def _explained(self, path: str, verb: str = "writable") -> Iterator[None]:
        """Turns what the system says of the destination into what the user can do about it.

        A name that is not there is no error where something is looked for (`verb` "readable").
        """
        try:
            yield
        except OSError as error:
            where = self._prefix + path
            if verb == "readable" and isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                advice = "free some space (`wds-pipeline gc NAME` lists what no version needs)"
                raise DestinationError(
                    f"{where}: the disk is full ({error.strerror}); {advice}, then build again: "
                    "the shards sealed so far are kept"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise DestinationError(
                    f"{where}: not {verb} ({error.strerror}); expected a folder that this user "
                    "may read and write; change its permissions or destination.url"
                ) from error
            if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
                raise DestinationError(
                    f"{where}: a file stands where a folder is needed ({error.strerror}); "
                    "remove it or change destination.url"
                ) from error
            done = "read" if verb == "readable" else "written"
            raise DestinationError(f"{where}: cannot be {done}: {error.strerror}") from error


class _LocalWriter:
    def __init__(self, fd: int, path: str, storage: LocalStorage) -> None:
        self._fd = fd
        self._path = path
        self._storage = storage

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        with self._storage._explained(self._path):
            while view:
                view = view[os.write(self._fd, view) :]


def _check_unchanged(path: str, found: os.stat_result, size: int, fingerprint: str) -> None:
    if found.st_size != size:
        raise SourceChanged(path, f"{found.st_size:,} bytes now, {size:,} were scanned")
    if fingerprint != str(found.st_mtime_ns):
        raise SourceChanged(path, "it was modified after the scan")


def _in_folder_of(path: str, act: Callable[[], Result]) -> Result:
    """Acts on a name in a folder, which is made if need be.

    Again when the folder is gone in between: `delete` removes folders that it leaves empty.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            _make_folder(os.path.dirname(path))
            return act()
    return act()


def _make_folder(folder: str) -> None:
    """Like `os.makedirs`, and what is made survives a power cut."""
    if not folder or os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folder(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        # Another process was first. If it has removed the folder again, that is FileNotFoundError.
        if stat.S_ISDIR(os.stat(folder).st_mode):
            return
        raise
    with suppress(PermissionError):  # a parent may be writable and not readable
        _sync_folder(parent or ".")


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
