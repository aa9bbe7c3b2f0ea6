"""The one door to bytes: list, read, write, put-if-absent, under a root."""

from __future__ import annotations

from wds_pipeline.config_storage import Place
from wds_pipeline.storage.base import (
    CONTENT,
    KEYS,
    TEMPORARY,
    UNREADABLE,
    FileInfo,
    Read,
    Reads,
    Storage,
    Stored,
    Usage,
    Writer,
)
from wds_pipeline.storage.local import LocalStorage

__all__ = [
    "CONTENT",
    "KEYS",
    "TEMPORARY",
    "UNREADABLE",
    "FileInfo",
    "LocalStorage",
    "Place",
    "Read",
    "Reads",
    "Storage",
    "Stored",
    "Usage",
    "Writer",
    "open_storage",
]


def open_storage(place: Place | str) -> Storage:
    """The storage behind a place or a URL. Nothing is asked of it yet.

    Raises ConfigError for a URL of a kind that is not known or not installed.
    """
    if isinstance(place, str):
        place = Place(url=place)
    if place.scheme in ("file", "local"):
        return LocalStorage(place)
    if place.scheme in ("s3", "s3a"):
        from wds_pipeline.storage.s3 import S3Storage

        return S3Storage(place)
    from wds_pipeline.storage.generic import open_generic

    return open_generic(place)
