"""From what a user names, a URL, a version and a split, to a catalog."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from wds_pipeline.config_storage import Place, StorageConfig, absolute, check_no_password
from wds_pipeline.errors import VersionError
from wds_pipeline.training import indexed, published
from wds_pipeline.training.catalog import Catalog

LATEST = "latest"


def open_catalog(
    url: str,
    version: int | str | None,
    split: str | None,
    storage: StorageConfig | Mapping[str, Any] | None,
) -> Catalog:
    """The catalog of a published version, or of tars that have an index.

    Raises VersionError, or what the store says.
    """
    place = _place(url, storage)
    number = _number(place, version)
    tars: indexed.IndexedOrigin | None
    if indexed.names_tars(place.url):
        tars = indexed.resolve_tars(place)
    else:
        origin = published.resolve(place, number, split)
        if origin is not None:
            return Catalog(origin)
        tars = indexed.resolve_folder(place)
        if tars is None:
            raise published.nothing_there(place)
    indexed.check_version_and_split(place, number, split)
    return Catalog(tars)


def _place(url: str, storage: StorageConfig | Mapping[str, Any] | None) -> Place:
    url = str(url)
    try:
        check_no_password(url)
        config = storage if isinstance(storage, StorageConfig) else StorageConfig(**storage or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("storage", *first["loc"])))
        raise VersionError(f"{url}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise VersionError(str(error)) from None
    scheme, separator, path = url.partition("://")
    if separator and scheme.lower() in ("file", "local"):
        url = path
    return Place(url=absolute(url, "."), storage=config)


def _number(place: Place, version: int | str | None) -> int | None:
    """A version's number; None for the newest."""
    if version is None or version == LATEST:
        return None
    try:
        if isinstance(version, bool):
            raise TypeError
        number = int(version) if isinstance(version, str) else operator.index(version)
    except (TypeError, ValueError):
        raise VersionError(
            f"{place.url}: version={version!r}: expected a number such as 7, or {LATEST!r}"
        ) from None
    return number
