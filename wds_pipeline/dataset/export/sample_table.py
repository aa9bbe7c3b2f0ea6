"""One Parquet table a split, `train.parquet`, a row a sample: for DuckDB, Polars, pandas.

Each field is a struct column: where its bytes are, and what verification found (`jpg.width`), null where a
sample lacks the field.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wds_pipeline.dataset.export.base import Export, Sink, first_members
from wds_pipeline.dataset.export.contents import Shard

_PLACE = [
    pa.field("key", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("shard", pa.string(), nullable=False),  # as the export names it
    pa.field("sample", pa.int64(), nullable=False),  # its number in the shard
]
_FIELD = pa.struct(
    [
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("chars", pa.int32()),
        pa.field("format", pa.string()),
    ]
)
_FOUND = ("width", "height", "chars", "format")


def write(export: Export) -> None:
    """Writes them, one row group a shard. Raises DestinationError."""
    fields = _fields(export)
    clash = {each.name for each in _PLACE} & set(fields)
    names = {name: f"{name}_" if name in clash else name for name in fields}
    schema = pa.schema([*_PLACE, *(pa.field(names[name], _FIELD) for name in fields)])
    for split, shards in export.contents.splits.items():
        with (
            export.create(f"{split}.parquet") as target,
            pq.ParquetWriter(Sink(target), schema, compression="zstd") as file,
        ):
            for shard in shards:
                if shard.samples:
                    file.write_table(_rows(export, shard, fields, schema))


def _fields(export: Export) -> list[str]:
    """The fields of all samples, in alphabetical order."""
    found: set[str] = set()
    for _, members in export.members():
        found.update(pc.unique(members["field"]).to_pylist())
    return sorted(found)


def _rows(export: Export, shard: Shard, fields: list[str], schema: pa.Schema) -> pa.Table:
    members = export.contents.read_members(shard)
    facts = export.contents.read_facts(shard)
    if facts is not None and facts.num_rows != members.num_rows:
        facts = None
    keys = members["key"].to_pylist()
    first = first_members(members["key"])
    sample = np.repeat(np.arange(len(first)), np.diff([*first, len(keys)]))
    columns = [
        pa.array([keys[n] for n in first], pa.string()),
        pa.repeat(shard.split, len(first)),
        pa.repeat(export.refer(shard.path), len(first)),
        pa.array(np.arange(len(first))),
    ]
    of_field = members["field"].to_numpy(zero_copy_only=False)
    values = {name: members[name] for name in ("offset", "size")}
    if facts is not None:
        values |= {name: facts[name] for name in _FOUND}
    for name in fields:
        rows = np.flatnonzero(of_field == name)
        columns.append(_struct(values, rows, sample[rows], len(first)))
    return pa.Table.from_arrays(columns, schema=schema)


def _struct(
    values: dict[str, pa.ChunkedArray], rows: np.ndarray, samples: np.ndarray, count: int
) -> pa.StructArray:
    """One field's column: `rows` are its members, `samples` the samples that they are of."""
    there = np.full(count, -1, np.int64)
    there[samples] = rows
    take = pa.array(np.where(there < 0, 0, there), mask=there < 0)
    arrays = [
        values[each.name].take(take).combine_chunks().cast(each.type)
        if each.name in values
        else pa.nulls(count, each.type)
        for each in _FIELD
    ]
    return pa.StructArray.from_arrays(arrays, fields=list(_FIELD), mask=pa.array(there < 0))
