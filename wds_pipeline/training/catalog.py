"""Which samples there are: the shards of one immutable version, and what their member indexes say.

A catalog is small to hand to another process: where it is and which version. That process reads it
again, and refuses another content.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import pyarrow as pa

from wds_pipeline.errors import (
    DestinationError,
    SourceError,
    VerificationError,
    VersionError,
    WdsPipelineError,
)
from wds_pipeline.storage import Storage
from wds_pipeline.training.bounded import Bounded
from wds_pipeline.training.members import DamagedIndex
from wds_pipeline.training.members import ShardMembers as ShardMembers

MEMORY = 256 * 1024 * 1024
"""How many bytes of member indexes are kept."""


class ShardInfo(NamedTuple):
    """One shard: `path` is relative to the root, `bytes` the tar's size, `digest` its digest."""

    url: str
    path: str
    samples: int
    bytes: int
    digest: str


class Content(Protocol):
    """What a catalog is made of, as it was read.

    `title` is how messages name it, without the split; `mend` says how a damaged shard is mended, and
    `decoding` how it comes to be known what the fields hold.
    """

    storage: Storage
    dataset: str
    version: int
    split: str | None
    digest: str
    shards: list[ShardInfo]
    title: str
    mend: str
    decoding: str

    def member_table(self, shard: int) -> pa.Table:
        """A shard's member index: `seal.MEMBER_INDEX`. Raises FileNotFoundError, VerificationError."""
        ...

    def report_table(self, shard: int, columns: list[str]) -> pa.Table | None:
        """Some columns of a shard's report, a row a member; None if there is none."""
        ...

    def field_names(self) -> list[str] | None:
        """The fields that samples have; None if only the member indexes know."""
        ...

    def key_table(self) -> pa.Table | None:
        """The columns `key` and `shard` (its number) of all samples; None if only the member indexes
        know."""
        ...

    def why_no_key(self, key: str) -> str | None:
        """Why a key is not among the samples, in one clause; None if nothing is known of it."""
        ...

    def why_gone(self) -> str | None:
        """Why files of this version are gone, and what to do; None if they should be there."""
        ...


class Origin(Protocol):
    """Where a catalog comes from: small, picklable, and the same content each time."""

    def load(self) -> Content:
        """Raises VersionError."""
        ...


class Catalog:
    """The shards and samples of one version, or of one split of it. Immutable; for threads.

    `digest` is the same for the same shards, whatever the version's number. `starts` counts the
    samples before each shard, and all of them at its end.
    """

    storage: Storage
    dataset: str
    version: int
    split: str | None
    digest: str
    shards: list[ShardInfo]
    starts: np.ndarray
    content: Content

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._pinned: str | None = None
        self._load()

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return self._origin

    @property
    def bytes(self) -> int:
        """How many bytes the shards have."""
        return sum(shard.bytes for shard in self.shards)

    def _load(self) -> None:
        self._take(self._origin.load())

    def _take(self, found: Content) -> None:
        if self._pinned not in (None, found.digest):
            raise VersionError(
                f"{found.title}: {found.storage.url}: has other shards ({found.digest}) than when it was "
                f"opened ({self._pinned}); open it again"
            )
        self._members: Bounded[int, ShardMembers] = Bounded(MEMORY, lambda each: each.nbytes)
        self.storage, self.dataset, self.version = found.storage, found.dataset, found.version
        self.split, self.digest, self.shards = found.split, found.digest, found.shards
        counts = np.fromiter((shard.samples for shard in found.shards), np.int64, len(found.shards))
        self.content, self._pinned = found, found.digest
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __getattr__(self, name: str) -> Any:
        # Only asked for what is missing: after it came to another process.
        if name.startswith("__") or "_origin" not in self.__dict__ or "starts" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._load()
        return getattr(self, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_origin": self._origin, "_pinned": self._pinned}

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def named(self) -> str:
        """How messages name it: `captions: version 7, split train`."""
        head = self.content.title
        return f"{head}, split {self.split}" if self.split is not None else head

    def members(self, shard: int) -> ShardMembers:
        """The member index of a shard, which is kept for a while.

        Raises VersionError when it is gone, VerificationError when it is damaged.
        """
        found = self._members.get(shard)
        if found is None:
            info = self.shards[shard]
            try:
                table = self.content.member_table(shard)
            except FileNotFoundError as error:
                self.missing(shard, error, "its member index")
            except (DestinationError, SourceError) as error:
                raise self.away(error) from error
            try:
                read = ShardMembers.of_table(table, info.samples, info.bytes)
            except DamagedIndex as error:
                raise self.damaged(shard, f"its member index is not right: {error}") from None
            found = self._members.add(shard, read)
        return found

    def has_members(self, shard: int) -> bool:
        """Whether the member index of a shard is at hand, and need not be read."""
        return self._members.get(shard) is not None

    def field_names(self) -> list[str]:
        """The fields that samples have, sorted. May read all member indexes."""
        found = self.content.field_names()
        if found is None:
            parts = (self.members(shard).field_names for shard in range(len(self.shards)))
            found = [name for part in parts for name in part]
        return sorted(set(found))

    def outside(self, index: int) -> IndexError:
        """The error for a sample's number that there is not."""
        count = len(self)
        return IndexError(
            f"{self.named}: there is no sample {index:,}: it has {count:,}, which count from 0"
        )

    def away(self, error: DestinationError | SourceError) -> WdsPipelineError:
        """An error of the store, which names a file, under the dataset's name."""
        told = type(error)(f"{self.named}: {error}")
        told.passing = error.passing
        return told

    def damaged(self, shard: int, what: str) -> VerificationError:
        """The error for a shard that is not what the version says; `what` is one clause."""
        where = f"{self.named}: {self.shards[shard].url}"
        return VerificationError(f"{where}: {what}; {self.content.mend}")

    def missing(self, shard: int, cause: BaseException, what: str = "the shard") -> NoReturn:
        """Raises for a shard, or a file beside it, that is not there: VersionError if its version was
        removed, else VerificationError."""
        why = self.content.why_gone()
        error: WdsPipelineError
        if why is None:
            error = self.damaged(shard, f"{what} is gone")
        else:
            error = VersionError(f"{self.named}: {self.shards[shard].url}: {what} is gone: {why}")
        raise error from cause
