"""The members of a zip, tar or tar.gz in memory, within limits: nothing is written to a disk.

A name is judged as it stands in the archive, so that a path that leads elsewhere is an error and not a
file with a harmless name.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from wds_pipeline.transforms.api import Rejected

_COMPRESSED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 1024 * 1024
_DRIVE = re.compile(r"[A-Za-z]:")
_SMALL = 10_000_000  # bytes that no ratio is asked of: ten megabytes hurt nobody


@dataclass(frozen=True)
class Limits:
    """How many members, how many bytes all of them together, and how many times the archive's own."""

    members: int
    bytes: int
    ratio: int

    def allowed(self, archive: int) -> int:
        """Bytes that an archive of so many bytes may hold."""
        return min(self.bytes, max(archive * self.ratio, _SMALL))


def members(
    data: bytes, limits: Limits, ignored: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file, sorted by path. Folders, and what is `ignored`, are passed over.

    Raises Rejected for what is damaged, above the limits, or not safe: links, devices, paths that are
    absolute or go up, members that come twice.
    """
    budget = limits.allowed(len(data))
    try:
        if data[:2] == b"\x1f\x8b":
            data = _unpacked(data, budget)
        if data[:2] == b"PK":
            yield from _zip(data, limits, budget, ignored)
        else:
            yield from _tar(data, limits, budget, ignored)
    except Rejected:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error) as error:
        raise Rejected(f"the archive cannot be read: {error}") from error
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise Rejected(f"no sound archive: {error}") from error


def _unpacked(data: bytes, budget: int) -> bytes:
    """A gzip's content, one byte above what headers and padding may add at most."""
    most = budget + budget // 2 + _SMALL
    found = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(_CHUNK):
            found += chunk
            if len(found) > most:
                raise Rejected(
                    f"it unpacks to more than {most:,} bytes from {len(data):,}: {_MORE}"
                )
    return bytes(found)


_MORE = "max_bytes and max_ratio allow more"


def _zip(
    data: bytes, limits: Limits, budget: int, ignored: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {}
        for path, info in _named(((each.filename, each) for each in archive.infolist()), limits):
            mode = info.external_attr >> 16 & 0o170000  # of Unix; 0 where there is none
            if info.is_dir():
                continue
            if mode not in (0, 0o100000):
                raise Rejected(f"the member {path!r} is a link or a device; expected files")
            if ignored(path):
                continue
            if info.flag_bits & 1:
                raise Rejected(f"the member {path!r} is encrypted")
            if info.compress_type not in _COMPRESSED:  # others are unpacked without a bound
                raise Rejected(f"the member {path!r} is neither stored nor deflated")
            files[path] = info
        _check_sizes((each.file_size for each in files.values()), budget, len(data))
        for path in sorted(files):
            with archive.open(files[path]) as file:
                content = file.read(
                    files[path].file_size
                )  # no more than was summed up; checks the CRC
            if len(content) < files[path].file_size:
                raise Rejected(f"the member {path!r} ends early: the archive is truncated")
            yield path, content


def _tar(
    data: bytes, limits: Limits, budget: int, ignored: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        files = {}
        for path, info in _named(((each.name, each) for each in archive), limits):
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise Rejected(f"the member {path!r} is a link, a device or sparse; expected files")
            if ignored(path):
                continue
            files[path] = info
        _check_sizes((each.size for each in files.values()), budget, len(data))
        for path in sorted(files):
            file = archive.extractfile(files[path])
            assert file is not None
            content = file.read()
            if len(content) < files[path].size:
                raise Rejected(f"the archive ends within the member {path!r}: it is truncated")
            yield path, content


def _named(
    entries: Iterable[tuple[str, zipfile.ZipInfo | tarfile.TarInfo]], limits: Limits
) -> Iterator:  # type: ignore[type-arg]
    """Entries by their paths without a leading `./`, as long as these are safe and none comes twice."""
    seen = set()
    for number, (name, info) in enumerate(entries, 1):
        if number > limits.members:
            raise Rejected(f"more than {limits.members:,} members: max_members allows more")
        parts = name.rstrip("/").split("/")
        if (
            name.startswith("/")
            or "\\" in name
            or "\0" in name
            or _DRIVE.match(name)
            or ".." in parts
        ):
            raise Rejected(
                f"the member {name!r} leads out of the archive; expected a path within it"
            )
        path = "/".join(part for part in parts if part not in ("", "."))
        if not path:
            continue
        if path in seen:
            raise Rejected(f"the member {path!r} comes twice")
        seen.add(path)
        yield path, info


def _check_sizes(sizes: Iterable[int], budget: int, archive: int) -> None:
    total = sum(sizes)
    if total > budget:
        raise Rejected(f"{total:,} bytes in an archive of {archive:,}; at most {budget:,}: {_MORE}")
