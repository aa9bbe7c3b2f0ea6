"""What a version is: the manifest, whose commit publishes it.

It is small however many shards there are; these are in `shards.parquet`, and read when they are asked
for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, PrivateAttr

from wds_pipeline.dataset import shard_table
from wds_pipeline.dataset.shard_table import ShardEntry
from wds_pipeline.errors import VersionError

_CAUSE = re.compile(r"(?:([\d,]+) )?(\w+)")  # a part of `ShardPlan.cause`


class SplitTotals(BaseModel):
    """How much a split holds. `digest` is the same for the same shards, whatever made them; `inputs`
    counts the samples of the source that transforms made these of."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    digest: str = ""
    inputs: int | None = None

    @property
    def of_source(self) -> int:
        """How many samples of the source are in it."""
        return self.samples if self.inputs is None else self.inputs


class TableOfShards(BaseModel):
    """The file `shards.parquet`: its size and its digest (`algorithm:hex`)."""

    bytes: int
    digest: str


class NewShards(BaseModel):
    """The shards that a version was the first to hold; `changes` counts their samples that were
    new, edited, …."""

    shards: int = 0
    bytes: int = 0
    changes: dict[str, int] = {}


class Manifest(BaseModel):
    """What a version is. `inputs` is a digest of all that decided it, `content_rules` of what its
    content was judged by.

    Where `transforms` made the samples, by their names in the file, `left_out` counts by transform the
    samples of which nothing came. `made_of` says which version of which other dataset the source was.
    `overlay` says of which version of which base it is an overlay (dataset, version, digest, samples,
    url as the file has it), and how many samples of that are `missing` in it.

    The shards are in a table beside it, which is read when `shards` or `of_split` is asked
    for the first time.
    """

    format_version: Literal[1] = 1
    dataset: str
    version: int
    parent: int
    parent_write_id: str = ""
    write_id: str
    created: str
    writer: str
    restored_from: int | None = None
    source: str
    inputs: str
    content_rules: str
    config: dict[str, Any]
    splits: dict[str, SplitTotals]
    new: NewShards
    files: dict[str, int]
    quarantined: dict[str, int]
    verification: dict[str, Any]
    transforms: list[str] = []
    left_out: dict[str, int] = {}
    made_of: dict[str, Any] = {}
    overlay: dict[str, Any] = {}
    shard_table: TableOfShards
    _table: bytes | None = PrivateAttr(None)
    _read: Callable[[], bytes] | None = PrivateAttr(None)
    _parts: dict[str, list[ShardEntry]] = PrivateAttr(default_factory=dict)

    @classmethod
    def of_shards(
        cls,
        shards: Sequence[ShardEntry],
        *,
        version: int,
        of_source: Mapping[str, int] | None = None,
        **values: Any,
    ) -> Manifest:
        """The manifest of these shards, which are in the order of their splits and slots; `of_source` are
        the `inputs` of `SplitTotals`, by split, `values` the fields that do not follow from these."""
        parts = {name: list(part) for name, part in groupby(shards, attrgetter("split"))}
        splits = {
            name: SplitTotals(
                shards=len(part),
                samples=sum(shard.samples for shard in part),
                bytes=sum(shard.bytes for shard in part),
                digest=shard_table.content_digest(part),
                inputs=None if of_source is None else of_source.get(name, 0),
            )
            for name, part in parts.items()
        }
        table = shard_table.dump(shards)
        manifest = cls(
            **values,
            version=version,
            splits=splits,
            new=_new_shards(shards, version),
            shard_table=TableOfShards(bytes=len(table), digest=shard_table.digest_of(table)),
        )
        manifest._table, manifest._parts = table, parts
        return manifest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.model_dump() == other.model_dump()

    @property
    def total_shards(self) -> int:
        """How many shards there are."""
        return sum(split.shards for split in self.splits.values())

    @property
    def total_samples(self) -> int:
        """How many samples are published."""
        return sum(split.samples for split in self.splits.values())

    @property
    def total_bytes(self) -> int:
        """How many bytes the shards have."""
        return sum(split.bytes for split in self.splits.values())

    @property
    def digest(self) -> str:
        """The same for versions that hold the same shards in the same splits."""
        lines = "".join(f"{name} {each.digest}\n" for name, each in sorted(self.splits.items()))
        return f"xxh3-128:{xxhash.xxh3_128_hexdigest(lines.encode())}"

    @property
    def changes(self) -> dict[str, int]:
        """How many samples of the shards that are new in this version are new, edited, …."""
        return self.new.changes

    @cached_property
    def shards(self) -> list[ShardEntry]:
        """All shards, split by split. Raises VersionError when their table cannot be read."""
        return [shard for split in self.splits for shard in self.of_split(split)]

    def of_split(self, split: str | None) -> list[ShardEntry]:
        """A split's shards, or all.

        Raises VersionError for a split that the version lacks, or when the table of the shards
        cannot be read.
        """
        if split is None:
            return self.shards
        if split not in self.splits:
            raise VersionError(
                f"{self.dataset}: version {self.version} has no split {split!r}; "
                f"it has {', '.join(self.splits)}"
            )
        if split not in self._parts:
            self._parts[split] = shard_table.parse(self.table(), split)
        return self._parts[split]

    def read_table_by(self, read: Callable[[], bytes]) -> None:
        """Says how to read the table of the shards when it is wanted."""
        self._read = read

    def table(self) -> bytes:
        """The content of `shards.parquet`, as it was committed. Raises VersionError."""
        if self._table is None:
            if self._read is None:
                raise VersionError(
                    f"{self.dataset}: version {self.version}: its shards are not known; read the "
                    "manifest with `version.read`"
                )
            self._table = self._read()
        return self._table

    def dump(self) -> bytes:
        """The content of `manifest.json`."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def _new_shards(shards: Sequence[ShardEntry], number: int) -> NewShards:
    new = [shard for shard in shards if shard.since == number]
    changes: Counter[str] = Counter()
    for cause, times in Counter(shard.cause for shard in new).items():
        for count, name in _CAUSE.findall(cause):
            changes[name] += times * int(count.replace(",", "") or 1)
    size = sum(shard.bytes for shard in new)
    return NewShards(shards=len(new), bytes=size, changes=dict(changes))
