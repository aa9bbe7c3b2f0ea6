"""Source → listing: every file's path, size and fingerprint, in a stable order; nothing is read.

A folder or page of a listing that cannot be read is an error, never a shorter listing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import xxhash

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset.key_listing import KeyListing
from wds_pipeline.dataset.listing import LISTING, Listing
from wds_pipeline.dataset.select import SKIPPED, LeftOut, check_any
from wds_pipeline.dataset.walk import Walk
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import CONTENT, LocalStorage, Storage

__all__ = ["LISTING", "SKIPPED", "Listing", "scan"]

_CHUNK_ROWS = 500_000
# Filesystems stamp files with the kernel's tick, at most 10 ms: a second write within it is not seen.
_TICK_NS = 20_000_000


def scan(
    source: Storage,
    config: SourceConfig,
    dataset: str = "",
    progress: Callable[[int], None] | None = None,
) -> Listing:
    """Lists the source's files: folder by folder, each sorted by name, or key by key, by its bytes.

    `progress` is called with the number of files seen so far, a few times a second.

    Raises SourceError when the source is gone, empty, or has folders that cannot be read.
    """
    tell = _seldom(progress)
    if isinstance(source, LocalStorage):
        files, folders, left_out, newest_ns = _walk(source, config, dataset, tell)
    else:
        files, folders, left_out = _list(source, config, tell)
        newest_ns = 0
    check_any(files.num_rows, source.url, left_out, dataset)
    if config.fingerprint == "content":
        files = _with_content(source, files, dataset)
    else:
        wait_for_the_clock(newest_ns)
    return Listing(files, folders, dict(sorted(left_out.counts.items())), left_out.examples)


def _walk(
    source: LocalStorage, config: SourceConfig, dataset: str, tell: Callable[[int], None]
) -> tuple[pa.Table, list[int], LeftOut, int]:
    walk = Walk(source, config, dataset)
    rows = walk.rows
    walk.check_root()
    seen = 0
    while walk.position is not None:
        walk.step()
        if len(rows.paths) >= _CHUNK_ROWS:
            seen += len(rows.paths)
            rows.close_chunk()
        tell(seen + len(rows.paths))
    walk.check()
    return rows.table(), rows.folders, walk.left_out, rows.newest_ns


def _list(
    source: Storage, config: SourceConfig, tell: Callable[[int], None]
) -> tuple[pa.Table, list[int], LeftOut]:
    source.contact()
    keys = KeyListing(source, config)
    tables = [LISTING.empty_table()]
    seen = 0
    for table in keys.tables():
        tables.append(table)
        seen += table.num_rows
        tell(seen)
    return pa.concat_tables(tables).combine_chunks(), [seen], keys.left_out


def _seldom(progress: Callable[[int], None] | None) -> Callable[[int], None]:
    """Passes on what it is told a few times a second."""
    last = time.monotonic()

    def tell(seen: int) -> None:
        nonlocal last
        if progress is not None and time.monotonic() - last > 0.2:
            last = time.monotonic()
            progress(seen)

    return tell


def _with_content(source: Storage, files: pa.Table, dataset: str) -> pa.Table:
    """Replaces each file's time by a hash of its content."""

    def fingerprint(path: str, problem: str | None) -> str:
        if problem is not None:
            return ""
        state = xxhash.xxh3_128()
        try:
            with source.open(path) as file:
                while chunk := file.read(1024 * 1024):
                    state.update(chunk)
        except FileNotFoundError:
            gone = SourceError(
                f"{dataset}: {source.locate(path)}: went since it was listed; build again"
            )
            gone.passing = True
            raise gone from None
        except OSError as error:
            raise SourceError(
                f"{dataset}: {source.locate(path)}: cannot be read for its fingerprint: "
                f"{error.strerror}; give this user the right to read it, or set "
                "source.fingerprint: stat"
            ) from error
        return CONTENT + state.hexdigest()

    with ThreadPoolExecutor() as pool:
        values: Iterator[str] = pool.map(
            fingerprint, files["path"].to_pylist(), files["problem"].to_pylist()
        )
        column = pa.array(values, pa.large_string())
    return files.set_column(2, LISTING.field("fingerprint"), column)


def wait_for_the_clock(newest_ns: int) -> None:
    """After this, an edit of any listed file gets another time than the one listed."""
    age = time.time_ns() - newest_ns
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
