"""Removes what a source kept at the destination, under `sources/`, and needs no more."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

from wds_pipeline.errors import DestinationError
from wds_pipeline.storage import FileInfo, Storage

_GRACE_SECONDS = 24 * 3600.0  # another build may be about to read it


def tidy(keep: Storage, folder: str, needed: Collection[str]) -> None:
    """Removes the files of a folder, with a slash at its end, that are not needed and older than a day."""
    now = time.time()

    def drop(file: FileInfo) -> None:
        if file.path not in needed and now - file.modified > _GRACE_SECONDS:
            keep.delete(file.path)

    with suppress(DestinationError, OSError):  # the next scan tidies up
        keep.at_once(drop, list(keep.list_files(folder)))
