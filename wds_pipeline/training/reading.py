"""The bytes of samples: what every reader does, and which one is for a catalog.

A sample is a dict: `__key__`; `__url__`, its shard's; `__index__`, its place in the catalog; and each
field's bytes. They are its own: keeping one sample keeps no other in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import LocalStorage
from wds_pipeline.training.catalog import Catalog

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

    def stream(
        self,
        indices: Iterable[int],
        fields: Collection[str] | None = None,
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> Iterator[dict[str, Any]]:
        """Like `read`, one after the other; holds at most about `ahead_bytes`."""
        ...

    def close(self) -> None:
        """Lets go of open files; they are opened again when they are asked for."""
        ...


def open_reader(catalog: Catalog, *, cache: Any = None, verify: bool = False) -> Reader:
    """What reads the samples of a catalog. Nothing is opened yet.

    `verify` holds each shard against its digest before anything of it is given out.
    """
    if isinstance(catalog.storage, LocalStorage):
        from wds_pipeline.training.local import LocalReader

        return LocalReader(catalog, verify=verify)
    from wds_pipeline.training.plain_remote import PlainRemoteReader

    if cache is not None:
        raise ConfigError(f"{catalog.named}: cache: {catalog.storage.url} is read without one")
    return PlainRemoteReader(catalog, verify=verify)
