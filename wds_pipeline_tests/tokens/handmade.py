"""Versions of token data sets written by hand: quick, and as odd as a test wants them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.storage import open_storage
from wds_pipeline.tokens.blocks import npy_bytes
from wds_pipeline.tokens.combine import TokenVersion

WIDTH = 6  # ids a row


def row(key: str, width: int = WIDTH) -> Any:
    """What stands in the row of a key: other ids for another key."""
    hashed = xxhash.xxh3_128_digest(key.encode())
    return np.frombuffer((hashed * width)[: 2 * width], "<u2").astype(np.int64) % 30_000


def block(
    keys: Sequence[str], first: int = 0, more: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """The fields of a block with a row for each key; `more` are others, or other ones."""
    ids = np.array([row(key) for key in keys]).reshape(len(keys), WIDTH).astype("<i2")
    fields = {
        "idx.npy": npy_bytes(np.arange(first, first + len(keys), dtype="<i4").reshape(-1, 1)),
        "input_ids.npy": npy_bytes(ids),
        "keys.json": json.dumps(list(keys)).encode(),
        "modality.npy": npy_bytes(np.zeros((len(keys), 1), "<i2")),
        "tokens.json": b'{"layout": "one_modality", "shift": 0}',
        "write_flag.npy": npy_bytes(np.ones((len(keys), 1), np.bool_)),
    }
    return {**fields, **(more or {})}


def version(
    folder: Path,
    shards: Sequence[Sequence[dict[str, bytes]]],
    *,
    number: int = 1,
    name: str = "tokens",
) -> TokenVersion:
    """Publishes shards of blocks; a shard is named by its content."""
    storage = open_storage(str(folder))
    entries = []
    for slot, blocks in enumerate(shards):
        data, members = _tar(f"train-{slot:06d}", blocks)
        digest = xxhash.xxh3_128_hexdigest(data)
        each = seal.Seal(
            name=seal.shard_name("train", slot, digest),
            split="train",
            slot=slot,
            recipe=digest,
            samples=len(blocks),
            members=len(members),
            bytes=len(data),
            digest=f"xxh3-128:{digest}",
        )
        storage.put(seal.path(each.name, seal.TAR), data)
        table = pa.Table.from_pylist(members, schema=seal.MEMBER_INDEX)
        storage.put(seal.path(each.name, seal.MEMBERS), seal.parquet_bytes(table))
        storage.put(seal.path(each.name, seal.SEAL), seal.dump_seal(each))
        entries.append(
            ShardEntry(
                each.name, "train", slot, len(blocks), len(data), each.digest, number, "1 new"
            )
        )
    manifest = Manifest.of_shards(
        entries,
        version=number,
        dataset=name,
        parent=number - 1,
        write_id="w",
        created="",
        writer="",
        source="",
        inputs="",
        content_rules="",
        config={},
        files={},
        quarantined={},
        verification={},
    )
    return TokenVersion(storage, manifest, "train")


def _tar(shard: str, blocks: Sequence[dict[str, bytes]]) -> tuple[bytes, list[dict[str, Any]]]:
    sink, members = io.BytesIO(), []
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, fields in enumerate(blocks):
            for field, data in sorted(fields.items()):
                key = f"{shard}/{number:06d}"
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(data)
                offset = tar.offset + 512
                members.append({"key": key, "field": field, "offset": offset, "size": len(data)})
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue(), members


def plain(shards: int = 5, blocks: int = 2, rows: int = 7, name: str = "k") -> list[Any]:
    """So many shards of so many blocks of so many rows, each with a key of its own."""
    return [
        [block([f"{name}/{s}-{b}-{r}" for r in range(rows)], first=b * rows) for b in range(blocks)]
        for s in range(shards)
    ]


def keys_of(shards: Sequence[Sequence[dict[str, bytes]]]) -> list[str]:
    """The keys of all rows, in order."""
    return [key for blocks in shards for each in blocks for key in json.loads(each["keys.json"])]


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in _files(folder)}


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
