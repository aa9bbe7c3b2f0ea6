"""Removes what was fetched and is asked for no more; what is left of a mostly unused tar moves on."""

from __future__ import annotations

import io
import math
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wds_pipeline.dataset.sources.kept import OK, TABLE, TAR, Batches, Fetched, Items, Kept
from wds_pipeline.dataset.tar import BLOCK, padding
from wds_pipeline.errors import DestinationError, SourceChanged
from wds_pipeline.storage import TEMPORARY, FileInfo

DAY = 24 * 3600.0
_GRACE_SECONDS = DAY  # another build may be about to read it
_WORTH_KEEPING = 0.5  # of a tar's bytes


def tidy_kept(kept: Kept, items: Items, used: pa.Array | None, seconds: float) -> Items:
    """`used` are the ids that the source has now; None if others keep theirs there too, and all must stay.
    What it has no more stays for so many seconds, a day at least: rows come back. Returns what is left."""
    now = time.time()
    old = math.inf if used is None else max(seconds, _GRACE_SECONDS)
    files = {file.path: file for file in kept.files()}
    numbers = {part.removesuffix(TAR) + TABLE: n for n, part in enumerate(items.parts)}
    latest = set(pc.unique(items.rows["part"]).to_pylist())
    rows = items.rows if used is None else items.rows.filter(pc.is_in(items.rows["id"], used))
    needed = set(pc.unique(rows["part"]).to_pylist())
    moved = False

    def is_needless(path: str, age: float) -> bool:
        stem = path.rpartition(".")[0]
        if path.startswith(kept.folder + TEMPORARY):
            return age > _GRACE_SECONDS
        if path.endswith(TAR):  # without its table, it was cut short
            return stem + TABLE not in files and age > _GRACE_SECONDS
        number = numbers.get(path)
        if number is None or number in needed:
            return False
        only_failures = stem + TAR not in files
        return (only_failures and number not in latest) or age > old

    try:
        for path, file in files.items():
            tar = files.get(path.removesuffix(TABLE) + TAR) if path.endswith(TABLE) else None
            needless = is_needless(path, now - file.modified)
            if tar is not None and numbers.get(path) in needed and now - file.modified > old:
                part = rows.filter(pc.equal(rows["part"], numbers[path]))
                needless = _move(kept, path, tar, part)
                moved |= needless
            if needless:
                kept.storage.delete(path)
                if tar is not None:
                    kept.storage.delete(tar.path)
    except (DestinationError, SourceChanged, OSError):
        pass  # the next scan tidies up
    return kept.load() if moved else items


def _move(kept: Kept, table: str, tar: FileInfo, part: pa.Table) -> bool:
    """Writes these items of a batch into a new one, if they are a small part of it."""
    sizes = part["bytes"].drop_null().to_numpy()
    if int(np.sum(BLOCK + sizes + padding(sizes))) >= _WORTH_KEEPING * tar.size:
        return False
    status = pq.read_table(pa.BufferReader(kept.storage.read(table)))
    status = status.filter(pc.is_in(status["id"], part["id"].combine_chunks()))
    with Batches(kept) as batches:
        for row in status.to_pylist():
            body = None
            if row["status"] == OK:
                at, size = row["offset"], row["bytes"]
                body = io.BytesIO(kept.storage.read_range(tar.path, at, size)[0] if size else b"")
            batches.add(
                Fetched(
                    id=row["id"],
                    shown=row["shown"],
                    status=row["status"],
                    body=body,
                    size=row["bytes"] or 0,
                    content=row["content"] or "",
                    code=row["code"],
                    tries=row["tries"],
                    detail=row["detail"] or "",
                )
            )
    return True
