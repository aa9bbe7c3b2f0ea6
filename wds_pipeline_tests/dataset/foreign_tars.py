"""Tars as others write them, and what the standard library reads in them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import xxhash

from wds_pipeline.dataset.tar_scan import Walked, walk

PLAIN = (("a/1.jpg", b"J" * 700), ("a/1.txt", b"one"), ("a/2.jpg", b""), ("a/2.txt", b"t" * 512))


class Found(NamedTuple):
    """A member that is a file: where its first header and its data begin."""

    name: str
    start: int
    offset: int
    size: int


def make(
    members: Iterable[tuple[str, bytes]] = PLAIN, format: int = tarfile.USTAR_FORMAT, **info: object
) -> bytes:
    """A tar by the standard library; `info` are fields of each `TarInfo`."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in info.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def by_tarfile(data: bytes) -> list[Found]:
    """The regular members, as the standard library finds them."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [
            Found(each.name, each.offset, each.offset_data, each.size)
            for each in tar
            if each.isreg()
        ]


def by_us(data: bytes, window: int = 1 << 22) -> tuple[list[Found], Walked]:
    """The same by our walk; the digest is checked."""
    walked = walk(io.BytesIO(data), window)
    assert walked.bytes == len(data)
    assert walked.digest == f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"
    columns = zip(walked.names, walked.starts, walked.offsets, walked.sizes, strict=True)
    found = [Found(name.decode(errors="surrogateescape"), *rest) for name, *rest in columns]
    return found, walked


def codes(walked: Walked) -> list[str]:
    """What is wrong with a tar."""
    return [each.code for each in walked.problems]


def gnu_tar(folder: Path, *options: str) -> bytes:
    """What GNU tar makes of a folder."""
    command = ["tar", "-C", str(folder), "-cf", "-", *options, "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def by_gnu_tar(data: bytes) -> list[str]:
    """The names of the regular members, as GNU tar lists them; a folder's end with a slash."""
    command = ["tar", "--list", "--quoting-style=literal", "-f", "-"]
    done = subprocess.run(command, input=data, check=True, capture_output=True)
    return [each for each in done.stdout.decode().splitlines() if not each.endswith("/")]
