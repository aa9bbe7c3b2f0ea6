"""Whether a file is the shard that a version names, told without reading its samples, or by its digest."""

from __future__ import annotations

from typing import BinaryIO

from wds_pipeline.dataset.tar_read import hasher
from wds_pipeline.training.members import ShardMembers

_BLOCK = 512
_CHECKSUM = slice(148, 156)
_SIZE = slice(124, 136)
_PLAIN_SIZE = 8**11  # larger ones do not stand in the header's own place
_WINDOW = 4 * 1024 * 1024


def looks_wrong(file: BinaryIO, members: ShardMembers) -> str | None:
    """What is wrong with the headers of the first and the last member; None if they are as they should.

    Another shard of the same size, or one that lost its content in a crash, is noticed so.
    """
    for member in {0, len(members.bounds) - 1} if len(members.bounds) else ():
        offset, end = members.bounds[member].tolist()
        file.seek(max(offset - _BLOCK, 0))
        what = no_header(file.read(_BLOCK), offset, end - offset)
        if what is not None:
            return what
    return None


def no_header(block: bytes, offset: int, size: int) -> str | None:
    """What is wrong with the 512 bytes before a member's data of this size; None if they are its header."""
    if _is_header(block, size):
        return None
    return (
        f"found no tar header of a file of {size:,} bytes before byte {offset:,}, where its member index "
        "says; it was replaced or overwritten"
    )


def _is_header(block: bytes, size: int) -> bool:
    if len(block) != _BLOCK:
        return False
    try:
        stated = int(block[_CHECKSUM].strip(b"\0 ") or b"-1", 8)
        found = int(block[_SIZE].strip(b"\0 ") or b"0", 8) if size < _PLAIN_SIZE else size
    except ValueError:
        return False
    plain = sum(block) - sum(block[_CHECKSUM]) + 8 * 0x20
    return stated == plain and found == size


def other_digest(file: BinaryIO, digest: str) -> str | None:
    """What is wrong if a shard's bytes do not have this digest; None if they do."""
    state = hasher(digest)
    if state is None:
        return f"its digest {digest!r} is of a kind that this release does not know"
    file.seek(0)
    while chunk := file.read(_WINDOW):
        state.update(memoryview(chunk))
    found = f"{digest.partition(':')[0]}:{state.hexdigest()}"
    return None if found == digest else f"found the digest {found}; expected {digest}"
