"""SFTP servers over folders: paramiko's, which needs nothing installed, and OpenSSH's where it is."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path
from typing import Any, TypeVar

import paramiko
import pytest
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_OK

from wds_pipeline_tests.s3.servers import wait_until

Answer = TypeVar("Answer")


def _answer(act: Callable[[], Any]) -> Any:
    """What the protocol answers for what the system says."""
    try:
        found = act()
    except OSError as error:
        return paramiko.SFTPServer.convert_errno(error.errno or errno.EIO)
    return SFTP_OK if found is None else found


class _Handle(paramiko.SFTPHandle):
    def stat(self) -> Any:
        """Of the open file."""
        return _answer(
            lambda: paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))  # type: ignore[attr-defined]
        )


class _Files(paramiko.SFTPServerInterface):
    """The machine's own files. `exclusive`: a plain rename does not replace, as the standard says."""

    exclusive = True

    def open(self, path: str, flags: int, attr: Any) -> Any:
        """Opens a file."""

        def act() -> _Handle:
            mode = "rb+" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
            file = os.fdopen(os.open(path, flags | os.O_CLOEXEC, 0o644), mode)
            handle = _Handle(flags)
            handle.readfile = handle.writefile = file  # type: ignore[attr-defined]
            handle.filename = path  # type: ignore[attr-defined]
            return handle

        return _answer(act)

    def stat(self, path: str) -> Any:
        """Of what a link points to."""
        return _answer(lambda: paramiko.SFTPAttributes.from_stat(os.stat(path)))

    def lstat(self, path: str) -> Any:
        """Of a link itself."""
        return _answer(lambda: paramiko.SFTPAttributes.from_stat(os.lstat(path)))

    def list_folder(self, path: str) -> Any:
        """With the attributes of each."""
        return _answer(
            lambda: [
                paramiko.SFTPAttributes.from_stat(os.lstat(os.path.join(path, name)), name)
                for name in os.listdir(path)
            ]
        )

    def remove(self, path: str) -> Any:
        """Removes a file."""
        return _answer(lambda: os.unlink(path))

    def rename(self, oldpath: str, newpath: str) -> Any:
        """As OpenSSH does it: a link, which fails when the name exists."""

        def act() -> None:
            os.link(oldpath, newpath)
            os.unlink(oldpath)

        return _answer(act if self.exclusive else lambda: os.replace(oldpath, newpath))

    def posix_rename(self, oldpath: str, newpath: str) -> Any:
        """Replaces."""
        return _answer(lambda: os.replace(oldpath, newpath))

    def mkdir(self, path: str, attr: Any) -> Any:
        """Makes a folder."""
        return _answer(lambda: os.mkdir(path))

    def rmdir(self, path: str) -> Any:
        """Removes an empty folder."""
        return _answer(lambda: os.rmdir(path))

    def chattr(self, path: str, attr: Any) -> Any:
        """Sets times and the like."""
        return _answer(lambda: paramiko.SFTPServer.set_file_attr(path, attr))


class _ReplacingFiles(_Files):
    exclusive = False


class _Login(paramiko.ServerInterface):
    """Lets in one key."""

    def __init__(self, key: paramiko.PKey) -> None:
        self._key = key

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Only that one."""
        same = key.asbytes() == self._key.asbytes()
        return AUTH_SUCCESSFUL if same else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """A session, for SFTP."""
        return OPEN_SUCCEEDED

    def get_allowed_auths(self, username: str) -> str:
        """Keys."""
        return "publickey"


@contextmanager
def serve_paramiko(folder: Path, *, exclusive: bool = True) -> Iterator[tuple[str, Path]]:
    """The server's URL, and the file of the key that it lets in."""
    key_file = folder / "key"
    key = paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(key_file))
    host_key = paramiko.RSAKey.generate(2048)
    files = _Files if exclusive else _ReplacingFiles
    open_transports: list[paramiko.Transport] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as OpenSSH
            transport = paramiko.Transport(connection)
            open_transports.append(transport)
            transport.daemon = True
            transport.add_server_key(host_key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, files)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(server=_Login(key), event=threading.Event())

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"sftp://{getuser()}@127.0.0.1:{listener.getsockname()[1]}", key_file
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        for transport in open_transports:
            transport.close()


@contextmanager
def serve_openssh(folder: Path) -> Iterator[tuple[str, Path]]:
    """The server's URL, and the file of the key that it lets in. Skips where there is no sshd."""
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        pytest.skip("there is no sshd here: apt install openssh-server")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # it wants to be alone there
    for name in ("host", "key"):
        paramiko.RSAKey.generate(2048).write_private_key_file(str(folder / name))
    public = paramiko.RSAKey.from_private_key_file(str(folder / "key"))
    (folder / "allowed").write_text(f"{public.get_name()} {public.get_base64()}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {
        "ListenAddress": "127.0.0.1",
        "PidFile": "none",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "allowed",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
    }
    given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    command = [sshd, "-D", "-e", "-f", os.devnull, "-p", str(port), *given]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port) or process.poll() is not None, 20)
        assert process.poll() is None, "sshd did not start"
        yield f"sftp://{getuser()}@127.0.0.1:{port}", folder / "key"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
