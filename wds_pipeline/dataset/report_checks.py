"""Checks across all shards of a version, by column: no Python object a sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wds_pipeline.dataset import content
from wds_pipeline.dataset.distributions import Distribution, distribution
from wds_pipeline.dataset.shard_report import MEMBERS, ShardReport

_IMAGE_COLUMNS = ("width", "height")
_OF_TOKENS = "tokens.json"  # the field that blocks of tokens have, and nothing else


@dataclass
class Members:
    """All members of a version: `table` by `shard_report.MEMBERS`, and per row, as numbers:

    `shard`, `split` and `field`, of `shards`, `splits` and `fields`; `sample`, in order from 0.
    `first` is the row of each sample's first member.
    """

    table: pa.Table
    shards: list[str]
    splits: list[str]
    fields: list[str]
    shard: NDArray[np.int64]
    split: NDArray[np.int64]
    field: NDArray[np.int64]
    sample: NDArray[np.int64]
    first: NDArray[np.int64]
    size: NDArray[np.int64]

    @property
    def samples(self) -> int:
        return len(self.first)

    def key(self, row: int) -> str:
        return str(self.table.column("key")[int(row)].as_py())


def gather(reports: Sequence[ShardReport]) -> Members:
    """Puts the shards' members into one table."""
    table = pa.concat_tables([MEMBERS.empty_table(), *(each.members for each in reports)])
    rows = [each.members.num_rows for each in reports]
    splits = sorted({each.split for each in reports})
    shard = np.repeat(np.arange(len(reports)), rows)
    of_shard = np.array([splits.index(each.split) for each in reports], dtype=np.int64)
    fields, field = _encode(table.column("field"))
    starts = _sample_starts(table.column("key"), shard)
    return Members(
        table,
        [each.name for each in reports],
        splits,
        fields,
        shard,
        of_shard[shard],
        field,
        np.cumsum(starts) - 1,
        np.flatnonzero(starts),
        table.column("size").to_numpy(),
    )


def _encode(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Its distinct values, sorted, and the number of each row's value among them."""
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=values.__getitem__)
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values))
    return [values[each] for each in order], rank[encoded.indices.to_numpy()]


def _sample_starts(keys: pa.ChunkedArray, shard: NDArray[np.int64]) -> NDArray[np.bool_]:
    starts = np.ones(len(keys), dtype=bool)
    if len(keys) > 1:
        differs = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
        starts[1:] = differs.to_numpy() | (shard[1:] != shard[:-1])
    return starts


def repeated_keys(members: Members) -> list[NDArray[np.int64]]:
    """For each key that is in several places, the rows where its samples start."""
    keys = members.table.column("key").take(pa.array(members.first))
    encoded = keys.cast(pa.large_string()).combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    again = np.flatnonzero(np.bincount(codes, minlength=1)[codes] > 1)
    return _groups(members.first[again], codes[again])


def _groups(
    rows: NDArray[np.int64], *identity: NDArray[Any], least: int = 2
) -> list[NDArray[np.int64]]:
    """The rows that agree in identity, in the order of their first."""
    if not len(rows):
        return []
    order = np.lexsort(identity)
    same = np.ones(len(rows) - 1, dtype=bool)
    for values in identity:
        same &= values[order][1:] == values[order][:-1]
    parts = np.split(rows[order], np.flatnonzero(~same) + 1)
    return sorted((each for each in parts if len(each) >= least), key=lambda each: int(each[0]))


def same_content(members: Members, fields: Iterable[str]) -> list[NDArray[np.int64]]:
    """Groups of rows, of different samples, with the same content in the same one of `fields`.

    Empty files are not the same content: they are a problem of their own.
    """
    wanted = np.isin(members.field, [members.fields.index(each) for each in fields])
    digest = members.table.column("digest")
    wanted &= (members.size > 0) & digest.is_valid().to_numpy()
    rows = np.flatnonzero(wanted)
    halves = _digests(digest)[rows]
    # One sort by a mixture finds the few candidates; only those are compared in full.
    mixed = halves[:, 0] ^ (members.field[rows].astype(np.uint64) << np.uint64(56))
    order = np.argsort(mixed, kind="stable")
    equal = mixed[order][1:] == mixed[order][:-1]
    candidate = np.zeros(len(rows), dtype=bool)
    candidate[order[1:][equal]] = True
    candidate[order[:-1][equal]] = True
    rows, halves = rows[candidate], halves[candidate]
    groups = _groups(rows, halves[:, 1], halves[:, 0], members.field[rows])
    return [each for each in groups if members.sample[each[0]] != members.sample[each[-1]]]


def _digests(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The digests as two numbers a row; what stands for a missing one has no meaning."""
    halves = np.zeros((len(column), 2), dtype=np.uint64)
    row = 0
    for chunk in column.chunks:
        data = chunk.buffers()[1]
        if len(chunk) and data is not None:
            values = np.frombuffer(data, np.uint64, 2 * len(chunk), 16 * chunk.offset)
            halves[row : row + len(chunk)] = values.reshape(-1, 2)
        row += len(chunk)
    return halves


def compared_fields(members: Members, extensions: dict[str, list[str]]) -> list[str]:
    """The fields whose equal content means equal samples: media; without any, text. Of blocks of tokens
    none: their masks are the same, often."""
    if _OF_TOKENS in members.fields:
        return []
    kinds = {each: content.kind(tuple(extensions.get(each) or (each,))) for each in members.fields}
    media = [each for each, kind in kinds.items() if kind in ("image", "media", "array")]
    return media or [each for each, kind in kinds.items() if kind == "text"]


def samples_without(members: Members, field: str) -> NDArray[np.int64]:
    """The first rows of the samples that lack a field."""
    if field not in members.fields:
        return members.first
    has = np.zeros(members.samples, dtype=bool)
    has[members.sample[members.field == members.fields.index(field)]] = True
    return members.first[~has]


def field_rows(members: Members, required: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each field: how many files, how many samples lack it, bytes, formats."""
    count = np.bincount(members.field, minlength=len(members.fields))
    size = np.zeros(len(members.fields), dtype=np.int64)
    np.add.at(size, members.field, members.size)
    decoded = np.bincount(
        members.field[members.table.column("decoded").to_numpy()], minlength=len(members.fields)
    )
    oversized = pc.starts_with(members.table.column("detail"), content.TOO_LARGE)
    too_large = np.bincount(
        members.field[pc.fill_null(oversized, False).to_numpy()], minlength=len(members.fields)
    )
    formats: dict[str, dict[str, int]] = {}
    grouped = members.table.select(["field", "format"]).group_by(["field", "format"])
    for row in grouped.aggregate([([], "count_all")]).to_pylist():
        if row["format"] is not None:
            formats.setdefault(row["field"], {})[row["format"]] = row["count_all"]
    rows = [
        {
            "field": name,
            "required": name in required,
            "count": int(count[number]),
            "missing": len(samples_without(members, name)),
            "bytes": int(size[number]),
            "decoded": int(decoded[number]),
            "too_large": int(too_large[number]),
            "formats": dict(
                sorted(formats.get(name, {}).items(), key=lambda each: (-each[1], each[0]))
            ),
        }
        for number, name in enumerate(members.fields)
    ]
    return sorted(rows, key=lambda each: (-each["count"], each["field"]))


def problems(members: Members) -> dict[str, NDArray[np.int64]]:
    """Code → the rows whose content has this problem."""
    column = members.table.column("problem")
    rows = np.flatnonzero(column.is_valid().to_numpy())
    codes = np.array(column.take(pa.array(rows)).to_pylist(), dtype=object)
    return {code: rows[codes == code] for code in sorted(set(codes))}


def distributions(members: Members) -> list[Distribution]:
    """Of images, texts and whole samples; only those that there is something to say of."""
    image = members.table.column("width").is_valid().to_numpy()
    width, height = (
        members.table.column(each).filter(pa.array(image)).to_numpy().astype(np.int64)
        for each in _IMAGE_COLUMNS
    )
    chars = members.table.column("chars").drop_null().to_numpy().astype(np.int64)
    sizes = np.zeros(members.samples, dtype=np.int64)
    np.add.at(sizes, members.sample, members.size)
    found = [
        distribution("image width", "pixels", width),
        distribution("image height", "pixels", height),
        distribution("image aspect", "width / height", width / np.maximum(height, 1)),
        distribution("image area", "megapixels", width * height / 1e6),
        distribution("text length", "characters", chars),
        distribution("sample size", "bytes", sizes),
    ]
    return [each for each in found if each is not None]
