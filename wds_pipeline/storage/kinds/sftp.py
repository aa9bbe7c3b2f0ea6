"""`sftp://`: folders of a machine that is reached by SSH.

A file is written under a temporary name, and renamed. The conditional create is SFTP's plain rename,
which by its standard fails when the name exists (OpenSSH: by link(2)), so that the name never shows a
file that is not yet whole.
"""

from __future__ import annotations

import errno
import io
import re
import socket
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from fsspec.spec import AbstractFileSystem

from wds_pipeline.storage.base import TEMPORARY
from wds_pipeline.storage.kinds.base import Found, Kind

_NO_KEY = re.compile(r"(?i)authentication|private key|(expected|encountered) \w+ key")
_TRIES = 20
_EXTENDED = 200  # SSH_FXP_EXTENDED
_PIECE = 32 * 1024  # what every server sends in one answer
_UNDER_WAY = 64
Answer = TypeVar("Answer")


class Sftp(Kind):
    """Folders of a machine that is reached by SSH."""

    extra = "sftp"
    credentials = "looked for in the SSH agent, ~/.ssh/id_*, or the storage.options.key_filename"
    connections = 8  # OpenSSH refuses more that log in at a time (MaxStartups)

    def options(self) -> dict[str, Any]:
        """Time limits for the connection."""
        limits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), self.timeout)
        return {**limits, **super().options()}

    def connect(self) -> AbstractFileSystem:
        """A connection, whose every answer has to come in time."""
        import paramiko

        try:
            fs: Any = super().connect()
        except paramiko.SSHException as error:
            # When no key is let in, what is raised is how the last file could not be taken for a key.
            if _NO_KEY.search(str(error)):
                raise paramiko.AuthenticationException(
                    "the server took none of the keys"
                ) from error
            raise
        fs.ftp.get_channel().settimeout(self.timeout)
        # Small requests go at once: else each may wait 40 ms for the last one's acknowledgement.
        with suppress(AttributeError, OSError):  # a proxy command is no socket
            fs.client.get_transport().sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return fs

    def drop(self, fs: Any) -> None:
        """Ends it."""
        fs.client.close()

    def check(self) -> None:
        """Whether we are let in, and a source's folder is there."""
        try:
            self._do("list", "", lambda fs: fs.ftp.listdir(self.where("")))
        except FileNotFoundError:
            if self.place.part == "source":
                raise

    def _info(self, fs: Any, path: str) -> dict[str, Any]:
        return _of(fs.ftp.stat(self.where(path)), self.where(path))

    def _ls(self, fs: Any, path: str) -> list[dict[str, Any]]:
        found = []
        where = self.where(path).rstrip("/")
        for entry in fs.ftp.listdir_attr(where or "/"):
            if stat.S_ISLNK(entry.st_mode or 0):
                # Links to files are files; links to folders may go in circles, and are left out.
                with suppress(OSError):
                    target = _of(fs.ftp.stat(f"{where}/{entry.filename}"), "")
                    if target["type"] == "file":
                        found.append({**target, "name": f"{where}/{entry.filename}"})
            else:
                found.append(_of(entry, f"{where}/{entry.filename}"))
        return [each for each in found if each["type"] in ("file", "directory")]

    def _cat(self, fs: Any, path: str, start: int, end: int | None) -> bytes:
        with fs.ftp.open(self.where(path), "rb") as file:
            size = file.stat().st_size or 0
            end = size if end is None else min(end, size)
            # All is asked for at once; paramiko is slow to put large pieces together.
            pieces = range(start, end, _PIECE)
            return b"".join(file.readv([(each, min(_PIECE, end - each)) for each in pieces]))

    def _send(self, path: str, file: Any, size: int) -> None:
        def act(fs: Any) -> None:
            file.seek(0)
            with self._written(fs, path, file) as temporary:
                fs.ftp.posix_rename(temporary, self.where(path))

        self._do("put", path, act)
        self.ask.usage.count("put", requests=0, written=size)

    def create(self, path: str, data: bytes) -> bool:
        """By SFTP's plain rename, which does not replace."""

        def act(fs: Any) -> None:
            with self._written(fs, path, io.BytesIO(data)) as temporary:
                try:
                    fs.ftp.rename(temporary, self.where(path))
                except OSError as error:
                    # The protocol has no word for "exists": any failure looks the same.
                    if _exists(fs, self.where(path)):
                        raise FileExistsError(path) from error
                    raise

        return self._created(path, data, act)

    def _written(self, fs: Any, path: str, file: Any) -> _Temporary:
        return _Temporary(fs, self, path, file)

    def copy(self, path: str, target: str) -> None:
        """A hard link, which OpenSSH has by an extension of the protocol; else through here."""

        def act(fs: Any) -> None:
            temporary = self.temporary(path)
            in_folder(
                fs,
                temporary,
                lambda: fs.ftp._request(
                    _EXTENDED,
                    "hardlink@openssh.com",
                    fs.ftp._adjust_cwd(self.where(target)),
                    fs.ftp._adjust_cwd(temporary),
                ),
            )
            try:
                fs.ftp.posix_rename(temporary, self.where(path))
            finally:
                # rename(2) does nothing when both names are already the same file
                with suppress(OSError):
                    fs.ftp.remove(temporary)

        def linked(fs: Any) -> bool:
            try:
                act(fs)
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno is not None:
                    raise
                return False  # not known to this server
            return True

        if not self._do("copy", path, linked):
            self._copy_through(path, target)

    def touch(self, path: str) -> None:
        """Sets the time of modification. Raises FileNotFoundError."""
        self._do("put", path, lambda fs: fs.ftp.utime(self.where(path), None))

    def remove(self, path: str) -> None:
        """Removes a file, and folders that this leaves empty. Raises FileNotFoundError."""

        def act(fs: Any) -> None:
            fs.ftp.remove(self.where(path))
            folder = path.rpartition("/")[0]
            with suppress(OSError):
                while folder:
                    fs.ftp.rmdir(self.where(folder))
                    folder = folder.rpartition("/")[0]

        self._do("delete", path, act)

    def temporary(self, path: str) -> str:
        """A name beside a path, for a file under way."""
        folder, _, name = self.where(path).rpartition("/")
        return f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:12]}-{name[-80:]}"

    def _found(self, path: str, info: dict[str, Any]) -> Found:
        return Found(path, info["size"], info["mtime"], {"mtime": f"{info['mtime']:.6f}"})


class _Range:
    """A part of a file, of which many pieces are asked for at a time.

    paramiko's own way to do so (`prefetch`) asks from a second thread, for which the first one waits in
    a loop without a pause: it stalls for seconds.
    """

    def __init__(self, ftp: Any, file: Any, start: int, end: int) -> None:
        from paramiko import sftp

        self._protocol = sftp
        self._ftp, self._file = ftp, file
        self._start, self._end = start, end
        self._asked: dict[int, int] = {}  # number of the request → where its piece begins
        self._data: dict[int, bytes] = {}
        self._failed: Exception | None = None

    def read(self) -> bytes:
        """The bytes; fewer where the file ends."""
        for offset in range(self._start, self._end, _PIECE):
            while len(self._asked) >= _UNDER_WAY:
                self._ftp._read_response()
            length = min(_PIECE, self._end - offset)
            request = (self._file.handle, self._protocol.int64(offset), length)
            number = self._ftp._async_request(self, self._protocol.CMD_READ, *request)
            self._asked[number] = offset
        while self._asked:
            self._ftp._read_response()
        if self._failed is not None:
            raise self._failed
        return b"".join(self._whole(offset) for offset in sorted(self._data))

    def _async_response(self, kind: int, message: Any, number: int) -> None:
        """Called by paramiko with the answer to a request."""
        offset = self._asked.pop(number)
        if kind == self._protocol.CMD_DATA:
            self._data[offset] = message.get_string()
            return
        try:
            self._ftp._convert_status(message)
        except EOFError:
            self._data[offset] = b""
        except Exception as error:
            self._failed = error

    def _whole(self, offset: int) -> bytes:
        """A piece; a server may send less than was asked for."""
        data = self._data[offset]
        wanted = min(_PIECE, self._end - offset)
        if 0 < len(data) < wanted:
            self._file.seek(offset + len(data))
            data += self._file.read(wanted - len(data))
        return data


class _Temporary:
    """A whole file under a temporary name, which is gone after the block unless it was renamed."""

    def __init__(self, fs: Any, kind: Sftp, path: str, file: Any) -> None:
        self._fs, self._file = fs, file
        self._name = kind.temporary(path)

    def __enter__(self) -> str:
        try:
            with in_folder(
                self._fs, self._name, lambda: self._fs.ftp.open(self._name, "wx")
            ) as out:
                out.set_pipelined(True)
                size = 0
                while chunk := self._file.read(256 * 1024):
                    out.write(chunk)
                    size += len(chunk)
            found = self._fs.ftp.stat(self._name).st_size
            if found != size:
                raise OSError(errno.EIO, f"{found:,} bytes are there, {size:,} were written")
        except BaseException:
            self.__exit__()
            raise
        return self._name

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # gone by now, or the connection is
            self._fs.ftp.remove(self._name)


def in_folder(fs: Any, where: str, act: Callable[[], Answer]) -> Answer:
    """Acts on a name in a folder, which is made if need be.

    Again when the folder is gone in between: `remove` removes folders that it leaves empty.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return act()
        with suppress(FileNotFoundError):
            _make_folder(fs, where.rpartition("/")[0])
    return act()


def _make_folder(fs: Any, folder: str) -> None:
    if not folder or _exists(fs, folder):
        return
    _make_folder(fs, folder.rpartition("/")[0])
    try:
        fs.ftp.mkdir(folder)
    except OSError:
        if not _exists(fs, folder):  # else another process was first
            raise


def _exists(fs: Any, where: str) -> bool:
    try:
        fs.ftp.stat(where)
    except FileNotFoundError:
        return False
    return True


def _of(attributes: Any, where: str) -> dict[str, Any]:
    mode = attributes.st_mode or 0
    kind = "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
    return {
        "name": where,
        "type": kind,
        "size": attributes.st_size or 0,
        "mtime": float(attributes.st_mtime or 0),
    }
