"""The ledger: which split and shard slot each key has. Sticky: an existing sample never moves."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# In the order of split, slot and place in the shard. `bytes` is what the sample takes in the tar;
# `digest` is xxh3-128 over its members' names, sources, sizes and fingerprints.
LEDGER = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
    ]
)

# Samples left out. `digest` as in the ledger: a sample that was edited since is tried again.
# `split` and `slot` are where the sample was or would be; it returns there.
QUARANTINE = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("files", pa.list_(pa.string()), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("split", pa.string()),
        pa.field("slot", pa.int32()),
    ]
)


def empty(schema: pa.Schema) -> pa.Table:
    """A table without rows."""
    return schema.empty_table()


def names(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A dictionary column as integer codes and the values that they stand for, sorted."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # without a row
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    values = array.dictionary.to_pylist()
    order = sorted(set(values))
    rank = {value: code for code, value in enumerate(order)}
    recode = np.array([rank[value] for value in values], np.int32)
    codes = array.indices.to_numpy(zero_copy_only=False)
    return (recode[codes] if len(codes) else np.empty(0, np.int32)), order


def digests(column: pa.ChunkedArray) -> np.ndarray:
    """A column of 16-byte digests as an array of `V16`, comparable with `==`."""
    if not len(column):
        return np.empty(0, "V16")
    array = pa.concat_arrays(column.chunks)
    start = array.offset * 16
    return np.frombuffer(array.buffers()[1], "V16", len(array), start)


def digest_column(values: np.ndarray) -> pa.Array:
    """The inverse of `digests`."""
    data = np.ascontiguousarray(values)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(data), [None, pa.py_buffer(data.tobytes())]
    )
