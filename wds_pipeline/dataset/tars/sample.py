"""A sample on its way from one tar into another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from wds_pipeline.storage.base import BLOCK

# webdataset/tariterators.py: base_plus_ext; and what its readers skip. As in `tar_members`.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_SKIPPED = re.compile(r"__[^/]*__($|/)")
_DROPPING = re.compile(r"(.*/)?(\._[^/]*|\.DS_Store)|(.*/)?__MACOSX/.*", re.DOTALL)

# Why a member is in no sample.
LEFT_OUT = {
    "no_key": "without a key and an extension",
    "hidden": "with a name __…__, which readers skip",
    "dropping": "droppings of macOS",
    "folder": "folders",
}


class Stored:
    """A large content that is not in memory: `read(offset, size)` gives some of its `size` bytes."""

    def __init__(self, read: Callable[[int, int], bytes | memoryview], size: int) -> None:
        self._read = read
        self._size = size

    def __len__(self) -> int:
        return self._size

    def chunks(self) -> Iterator[bytes | memoryview]:
        """All of it, in order, in pieces of a few MB. Raises what reading raises."""
        for start in range(0, self._size, BLOCK):
            yield self._read(start, min(BLOCK, self._size - start))


Data = bytes | memoryview | Stored


class Member(NamedTuple):
    """One field of a sample, spelt as in the tar, where its data begin at the byte `offset`."""

    field: str
    data: Data
    offset: int = 0


@dataclass(slots=True)
class Sample:
    """The members of one key, in order, from the tar that `where` names. Names are text, in which bytes that
    are no UTF-8 are surrogates."""

    key: str
    members: list[Member]
    where: str = ""


def content(data: Data) -> bytes:
    """All of a content, in memory."""
    if isinstance(data, Stored):
        return b"".join(data.chunks())
    return bytes(data)


def pieces(data: Data) -> Iterator[bytes | memoryview]:
    """A content, in pieces of a few MB at most, or as it is held."""
    if isinstance(data, Stored):
        yield from data.chunks()
    elif len(data):
        yield data


def key_and_field(name: str) -> tuple[str, str] | str:
    """What a member's name says by WebDataset's rule: the key ends at the first dot behind the last slash.

    A code of `LEFT_OUT` for one that is in no sample.
    """
    slash = name.rfind("/")
    dot = name.find(".", slash + 1)
    if dot > slash + 1 and "__" not in name:
        return name[:dot], name[dot + 1 :]
    if name.endswith("/"):
        return "folder"
    if _DROPPING.fullmatch(name):
        return "dropping"
    found = _NAME.fullmatch(name)
    if found is None:
        return "no_key"
    return "hidden" if _SKIPPED.search(name) else (found[1], found[2])
