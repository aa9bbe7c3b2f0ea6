"""Samples into a tar: the same samples give the same bytes, on every machine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wds_pipeline.dataset import tar
from wds_pipeline.dataset.tars.sample import Data, Sample, Stored
from wds_pipeline.errors import DataError
from wds_pipeline.storage import Writer

_GATHERED = 4 * 1024 * 1024  # bytes that are written at once
_ALONE = 64 * 1024  # bytes of a content that is written as it is, which saves a copy
_PLAIN_NAME = 100  # bytes
_ZEROS = [bytes(count) for count in range(tar.BLOCK)]


class LaidOut(NamedTuple):
    """A sample as it will be in a tar: headers, contents and zeros, in order; and how many bytes it takes."""

    parts: list[Data]
    size: int


def lay_out(sample: Sample) -> LaidOut:
    """Raises DataError for a name that no tar holds so that readers find it again."""
    parts: list[Data] = []
    size = 0
    for field, data, _ in sample.members:
        length = len(data)
        head = _header(f"{sample.key}.{field}", length, sample.where)
        pad = -length % tar.BLOCK
        parts += (head, data, _ZEROS[pad])
        size += len(head) + length + pad
    return LaidOut(parts, size)


def _header(name: str, size: int, where: str) -> bytes:
    try:
        return tar.header(name, size)
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogateescape")
    rows = [raw], np.array([size])
    if tar.unusual(*rows):
        raise DataError(
            f"{where}: {name!r}: a name of {len(raw)} bytes that is not UTF-8; such names fit up to "
            f"{_PLAIN_NAME} bytes; rename it"
        )
    return tar.plain_headers(*rows).tobytes()


class TarWriter:
    """Writes a tar to a file under way."""

    def __init__(self, file: Writer) -> None:
        self._file = file
        self._parts: list[bytes | memoryview] = []
        self._gathered = 0
        self.samples = 0
        self.size = 0
        """In bytes, so far."""

    def add(self, laid_out: LaidOut) -> None:
        """Writes one sample. Raises what writing raises."""
        for part in laid_out.parts:
            if isinstance(part, Stored):
                self._flush()
                for chunk in part.chunks():
                    self._file.write(chunk)
            elif len(part) >= _ALONE:
                self._flush()
                self._file.write(part)
            else:
                self._parts.append(part)
                self._gathered += len(part)
        if self._gathered >= _GATHERED:
            self._flush()
        self.samples += 1
        self.size += laid_out.size

    def finish(self) -> None:
        """Writes the archive's end."""
        end = tar.end(self.size)
        self._parts.append(end)
        self.size += len(end)
        self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._file.write(b"".join(self._parts))
        self._parts.clear()
        self._gathered = 0
