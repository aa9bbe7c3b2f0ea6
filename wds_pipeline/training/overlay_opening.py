"""From what a user names, overlays of a version, to its catalog with them, if they are its overlays."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from wds_pipeline.config_storage import StorageConfig
from wds_pipeline.config_values import Model, did_you_mean
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, VersionError
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.opening import LATEST, open_catalog
from wds_pipeline.training.overlay import JoinedCatalog, Part

_SHOWN = 3  # keys of a message
_log = logging.getLogger("wds_pipeline.training")

OverlaySpec = str | os.PathLike[str] | Mapping[str, Any]


class Wanted(Model):
    """One overlay, as `open_dataset` is told of it; a bare URL will do."""

    url: str = Field(min_length=1)
    """The destination of a dataset that is an overlay."""
    version: int | str | None = LATEST
    fields: list[str] | None = None
    """Only these fields of it; by default all."""
    missing: Literal["keep", "skip", "error"] = "keep"
    """Samples that have nothing in it are given as the base has them, are left out, or are an error."""
    existing: Literal["replace", "error"] = "replace"
    """A field that the base has too is the overlay's wherever that has it, or is an error."""
    storage: StorageConfig | None = None
    """How its store is reached; by default as the base's."""


def join(
    catalog: Catalog,
    overlays: OverlaySpec | Sequence[OverlaySpec],
    storage: StorageConfig | Mapping[str, Any] | None,
) -> tuple[JoinedCatalog, np.ndarray | None]:
    """The catalog of a version with its overlays, and the numbers of the samples that are not left out (None:
    all).

    Raises ConfigError for what is no overlay's description; VersionError for datasets that are no overlays
    of this one, fields that they lack, and where `missing` or `existing` says so.
    """
    if isinstance(overlays, str | os.PathLike | Mapping):
        overlays = [overlays]
    wanted = [_wanted(catalog, each) for each in overlays]
    if not wanted:
        raise ConfigError(f"{catalog.named}: overlays: found none; expected some, or None")
    parts = [_open(catalog, each, storage) for each in wanted]
    joined = JoinedCatalog(catalog, parts)
    kept: np.ndarray | None = None
    for each, part in zip(wanted, parts, strict=True):
        _check_existing(joined, part, each)
        lacks = _check_missing(catalog, part, each)
        if lacks is not None and each.missing == "skip":
            kept = ~lacks if kept is None else kept & ~lacks
    return joined, None if kept is None or kept.all() else np.flatnonzero(kept)


def _wanted(catalog: Catalog, given: OverlaySpec) -> Wanted:
    try:
        values = given if isinstance(given, Mapping) else {"url": given}
        url = values.get("url")
        return Wanted.model_validate({**values, **({} if url is None else {"url": os.fspath(url)})})
    except (ValidationError, TypeError) as error:
        known = list(Wanted.model_fields)
        if isinstance(error, TypeError):
            what, near = f"found {given!r:.80}", ""
        else:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            near = did_you_mean(where, known) if first["type"] == "extra_forbidden" else ""
            what = f"{where}: {message[:1].lower()}{message[1:]}"
        raise ConfigError(
            f"{catalog.named}: overlays: {what}{near or ';'} expected a URL, or a mapping of "
            f"{', '.join(known)}"
        ) from None


def _open(base: Catalog, wanted: Wanted, storage: StorageConfig | Mapping[str, Any] | None) -> Part:
    reached = storage if wanted.storage is None else wanted.storage
    found = open_catalog(wanted.url, wanted.version, None, reached)
    aligned = _is_of(base, found)
    if aligned and base.split is not None:
        if base.split not in found.content.manifest.splits:  # type: ignore[attr-defined]
            raise _nothing(base, found)
        found = open_catalog(wanted.url, found.version, base.split, reached)
    fields = None if wanted.fields is None else frozenset(wanted.fields)
    known = found.field_names()
    for name in sorted(fields or ()):
        if name not in known:
            raise VersionError(
                f"{found.named}: no sample has a field {name!r}; there are {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
    return Part(base, found, fields, aligned)


def _is_of(base: Catalog, overlay: Catalog) -> bool:
    """Whether a dataset is an overlay of this very version of the base, not of another version.

    Raises VersionError if it is none, or of another dataset.
    """
    manifests = [getattr(each.content, "manifest", None) for each in (base, overlay)]
    own, other = manifests
    if not isinstance(own, Manifest):
        raise VersionError(
            f"{base.named}: overlays: expected a published version under them; found an index of tars"
        )
    if not isinstance(other, Manifest) or not other.overlay:
        raise VersionError(
            f"{base.named}: overlays: {overlay.named} is none: found no base in its manifest; expected a "
            f"dataset with `overlay: {{base: {base.dataset}}}` in its YAML file"
        )
    record = other.overlay
    if record["digest"] == own.digest:
        return True
    if record["dataset"] != own.dataset:
        raise VersionError(
            f"{base.named}: overlays: {overlay.named} is an overlay of another dataset: found "
            f"{record['dataset']}, version {record['version']}; expected {own.dataset}"
        )
    return False


def _check_existing(joined: JoinedCatalog, part: Part, wanted: Wanted) -> None:
    """Tells which of the base's fields an overlay takes the place of. Raises VersionError if it may not."""
    content = joined.content
    both = sorted(content.fields_of(part) & set(content.base.field_names()))
    if not both:
        return
    named, base = part.catalog.named, content.base.named
    if wanted.existing == "error":
        raise VersionError(
            f"{base}: overlays: {named} has fields that the base has too: {', '.join(both)}; name those that "
            "you want (fields), or let them take their place (existing: replace)"
        )
    _log.info("%s: %s takes the place of its %s", base, named, ", ".join(both))


def _check_missing(base: Catalog, part: Part, wanted: Wanted) -> np.ndarray | None:
    """Which samples of the base an overlay lacks; None where nobody has to know. Raises VersionError."""
    if part.aligned and wanted.missing == "keep":
        return None
    lacks: np.ndarray = part.all_numbers() < 0
    count = int(np.count_nonzero(lacks))
    if count == len(base):
        raise _nothing(base, part.catalog)
    if not count:
        return None
    named = part.catalog.named
    told = f"{count:,} of the {len(base):,} samples of {base.named} have nothing in {named}"
    if wanted.missing == "error":
        keys = ", ".join(_key(base, number) for number in np.flatnonzero(lacks)[:_SHOWN].tolist())
        raise VersionError(
            f"{told}, such as {keys}{_why(part)}; missing: keep or skip takes it as it is"
        )
    if not part.aligned:
        what = "are left out" if wanted.missing == "skip" else "are given without its fields"
        warnings.warn(f"{told}, and {what}{_why(part)}", stacklevel=5)
    return lacks


def _why(part: Part) -> str:
    """What is to be done about an overlay of another version of the base."""
    if part.aligned:
        return ""
    record = part.catalog.content.manifest.overlay  # type: ignore[attr-defined]
    return f": it is an overlay of version {record['version']}; build {part.catalog.dataset} again"


def _nothing(base: Catalog, overlay: Catalog) -> VersionError:
    return VersionError(
        f"{base.named}: overlays: {overlay.named} has nothing for any of its {len(base):,} samples"
    )


def _key(base: Catalog, number: int) -> str:
    shard = int(np.searchsorted(base.starts, number, side="right")) - 1
    return base.members(shard).key(number - int(base.starts[shard]))
