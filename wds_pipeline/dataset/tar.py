"""Tar members' headers, the same bytes on every machine.

USTAR (POSIX.1-1988) where it can hold the member; a PAX header (POSIX.1-2001) only for the member
that needs one: a name that does not split into 155 + 100 bytes, or 8 GiB and more. Names are UTF-8
in both, which GNU tar, libarchive and Python's tarfile all read back.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

import numpy as np

BLOCK = 512
# What GNU tar writes at the end: two zero blocks, then zeros to a whole 10,240-byte record.
RECORD = 20 * BLOCK
# 2000-01-01T00:00:00Z. Not 0: GNU tar warns of an "implausibly old time stamp" at every member.
MTIME = 946_684_800

_USTAR_NAME = 100
_USTAR_MAX_SIZE = 8 * 1024**3  # eleven octal digits


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mtime = MTIME
    info.mode = 0o644
    return info


def _constant_part() -> tuple[bytes, bytes, int]:
    """Everything of a short USTAR header that is the same for each: mode…gid, mtime, the rest."""
    block = _info("", 0).tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    before_size, after_size = block[100:124], block[136:148]
    tail = block[156:]
    constant = sum(before_size) + sum(after_size) + sum(tail) + 8 * 0x20  # checksum as spaces
    return before_size, after_size + b"%06o\0 " + tail, constant


_BEFORE_SIZE, _AFTER_SIZE, _CONSTANT_SUM = _constant_part()
_TEMPLATE = np.frombuffer(_info("", 0).tobuf(tarfile.USTAR_FORMAT), np.uint8)


def header(name: str, size: int) -> bytes:
    """The header of a regular member of `size` bytes: 512 bytes, or more where PAX is needed.

    Raises UnicodeEncodeError for a name that is not valid Unicode.
    """
    encoded = name.encode()
    if len(encoded) > _USTAR_NAME or size >= _USTAR_MAX_SIZE:
        return _long_header(name, size)
    # A template and one checksum: ten times as fast as tarfile, which counts for small files.
    digits = b"%011o\0" % size
    checksum = _CONSTANT_SUM + sum(encoded) + sum(digits)
    return b"".join(
        (encoded.ljust(_USTAR_NAME, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE % checksum)
    )


def _long_header(name: str, size: int) -> bytes:
    info = _info(name, size)
    try:
        return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except ValueError:  # no place to split the name, or the size has too many digits
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def unusual(names: Sequence[bytes], sizes: np.ndarray) -> list[int]:
    """Which members have another header than `plain_headers` would give them."""
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    found = (lengths > _USTAR_NAME) | (sizes >= _USTAR_MAX_SIZE)
    return list(np.flatnonzero(found).tolist())


def plain_headers(names: Sequence[bytes], sizes: np.ndarray) -> np.ndarray:
    """What `header` gives each member that is not `unusual`, as rows of 512 bytes."""
    rows = np.tile(_TEMPLATE, (len(names), 1))
    rows[:, :_USTAR_NAME] = np.array(names, f"S{_USTAR_NAME}")[:, None].view(np.uint8)
    rows[:, 124:135] = _octal(sizes, 11)
    variable = rows[:, :_USTAR_NAME].sum(axis=1) + rows[:, 124:135].sum(axis=1)
    rows[:, 148:154] = _octal(variable.astype(np.int64) + _CONSTANT_SUM, 6)
    rows[:, 154] = 0
    return rows


def _octal(numbers: np.ndarray, digits: int) -> np.ndarray:
    """The digits of each number, as ASCII."""
    return (numbers[:, None] >> np.arange(3 * digits - 3, -1, -3) & 7) + 0x30


def padding(size: int) -> int:
    """How many zero bytes follow `size` bytes of data, to a whole block."""
    return -size % BLOCK


def member_size(name: str, size: int) -> int:
    """How many bytes a member takes in the tar, header and padding included."""
    if len(name) * 4 <= _USTAR_NAME and size < _USTAR_MAX_SIZE:
        return BLOCK + size + padding(size)
    return len(header(name, size)) + size + padding(size)


def end(position: int) -> bytes:
    """The archive's end after `position` bytes of members."""
    return bytes(2 * BLOCK + -(position + 2 * BLOCK) % RECORD)
