"""Text, numbers, arrays and objects by extension, as webdataset's table has them.

Nothing here runs code from the data, but what is marked as a pickle and explicitly permitted.
"""

from __future__ import annotations

import functools
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from wds_pipeline.dataset.syntax import parsed
from wds_pipeline.training import tenbin

MAX_UNPACKED = 1024 * 1024 * 1024
"""How many bytes a compressed field may unpack to."""

_NPY_HEADER = 65_536  # bytes; numpy's own are a few hundred


class Kind(NamedTuple):
    """How files of some extensions are decoded; `expected` is what messages call it. `package` is what
    must be installed for it, under the name to import and the name to install."""

    load: Callable[[bytes], Any]
    expected: str
    package: tuple[str, str] | None = None
    pickled: Callable[[bytes], Any] | None = None
    """What decodes it where pickles are permitted."""


def text(data: bytes) -> str:
    """UTF-8."""
    return str(data, "utf-8")


def npy(data: bytes) -> np.ndarray:
    """An array that may be written to, from the bytes of a `.npy`. Raises ValueError."""
    header = data[: 12 + _NPY_HEADER]
    if header[:6] != b"\x93NUMPY" or len(header) < 12:
        raise ValueError(f"not a NumPy array: it starts with {bytes(header[:6])!r}")
    wide = header[6] != 1
    start = 12 if wide else 10
    begin = start + int.from_bytes(header[8:start], "little")
    if begin > len(header):
        raise ValueError(f"the header ends at byte {begin:,}; found {len(data):,} bytes")
    shape, column_first, dtype = _npy_header(bytes(header[:begin]))
    if dtype.hasobject:
        raise ValueError("an array of Python objects needs pickle, which runs code")
    count = 1
    for side in shape:
        count *= side
    if count < 0 or count * dtype.itemsize > len(data) - begin:
        raise ValueError(f"{len(data) - begin:,} bytes of values; {dtype} {shape} needs more")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    values = np.frombuffer(data, dtype, count, begin).copy()
    return values.reshape(shape[::-1]).transpose() if column_first else values.reshape(shape)


# The arrays of a field mostly have one shape, and parsing it takes longer than copying a small one.
@functools.lru_cache(256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        found = _parsed(np.lib.format.read_array_header_1_0, stream)
    elif version == (2, 0):
        found = _parsed(np.lib.format.read_array_header_2_0, stream)
    elif version == (3, 0):  # 2.0 in UTF-8; NumPy reads it by no function of its own
        plain = header[12:].decode("utf-8").encode("latin-1", "backslashreplace")
        again = header[:6] + b"\2\0" + len(plain).to_bytes(4, "little") + plain
        found = _npy_header(again)
    else:
        raise ValueError(
            f"version {version[0]}.{version[1]} of the npy format; 1.0 to 3.0 are known"
        )
    shape, column_first, dtype = found
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape of {shape}")
    return shape, column_first, dtype


def _parsed(read: Any, stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    begin = stream.tell()

    def parse() -> tuple[tuple[int, ...], bool, np.dtype]:
        stream.seek(begin)
        found: tuple[tuple[int, ...], bool, np.dtype] = read(stream, max_header_size=_NPY_HEADER)
        return found

    return parsed(parse)


def pickled_npy(data: bytes) -> np.ndarray:
    """As `npy`, and arrays of objects, which runs code from the data."""
    return parsed(lambda: np.lib.format.read_array(io.BytesIO(data), allow_pickle=True))


def npz(data: bytes, allow_pickle: bool = False) -> dict[str, Any]:
    """The arrays of a `.npz` by name. Raises ValueError or what zipfile raises."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {unpacked:,} bytes; at most {MAX_UNPACKED:,}")
        found: dict[str, Any] = {}
        for entry in entries:
            name, content = entry.filename, archive.read(entry)
            if content[:6] != b"\x93NUMPY":
                found[name] = content  # as np.load has it
                continue
            load = pickled_npy if allow_pickle else npy
            found[name.removesuffix(".npy")] = load(content)
        return found


def gunzip(data: bytes) -> bytes:
    """The content of a `.gz` of one part or more. Raises ValueError or zlib.error."""
    if not data:
        raise ValueError("empty, where gzip has a header and a checksum")
    parts, size = [], 0
    while data:
        part = zlib.decompressobj(wbits=31)  # gzip, with its checksum
        parts.append(part.decompress(data, MAX_UNPACKED - size + 1))
        size += len(parts[-1])
        if size > MAX_UNPACKED:
            raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
        if not part.eof:
            raise ValueError("the compressed data are cut short")
        data = part.unused_data.lstrip(b"\0")  # which tapes add
    return parts[0] if len(parts) == 1 else b"".join(parts)


def msgpack(data: bytes) -> Any:
    """MessagePack."""
    import msgpack  # type: ignore[import-untyped]

    return msgpack.unpackb(data)


def cbor(data: bytes) -> Any:
    """CBOR."""
    import cbor2

    return cbor2.loads(data)


def pth(data: bytes) -> Any:
    """What torch.save wrote, weights alone, on the CPU."""
    return _torch_load(data, weights_only=True)


def pickled_pth(data: bytes) -> Any:
    """What torch.save wrote, any objects: this runs code from the data."""
    return _torch_load(data, weights_only=False)


def _torch_load(data: bytes, *, weights_only: bool) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=weights_only)


def refused(data: bytes) -> Any:
    """A pickle that nobody permitted."""
    raise ValueError("a pickle, which runs code when it is loaded")


def unpickle(data: bytes) -> Any:
    """Any objects: this runs code from the data."""
    import pickle

    return pickle.loads(data)


_TORCH = ("torch", "torch")
_KINDS: list[tuple[str, Kind]] = [
    ("txt text transcript", Kind(text, "UTF-8 text")),
    ("cls cls2 index inx id", Kind(int, "a whole number in digits")),
    ("json jsn", Kind(json.loads, "JSON")),
    ("npy", Kind(npy, "a NumPy array (npy)", pickled=pickled_npy)),
    ("npz", Kind(npz, "NumPy arrays (npz)", pickled=functools.partial(npz, allow_pickle=True))),
    ("ten tb", Kind(tenbin.load, "arrays (tenbin)")),
    ("mp msg", Kind(msgpack, "MessagePack", ("msgpack", "msgpack"))),
    ("cbor", Kind(cbor, "CBOR", ("cbor2", "cbor2"))),
    ("pth", Kind(pth, "weights that torch.save wrote", _TORCH, pickled=pickled_pth)),
    ("pyd pickle pkl", Kind(refused, "a pickle", pickled=unpickle)),
]
KINDS = {name: kind for names, kind in _KINDS for name in names.split()}
"""Kind by extension. `class`, `count`, `html`, `htm` and all else stay bytes, as in webdataset."""
