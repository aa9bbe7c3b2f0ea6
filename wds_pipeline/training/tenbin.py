"""The tensors of a `.ten` or `.tb` file (webdataset's tenbin): pairs of chunks, a header and its data.

A chunk is the magic, the length of what follows as int64, and that, filled up to 64 bytes. A header is
int64s: the dtype's and a name's eight letters, the number of dimensions, the dimensions.
"""

from __future__ import annotations

import math

import numpy as np

_MAGIC = b"~TenBin~"
_ALIGN = 64
_MAX_DIMENSIONS = 32
_DTYPES = {
    f"{kind}{size}".encode(): np.dtype(f"{kind}{size}")
    for kind, sizes in (("f", (2, 4, 8)), ("i", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)))
    for size in sizes
}


def load(data: bytes) -> list[np.ndarray]:
    """All arrays, each a copy that may be written to. Raises ValueError."""
    chunks = _chunks(data)
    if len(chunks) % 2:
        raise ValueError("it ends with the header of an array that is not there")
    return [_array(*pair) for pair in zip(chunks[::2], chunks[1::2], strict=True)]


def _chunks(data: bytes) -> list[memoryview]:
    view, found, at = memoryview(data), [], 0
    while at < len(data):
        if data[at : at + 8] != _MAGIC:
            raise ValueError(f"no tenbin chunk at byte {at:,}: found {data[at : at + 8]!r}")
        size = int.from_bytes(data[at + 8 : at + 16], "little", signed=True)
        begin, at = at + 16, at + 16 + -(-size // _ALIGN) * _ALIGN
        if size < 0 or begin + size > len(data):
            raise ValueError(f"a chunk of {size:,} bytes at byte {begin:,} of {len(data):,}")
        found.append(view[begin : begin + size])
    return found


def _array(header: memoryview, values: memoryview) -> np.ndarray:
    if len(header) < 24 or len(header) % 8:
        raise ValueError(f"a header of {len(header)} bytes; expected 24 or more, by eights")
    dtype = _DTYPES.get(bytes(header[:8]).rstrip(b"\0"))
    if dtype is None:
        raise ValueError(f"an array of the type {bytes(header[:8])!r}")
    rank, *shape = np.frombuffer(header[16:], "<i8").tolist()
    shape = shape[: max(rank, 0)]
    if not 0 <= rank <= _MAX_DIMENSIONS or len(shape) != rank or any(side < 0 for side in shape):
        raise ValueError(f"an array of {rank} dimensions with the shape {shape}")
    count = math.prod(shape)
    if count * dtype.itemsize > len(values):
        raise ValueError(f"{len(values):,} bytes of values; {dtype} {shape} needs more")
    return np.frombuffer(values, dtype.newbyteorder("<"), count).astype(dtype).reshape(shape)
