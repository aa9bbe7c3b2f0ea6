"""Megatron-Energon's `.nv-meta` folder, and `<shard>.tar.idx` next to each shard.

The export's folder is the dataset's path for Energon; shards are named relative to it.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from wds_pipeline.dataset.export.base import ANY, Export, Sink, first_members
from wds_pipeline.dataset.export.contents import Shard
from wds_pipeline.dataset.tar_headers import BLOCK
from wds_pipeline.errors import DataError

_META = ".nv-meta/"
_ROWS = 100  # of a statement
_MARK = "# Written by wds-pipeline, again each time; without this line it stays as you change it.\n"
_NAMESPACE = uuid.UUID("5b0a5d0e-7d62-4f7c-9a36-5f1f3a3f8a61")
_TABLES = """
CREATE TABLE samples (
    tar_file_id INTEGER NOT NULL,
    sample_key TEXT NOT NULL,
    sample_index INTEGER NOT NULL,
    byte_offset INTEGER,
    byte_size INTEGER
);
CREATE TABLE sample_parts (
    tar_file_id INTEGER,
    sample_index INTEGER,
    part_name TEXT,
    content_byte_offset INTEGER,
    content_byte_size INTEGER
);
"""
# Made last: a table that is filled in the order of its index is a third faster.
_INDEXES = """
CREATE UNIQUE INDEX idx_samples_sample_key ON samples(sample_key);
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full
    ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""
_FAST = "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"


def write(export: Export) -> None:
    """Writes it. A temporary file of the local disk holds the database until it is whole.

    Raises DataError for a key that two samples have, DestinationError.
    """
    export.refuse_misread(ANY)
    used = [
        shard for shard in export.contents.shards if shard.samples
    ]  # Energon takes no empty one
    names = {shard.path: export.refer(shard.path) for shard in used}
    with tempfile.TemporaryDirectory(prefix="wds-pipeline-energon-") as folder:
        database = Path(folder) / "index.sqlite"
        _fill(export, database, {shard.path: at for at, shard in enumerate(used)})
        with database.open("rb") as source, export.create(_META + "index.sqlite") as target:
            shutil.copyfileobj(source, Sink(target), 4 * 1024 * 1024)
    parts = {
        split: [names[shard.path] for shard in shards if shard.samples]
        for split, shards in export.contents.splits.items()
    }
    info = {"shard_counts": {names[shard.path]: shard.samples for shard in used}}
    # These two are for people to change: theirs are not ours to replace.
    if _is_ours(export, "split.yaml"):
        export.put(_META + "split.yaml", _yaml({"split_parts": parts, "exclude": []}))
    if _is_ours(export, "dataset.yaml"):
        crude = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
        export.put(_META + "dataset.yaml", _yaml(crude))
    export.put(_META + "index.uuid", str(uuid.uuid5(_NAMESPACE, export.contents.digest)))
    export.put(_META + ".info.json", json.dumps(info, indent=2))


def _is_ours(export: Export, name: str) -> bool:
    """Whether a file of ours, or none, is there."""
    try:
        return export.storage.read(export.folder + _META + name).startswith(_MARK.encode())
    except FileNotFoundError:
        return True


def _yaml(values: object) -> str:
    return _MARK + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _fill(export: Export, database: Path, numbers: dict[str, int]) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.executescript(_FAST + _TABLES + "BEGIN;")
        for shard, members in export.members():
            if shard.path not in numbers:
                continue
            starts = _insert(db, numbers[shard.path], shard, members)
            export.beside_shard(shard, ".tar.idx", starts.astype("<u8").tobytes())
        db.execute("COMMIT")
        try:
            db.executescript(_INDEXES)
        except sqlite3.IntegrityError:
            (key,) = db.execute(
                "SELECT sample_key FROM samples GROUP BY sample_key HAVING count(*) > 1 LIMIT 1"
            ).fetchone()
            raise DataError(
                f"{export.contents.dataset}: export energon: found the key {key!r} twice; Energon "
                "expects each once over all tars. Rename the samples, or leave energon out"
            ) from None


def _insert(db: sqlite3.Connection, number: int, shard: Shard, members: pa.Table) -> np.ndarray:
    """Puts a shard's rows into the tables; returns where its samples begin, and where the last ends."""
    keys = members["key"].to_pylist()
    first = np.array(first_members(members["key"]), np.int64)
    offsets, sizes = members["offset"].to_numpy(), members["size"].to_numpy()
    end = shard.end
    if end is None:
        end = int(offsets[-1] + (sizes[-1] + BLOCK - 1) // BLOCK * BLOCK)
    begins = np.append(members["start"].to_numpy()[first], end)
    of_member = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(keys))))
    _insert_rows(
        db,
        "samples",
        [number] * len(first),
        [keys[row] for row in first.tolist()],
        list(range(len(first))),
        begins[:-1].tolist(),
        np.diff(begins).tolist(),
    )
    _insert_rows(
        db,
        "sample_parts",
        [number] * len(keys),
        of_member.tolist(),
        members["extension"].to_pylist(),
        offsets.tolist(),
        sizes.tolist(),
    )
    return begins


def _insert_rows(db: sqlite3.Connection, table: str, *columns: list[Any]) -> None:
    """Many rows in one statement take half the time of a statement each."""
    width, count = len(columns), len(columns[0])
    flat: list[Any] = [None] * (width * count)
    for at, column in enumerate(columns):
        flat[at::width] = column
    row = f"({', '.join('?' * width)})"
    whole = count - count % _ROWS
    for rows, begin, end in ((_ROWS, 0, whole), (1, whole, count)):
        step = rows * width
        statement = f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"
        chunks = (flat[at : at + step] for at in range(begin * width, end * width, step))
        db.executemany(statement, chunks)
