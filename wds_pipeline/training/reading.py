"""The bytes of samples: what every reader does, and which one is for a catalog.

A sample is a dict: `__key__`; `__url__`, its shard's; `__index__`, its place in the catalog; and each
field's bytes. They are its own: keeping one sample keeps no other in memory.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wds_pipeline.storage import LocalStorage
from wds_pipeline.training.catalog import Catalog
from wds_pipeline.training.planning import chunks

if TYPE_CHECKING:
    from wds_pipeline.training.cache import CacheConfig

    CacheSpec = CacheConfig | Mapping[str, Any] | str | os.PathLike[str]

AHEAD_BYTES = 64 * 1024 * 1024


class Reader(Protocol):
    """Reads samples of one catalog, by their numbers in it. For threads; goes on in a forked process."""

    def read(
        self, indices: Sequence[int], fields: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """These samples in the order asked, with these fields, or all; without one that it lacks.

        Raises IndexError, VersionError (the version was removed), VerificationError (a shard is not
        what the version says).
        """
        ...

    def read_ahead(
        self,
        groups: Iterable[Sequence[int] | np.ndarray],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """Like `read`, one after the other; holds at most about `ahead_bytes`.

        The samples of a group, such as a shuffle throws together, are read in whatever order is best, and
        given out in the order asked.
        """
        ...

    def close(self) -> None:
        """Lets go of open files; they are opened again when they are asked for."""
        ...


def in_turn(
    reader: Reader, indices: Iterable[int], fields: Collection[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Any number of samples, one after the other, read ahead some at a time."""
    return reader.read_ahead(chunks([indices]), fields)


def open_reader(
    catalog: Catalog, *, cache: CacheSpec | None = None, verify: bool = False
) -> Reader:
    """What reads the samples of a catalog. Nothing is opened yet, but the cache's folder is made.

    `verify` holds each shard against its digest before anything of it is given out. What is on a local
    disk already goes through no cache. Raises ConfigError for a cache that cannot be.
    """
    from wds_pipeline.training.overlay import JoinedCatalog

    if isinstance(catalog, JoinedCatalog):
        from wds_pipeline.training.overlay_reader import JoinedReader

        return JoinedReader(catalog, cache=cache, verify=verify)
    if isinstance(catalog.storage, LocalStorage):
        from wds_pipeline.training.local import LocalReader

        return LocalReader(catalog, verify=verify)
    from wds_pipeline.training.cache import Cache, CacheConfig
    from wds_pipeline.training.remote import RemoteReader

    kept = None if cache is None else Cache(CacheConfig.of(cache))
    return RemoteReader(catalog, cache=kept, verify=verify)
