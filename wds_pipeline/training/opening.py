"""From what a user names, a URL, a version and a split, to a catalog."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from wds_pipeline.config_storage import (
    Place,
    StorageConfig,
    absolute,
    check_no_password,
    check_slashes,
)
from wds_pipeline.config_values import did_you_mean
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
        try:
            tars = indexed.resolve_tars(place)
        except VersionError as error:
            above = published.destination_of(place)
            if above is None:
                raise
            raise VersionError(
                f"{error}; or open the version that they are of: {above!r}, version=…, split=…"
            ) from None
    elif os.path.isfile(place.url):
        raise published.nothing_there(place)
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
    if not isinstance(url, str | os.PathLike) or not str(url):  # of a variable that is not set, say
        raise VersionError(f"found {url!r:.80} as URL; expected a dataset's destination or tars")
    url = str(url)
    try:
        check_no_password(url)
        check_slashes(url)
        config = StorageConfig.model_validate(storage or {})
    except ValidationError as error:
        raise VersionError(f"{url}: {_why_not(error)}") from None
    except ValueError as error:
        raise VersionError(str(error)) from None
    scheme, separator, path = url.partition("://")
    if separator and scheme.lower() in ("file", "local"):
        url = path
    return Place(url=absolute(url, "."), storage=config)


def _why_not(error: ValidationError) -> str:
    first = error.errors()[0]
    where, message = ".".join(map(str, ("storage", *first["loc"]))), first["msg"]
    if first["type"] == "extra_forbidden":
        known = list(StorageConfig.model_fields)
        near = did_you_mean(str(first["loc"][-1]), known)
        return f"{where}: there is no such key; there are {', '.join(known)}{near}"
    if not first["loc"] and first["type"] != "value_error":
        return f"{where}: expected a mapping, such as {{'profile': 'work'}}"
    # What was found is not shown: it may be a credential in the wrong place.
    return f"{where}: {message.removeprefix('Value error, ')}"


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
            f"{place.url}: version={version!r}: expected a number such as 7, or {LATEST!r}; a split is "
            "named by split=…"
        ) from None
    return number
