"""The xxh3-128 of the content of members of a tar, where nothing says it yet: by reading them once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.storage import CONTENT, Storage, Stored
from wds_pipeline.storage.base import BLOCK

_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8).reshape(256, 2)


def read_digests(storage: Storage, path: str, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The digests of ranges of one file, in its order: uint8 of shape (ranges, 16), big-endian.

    Holds a few MB. Raises SourceChanged, FileNotFoundError and what reading raises.
    """
    ends = offsets + sizes
    known: Stored | None = None
    found = bytearray()
    first = 0
    while first < len(offsets):
        begin = int(offsets[first])
        stop = int(np.searchsorted(ends, begin + BLOCK, side="right"))
        if stop <= first:
            state = xxhash.xxh3_128()
            for at in range(begin, int(ends[first]), BLOCK):
                data, known = storage.read_range(path, at, min(BLOCK, int(ends[first]) - at), known)
                state.update(data)
            found += state.digest()
            first += 1
            continue
        data = memoryview(b"")
        if ends[stop - 1] > begin:
            data, known = storage.read_range(path, begin, int(ends[stop - 1]) - begin, known)
        some = zip(offsets[first:stop].tolist(), ends[first:stop].tolist(), strict=True)
        found += b"".join(
            xxhash.xxh3_128_digest(data[at - begin : end - begin]) for at, end in some
        )
        first = stop
    return np.frombuffer(bytes(found), np.uint8).reshape(-1, 16)


def fingerprints(digests: np.ndarray) -> pa.Array:
    """Digests as fingerprints of content: `xxh3-128:<hex>`, large_string."""
    count = len(digests)
    texts = np.empty((count, len(CONTENT) + 32), np.uint8)
    texts[:, : len(CONTENT)] = np.frombuffer(CONTENT.encode(), np.uint8)
    texts[:, len(CONTENT) :] = _HEX[digests].reshape(count, 32)
    ends = np.arange(count + 1, dtype=np.int64) * texts.shape[1]
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(texts.tobytes())]
    return pa.Array.from_buffers(pa.large_string(), count, buffers)


def digest_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column of `shard_report.MEMBERS.digest` as uint8 of shape (rows, 16)."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    start = array.offset * 16
    return np.frombuffer(array.buffers()[1], np.uint8, len(array) * 16, start).reshape(-1, 16)
