"""Reads a stored tar once, front to back, with the standard library's tarfile: not our writer.

One pass gives the members, their data and the digest of the whole file.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Self

_WINDOW = 2 * 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
# What tarfile meets in hostile headers: it parses numbers and follows chains without limits.
_UNREADABLE = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)


class TarDamage(Exception):
    """The archive cannot be read on: `code` and a message with what was found and expected."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Hasher(Protocol):
    """What hashlib and xxhash have in common."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def hasher(digest: str) -> Hasher | None:
    """For a digest such as `sha256:hex`, what computes one of its kind; None if unknown."""
    algorithm = digest.partition(":")[0]
    if algorithm == "xxh3-128":
        return xxhash.xxh3_128()
    return hashlib.sha256() if algorithm == "sha256" else None


class Member(NamedTuple):
    """One member: its data are `size` bytes from `offset`; `type` is tar's, b"0" for a file."""

    name: str
    type: bytes
    offset: int
    size: int


class HeaderOf(tarfile.TarInfo):
    """Reads a plain USTAR header in a third of tarfile's time, and any other as tarfile does.

    Owner and times have to be numbers, and are not asked for.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Raises tarfile.HeaderError for what is no header."""
        if len(buf) != _BLOCK:
            return super().frombuf(buf, encoding, errors)
        numbers = buf[100:148] + buf[329:345]  # mode, owner, size, time, device
        plain = buf[156:157] == b"0" and buf[257:265] == b"ustar\x0000" and not buf[345]
        if plain and not (buf[135] or buf[154] or numbers.translate(None, b"01234567\0")):
            size, checksum = buf[124:135], buf[148:154]
            if size.isdigit() and not checksum.translate(None, b"01234567"):
                total = sum(buf) - sum(buf[148:156]) + 8 * 0x20
                if total == int(checksum, 8):
                    name = bytes(buf[:100]).split(b"\0", 1)[0]
                    header = cls(name.decode(encoding, errors))
                    header.size, header.type = int(size, 8), tarfile.REGTYPE
                    return header
        return super().frombuf(buf, encoding, errors)


class OnePass:
    """A file that is read once; every byte passes the hash, also those that a seek skips.

    Seeks go forward, or back within what `take` returned last: all that tarfile does.
    """

    def __init__(self, file: BinaryIO, hash: Hasher | None) -> None:
        self.size = file.seek(0, 2)
        file.seek(0)
        self._file = file
        self._hash = hash
        self._window = memoryview(bytearray(_WINDOW))
        self._start = self._end = 0  # what the window holds, as positions in the file
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or not self._start <= position <= self.size:
            raise tarfile.ReadError(f"a header points to byte {position:,} of {self.size:,}")
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """For tarfile, which asks for headers only; extended ones are bounded here."""
        if not 0 <= size <= _WINDOW:
            raise tarfile.ReadError(f"an extended header of {size:,} bytes")
        return bytes(self.take(size))

    def take(self, size: int) -> memoryview:
        """The next bytes, at most `_WINDOW` and fewer at the end; valid until the next call."""
        size = min(size, _WINDOW)
        if self._position + size > self._end:
            self._fill(size)
        first = self._position - self._start
        last = min(first + size, self._end - self._start)
        self._position = self._start + last
        return self._window[first:last]

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes, in views that are valid until the next one is asked for."""
        while size and (view := self.take(size)):
            size -= len(view)
            yield view

    def _fill(self, size: int) -> None:
        """Reads on until the window holds `size` bytes from the position, or the file ends."""
        while self._end < self._position + size:
            keep = self._window[max(0, self._position - self._start) : self._end - self._start]
            held = len(keep)
            self._window[:held] = bytes(keep)  # a copy, since the two may overlap
            got = self._file.readinto(self._window[held:])  # type: ignore[attr-defined]
            if not got:
                self._start, self._end = self._end - held, self._end
                return
            if self._hash is not None:
                self._hash.update(self._window[held : held + got])
            self._start, self._end = self._end - held, self._end + got


def members(file: OnePass) -> Iterator[Member]:
    """The members in order; while one is current, its data can be read from `file`.

    Ends at a proper end of the archive: two zero blocks, then zeros only. Raises TarDamage.
    """
    where = 0
    try:
        with tarfile.open(
            fileobj=cast(BinaryIO, file),
            mode="r:",
            tarinfo=HeaderOf,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all otherwise
                if info.offset_data + info.size > file.size:
                    raise TarDamage(
                        "truncated",
                        f"ends within the member {info.name!r}: at {file.size:,} bytes, where at "
                        f"least {info.offset_data + info.size:,} are expected",
                    )
                yield Member(info.name, info.type, info.offset_data, info.size)
                where = tar.offset
            file.seek(min(tar.offset, file.size))
    except _UNREADABLE as error:
        code = "bad_header" if where else "not_a_tar"
        raise TarDamage(
            code, f"no tar header at byte {where:,} of {file.size:,}: {error}"
        ) from error
    _check_end(file)


def _check_end(file: OnePass) -> None:
    # tarfile takes anything that is no header for the end
    where = file.tell()
    block = bytes(file.take(2 * _BLOCK))
    if block.strip(b"\0"):
        raise TarDamage("bad_header", f"no tar header at byte {where:,} of {file.size:,}")
    if len(block) < 2 * _BLOCK:
        raise TarDamage(
            "truncated",
            f"ends at {file.size:,} bytes without the end of an archive, two zero blocks: it was "
            "cut between two members",
        )
    for chunk in file.chunks(file.size):
        if bytes(chunk).strip(b"\0"):
            raise TarDamage("trailing_data", f"data follow the archive's end at byte {where:,}")
