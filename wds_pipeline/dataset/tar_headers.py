"""Tar headers that are not plain: sizes in other notations, PAX and GNU extensions, sparse files.

What a fast walk over headers (`tar_scan`) hands to here: plain ones many at a time, others one by one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

BLOCK = 512
LONGEST = 1024 * 1024  # bytes of an extended header that are read; real ones have a few hundred

_POSIX = 262  # where `ustar\0` has its zero and GNU's `ustar  ` has none
_PREFIX = slice(345, 500)
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")
_OCTAL = re.compile(rb"[ \0]*([0-7]+)[ \0]*")


class BadHeader(Exception):
    """A block that should be a header and is none; the message is one clause."""


@dataclass
class Extended:
    """What the extended headers before a member say of it: None where they do not.

    `start` is where the first of them begins in the tar.
    """

    start: int
    name: bytes | None = None
    size: int | None = None
    sparse: bool = False
    kinds: str = ""


def number(field: bytes | bytearray) -> int:
    """A number of a header: octal digits with spaces or zero bytes around them, or base 256.

    Raises BadHeader.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field) or _OCTAL.fullmatch(field.split(b"\0", 1)[0])
    if match is None:
        if not field.strip(b" \0"):
            return 0
        raise BadHeader(f"its size field holds {bytes(field)!r}, no number")
    return int(match[1], 8)


def checksums(header: bytes) -> tuple[int, int]:
    """The sums of a header's bytes, unsigned and signed: old writers took the other one."""
    body = header[:148] + header[156:]
    unsigned = sum(body) + 8 * 0x20
    return unsigned, unsigned - 256 * sum(each > 127 for each in body)


def is_header(header: bytes) -> bool:
    """Whether a block's checksum is a header's."""
    try:
        return number(header[148:156]) in checksums(header) and any(header)
    except BadHeader:
        return False


def of_interest(data: bytes | bytearray) -> bool:
    """Whether PAX records may say something of a member's name or of where its data are."""
    return b"path=" in data or b"size=" in data or b"GNU.sparse" in data


def read_pax(data: bytes, into: Extended) -> None:
    """Takes from PAX records what says where a member's data are, and what its name is.

    Raises BadHeader for records that are none.
    """
    if not of_interest(data):  # nearly always it is a time
        return
    at = 0
    while at < len(data) and data[at]:
        match = _PAX_RECORD.match(data, at)
        if match is None:
            raise BadHeader("its PAX records cannot be parsed")
        end = at + int(match[1])
        if end <= match.end() or end > len(data):
            raise BadHeader("a PAX record has a wrong length")
        keyword, value = match[2], data[match.end() : end - 1]
        if keyword == b"path":
            into.name = value
        elif keyword == b"size":
            if not value.isdigit():
                raise BadHeader(f"a PAX record says the size is {value!r}")
            into.size = int(value)
        elif keyword.startswith((b"GNU.sparse", b"SCHILY.realsize")):
            into.sparse = True
        at = end


def sparse_extensions(header: bytes | bytearray) -> bool:
    """Whether a map of holes goes on in the block behind an old GNU sparse header."""
    return bool(header[482])


def sound(rows: np.ndarray) -> int:
    """How many of the headers, from the first on, have their right checksum."""
    # Up to 512 * 255: 32 bits are room enough, and twice as fast as 64.
    sums = rows.sum(axis=1, dtype=np.uint32) - rows[:, 148:156].sum(axis=1, dtype=np.uint32) + 256
    digits = rows[:, 148:154].astype(np.int64) - 0x30
    stated = digits @ (8 ** np.arange(5, -1, -1))
    usual = ((digits >= 0) & (digits < 8)).all(axis=1) & (rows[:, 154] == 0)
    sizes = rows[:, 124:135]
    octal = ((sizes >= 0x30) & (sizes < 0x38)).all(axis=1)
    for row in np.flatnonzero(~(usual & (stated == sums) & octal)).tolist():
        header = rows[row].tobytes()
        if not is_header(header):
            return int(row)
        try:
            number(header[124:136])
        except BadHeader:
            return int(row)
    return len(rows)


def plain_names(rows: np.ndarray) -> list[bytes]:
    """The names in plain headers, with their prefixes."""
    plain = np.ascontiguousarray(rows[:, :100])
    names: list[bytes] = plain.view("S100").ravel().tolist()
    zero = plain == 0
    for number in np.flatnonzero((zero[:, :-1] & ~zero[:, 1:]).any(axis=1)).tolist():
        names[number] = names[number].split(b"\0", 1)[0]
    prefixed = (rows[:, 345] != 0) & (rows[:, 257] != 0) & (rows[:, _POSIX] == 0)
    for number in np.flatnonzero(prefixed).tolist():
        prefix = rows[number, _PREFIX].tobytes().split(b"\0", 1)[0]
        names[number] = prefix + b"/" + names[number]
    return names
