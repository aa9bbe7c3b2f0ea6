"""Does a field's content decode, as its extension says? The facts of one file.

What each extension means is WebDataset's table (webdataset/autodecode.py); images are Pillow's
business, see `content_image`. Nothing here runs code from the data: pickles are never loaded.
"""

from __future__ import annotations

import ast
import codecs
import functools
import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from wds_pipeline.dataset.content_image import check_image, formats_of
from wds_pipeline.dataset.syntax import parsed

# Larger files are hashed and not decoded, so that a worker stays within 256 MB.
MAX_IN_MEMORY = 64 * 1024 * 1024
# Python's objects take up to twenty times the bytes of the json that they come from.
MAX_JSON = 8 * 1024 * 1024
# Text and json compress to about a tenth; what grows more than this beyond MAX_IN_MEMORY is a bomb.
MAX_RATIO = 200

TOO_LARGE = "not decoded: too large"

# fmt: off
_TEXT = frozenset({
    "txt", "text", "transcript", "caption", "html", "htm", "xml", "csv", "tsv", "md", "srt", "vtt",
    "svg",
})
_NUMBER = frozenset({"cls", "cls2", "index", "inx", "id", "count"})
_JSON = frozenset({"json", "jsn"})
# Not decoded here, but compared with each other to find duplicates.
_MEDIA = frozenset({
    "wav", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aiff",
    "mp4", "m4v", "webm", "mkv", "avi", "mov", "mpg", "mpeg", "heic", "heif", "jxl",
    "pth", "pt", "ten", "tb", "bin", "safetensors",
})
# fmt: on
_CHUNK = 1024 * 1024
_MAX_DIGITS = 4300  # what int() converts
_NPY_HEADER = 65_536  # bytes; numpy's own are a few hundred


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one file. Sizes are in pixels, `chars` in Unicode code points.

    `problem` is a code or None; `detail` says what was found and expected, or is a remark where
    there is no problem. `decoded` is whether the content was looked into, whatever came of it:
    False where nothing here decodes such files, or for the reason in `detail`.
    """

    problem: str | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None
    chars: int | None = None
    format: str | None = None
    thumbnail: bytes | None = None
    decoded: bool = False


def check(
    field: str,
    extensions: Sequence[str],
    data: bytes | memoryview,
    max_pixels: int,
    thumbnail: bool = False,
) -> Facts:
    """Decodes one file of a field that may have any of `extensions` (none: the field's own name).

    Problems: empty_file, broken_image, wrong_format, too_many_pixels, bad_text, bad_json,
    bad_number, bad_array, bad_compression. Never raises for what the data hold.
    """
    if not len(data):
        return Facts("empty_file", "0 bytes", decoded=True)
    if len(data) > MAX_IN_MEMORY:
        return too_large(len(data))
    first: Facts | None = None
    for one in _checks(tuple(extensions) or (field,), bytes(data[:2]) == b"\x1f\x8b"):
        facts = one(data, max_pixels, thumbnail)
        if facts.problem is None:
            return facts
        first = first or facts
    return first or Facts()


def too_large(size: int) -> Facts:
    """The facts of a file of `size` bytes that is above a limit."""
    return Facts(detail=f"{TOO_LARGE} ({size:,} bytes)")


@functools.cache
def kind(extensions: tuple[str, ...]) -> str:
    """What a field is: image, media (sound, video, tensors), array, text, json, number or other."""
    for extension in extensions:
        last = _parts(extension)[0]
        if formats_of(last):
            return "image"
        for name, known in (
            ("text", _TEXT), ("json", _JSON | {"jsonl"}), ("number", _NUMBER),
            ("array", {"npy", "npz"}), ("media", _MEDIA),
        ):  # fmt: skip
            if last in known:
                return name
    return "other"


_Check = Callable[[bytes | memoryview, int, bool], Facts]


def _parts(extension: str) -> tuple[str, bool]:
    """The part that says what the content is, and whether it is compressed: seg.json.gz → json."""
    parts = extension.lower().split(".")
    if parts[-1] == "gz":
        return (parts[-2] if len(parts) > 1 else "", True)
    return parts[-1], False


@functools.cache
def _checks(extensions: tuple[str, ...], compressed_first: bool) -> tuple[_Check, ...]:
    """The ways in which the content may be right; all image formats together are one of them."""
    formats: set[str] = set()
    found: dict[tuple[str, bool], _Check] = {}
    for extension in extensions:
        inner, compressed = _parts(extension)
        if compressed:
            found[inner, True] = functools.partial(_gzip, inner)
        elif images := formats_of(inner):
            formats |= images
            found["image", False] = functools.partial(_image, frozenset(formats))
        else:
            found[inner, False] = _plain(inner)
    order = sorted(found, key=lambda each: each[1] != compressed_first)
    return tuple(found[each] for each in order)


def _plain(extension: str) -> _Check:
    for known, checks in (
        (_TEXT, _text), (_JSON, _json), ({"jsonl"}, _jsonl), (_NUMBER, _number),
        ({"npy"}, _npy), ({"npz"}, _npz),
    ):  # fmt: skip
        if extension in known:
            return checks
    return lambda data, max_pixels, thumbnail: Facts()


def _image(
    formats: frozenset[str], data: bytes | memoryview, max_pixels: int, thumbnail: bool
) -> Facts:
    found = check_image(data, formats, max_pixels, thumbnail)
    return Facts(
        found.problem, found.detail, found.width, found.height, None,
        found.format, found.thumbnail, found.decoded,
    )  # fmt: skip


def _text(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    decoder = codecs.getincrementaldecoder("utf-8")()
    chars = 0
    for start in range(0, len(data), _CHUNK):
        held = len(decoder.getstate()[0])
        try:
            last = start + _CHUNK >= len(data)
            chars += len(decoder.decode(bytes(data[start : start + _CHUNK]), final=last))
        except UnicodeDecodeError as error:
            where = start - held + error.start
            what = f"not UTF-8: byte 0x{data[where]:02x} at offset {where:,} ({error.reason})"
            return Facts("bad_text", what, decoded=True)
    return Facts(chars=chars, format="text", decoded=True)


def _json(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    if len(data) > MAX_JSON:
        return too_large(len(data))
    problem = _json_problem(bytes(data))
    return Facts("bad_json" if problem else None, problem, format="json", decoded=True)


def _jsonl(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) > MAX_JSON:
            return too_large(len(line))
        if line.strip() and (problem := _json_problem(line)):
            return Facts("bad_json", f"line {number}: {problem}", format="jsonl", decoded=True)
    return Facts(format="jsonl", decoded=True)


def _json_problem(data: bytes) -> str:
    try:
        json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start:,}"
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"does not parse: {error}"
    return ""


def _number(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    try:
        if len(data) > _MAX_DIGITS:
            raise ValueError
        int(bytes(data))
    except ValueError:
        start = bytes(data[:24])
        return Facts("bad_number", f"found {start!r}; expected a whole number", decoded=True)
    return Facts(format="number", decoded=True)


def _npy(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    try:
        _check_npy(io.BytesIO(data), len(data))
    except _UNREADABLE as error:
        return Facts("bad_array", _said(error), format="npy", decoded=True)
    return Facts(format="npy", decoded=True)


def _npz(data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    budget = MAX_IN_MEMORY + MAX_RATIO * len(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if (unpacked := sum(each.file_size for each in entries)) > budget:
                return Facts("bad_array", f"unpacks to {unpacked:,} bytes", decoded=True)
            for entry in entries:
                with archive.open(entry) as file:
                    if entry.filename.endswith(".npy"):
                        _check_npy(file, entry.file_size)
                    while file.read(_CHUNK):  # to the end, where zipfile compares the checksum
                        pass
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error, OSError, NotImplementedError) as error:
        return Facts("bad_array", _said(error), format="npz", decoded=True)
    return Facts(format="npz", decoded=True)


_UNREADABLE = (ValueError, SyntaxError, TypeError, KeyError, EOFError, RuntimeError, MemoryError)


def _said(error: Exception) -> str:
    """What NumPy says, without addresses in memory: the same bytes have the same report."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(error)) or type(error).__name__


def _check_npy(file: IO[bytes], size: int) -> None:
    """Raises one of `_UNREADABLE` for an array that numpy would not load without pickle.

    By the format's definition (numpy/lib/format.py): np.load would first allocate what a lying
    header asks for.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise ValueError(f"not a NumPy array: it starts with {start[:6]!r}")
    if start[6] not in (1, 2, 3):
        raise ValueError(f"version {start[6]}.{start[7]} of the npy format; 1.0 to 3.0 are known")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _NPY_HEADER:
        raise ValueError(f"a header of {length:,} bytes; at most {_NPY_HEADER:,} are expected")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin1")
    header = parsed(lambda: ast.literal_eval(text.strip()))
    dtype = np.lib.format.descr_to_dtype(header["descr"])
    if dtype.hasobject:
        raise ValueError("an array of Python objects needs pickle, which runs code")
    expected = math.prod(header["shape"]) * dtype.itemsize
    found = size - 8 - width - length
    if expected < 0 or found < expected:
        raise ValueError(
            f"{found:,} bytes of values; {expected:,} expected of {dtype} {header['shape']}"
        )


def _gzip(inner: str, data: bytes | memoryview, max_pixels: int, thumbnail: bool) -> Facts:
    try:
        unpacked, size = _unpack(data)
    except (zlib.error, EOFError, OSError) as error:
        return Facts("bad_compression", f"gzip: {error}", decoded=True)
    if size > len(unpacked):
        if size > MAX_RATIO * len(data):
            what = f"gzip: {len(data):,} bytes unpack to more than {MAX_RATIO} times as many"
            return Facts("bad_compression", what, decoded=True)
        return too_large(size)
    if not inner:
        return Facts(format="gzip", decoded=True)
    facts = check(inner, [inner], unpacked, max_pixels, thumbnail)
    return replace(facts, format=f"{facts.format} gzip" if facts.format else "gzip", decoded=True)


def _unpack(data: bytes | memoryview) -> tuple[bytes, int]:
    """The unpacked content and its size; beyond MAX_IN_MEMORY, a part and how far it was read.

    Raises zlib.error, EOFError or OSError.
    """
    unpacked, size = io.BytesIO(), 0
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            if size <= MAX_IN_MEMORY:
                unpacked.write(chunk)
            elif size > MAX_RATIO * len(data):
                break
    return unpacked.getvalue(), size
