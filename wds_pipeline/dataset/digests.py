"""The digests that shards may have."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import xxhash

from wds_pipeline.errors import VerificationError


class Digest(Protocol):
    """A hash under way, as `hashlib` and `xxhash` have it."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


DIGESTS: dict[str, Callable[[], Digest]] = {
    "xxh3-128": xxhash.xxh3_128,
    "sha256": hashlib.sha256,
}


def check_published(where: str, found: str, published: str) -> None:
    """Raises VerificationError when a shard packed anew is not the one that was published."""
    if published and found != published:
        raise VerificationError(
            f"{where}: missing or damaged, and packed anew it would have the "
            f"digest {found}; it was published with {published}. A source file has other bytes "
            "but its old size and time: touch it and build, or set source.fingerprint: content"
        )
