"""The shards of a version, as a table beside its manifest: `versions/00000007/shards.parquet`.

One row a shard, in the order of split and slot. A row group has shards of one split only, so that who
wants one split decodes no other. The manifest has the table's digest: what is read is what was
committed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from wds_pipeline.dataset import seal

# `bytes` is the tar's size, `digest` its digest (`algorithm:hex`); `since` is the version that first
# held the shard, `cause` says why it was packed.
SHARDS = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("since", pa.int32(), nullable=False),
        pa.field("cause", pa.string(), nullable=False),
    ]
)
# Every name and digest is another: a dictionary of them would only be larger.
_REPEATED = ["split", "since", "cause", "samples"]


class ShardEntry(NamedTuple):
    """One shard of a version. `since` is the version that first held it; `cause` says why."""

    name: str
    split: str
    slot: int
    samples: int
    bytes: int
    digest: str
    since: int
    cause: str

    @property
    def recipe(self) -> str:
        """The digest of its recipe."""
        return self.name.rpartition("-")[2]

    @property
    def path(self) -> str:
        """Where the tar lies, relative to the destination."""
        return seal.path(self.name, seal.TAR)

    @property
    def partition(self) -> str:
        """The shard slot's name, the same in every version: `train-000042`."""
        return f"{self.split}-{self.slot:06d}"


def dump(shards: Sequence[ShardEntry]) -> bytes:
    """The table as its file holds it; shards of one split lie one behind the other in it."""
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink, SHARDS, compression="zstd", write_page_checksum=True, use_dictionary=_REPEATED
    ) as file:
        for _, part in groupby(shards, attrgetter("split")):
            columns = zip(*part, strict=True)
            arrays = [pa.array(each, of.type) for each, of in zip(columns, SHARDS, strict=True)]
            table = pa.table(arrays, schema=SHARDS)
            file.write_table(table, row_group_size=table.num_rows)
    return sink.getvalue()


def parse(data: bytes, split: str | None = None) -> list[ShardEntry]:
    """A split's shards, or all, of a table's bytes; these are held against their digest before."""
    file = pq.ParquetFile(pa.BufferReader(data))
    groups = list(range(file.metadata.num_row_groups))
    if split is not None:
        groups = [each for each in groups if split in _splits(file.metadata.row_group(each))]
    table = file.read_row_groups(groups, use_threads=False)  # see `seal.parse_parquet`
    columns = (table[each].to_pylist() for each in SHARDS.names)
    return list(map(ShardEntry._make, zip(*columns, strict=True)))


def _splits(group: pq.RowGroupMetaData) -> tuple[str, str]:
    stated = group.column(SHARDS.get_field_index("split")).statistics
    return stated.min, stated.max


def digest_of(data: bytes) -> str:
    """The digest by which a manifest knows its table."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def content_digest(shards: Sequence[ShardEntry]) -> str:
    """The same for shards of the same names and bytes in the same order, whatever made them."""
    lines = "".join(f"{each.name} {each.digest}\n" for each in shards)
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(lines.encode())}"
