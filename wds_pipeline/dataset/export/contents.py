"""What is exported: the shards of a version, or tars that others made; told by their indexes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset import seal, shard_report, tar, version
from wds_pipeline.dataset.tar_index import TarFacts, TarIndex
from wds_pipeline.dataset.tar_members import TAR_MEMBERS
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.view import view_names
from wds_pipeline.storage import Storage


@dataclass(frozen=True)
class Shard:
    """One tar: `path` is relative to the storage's root, `end` where its last member ends, in bytes.

    `view` is its brace-able name, relative too; `misread` says, by code, why some readers would see
    other samples in it than its index.
    """

    path: str
    split: str
    samples: int
    bytes: int
    digest: str
    end: int | None = None
    view: str | None = None
    misread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """All that an export is made of.

    `read_members` gives a shard's members, with the columns of `tar_members.TAR_MEMBERS`; `read_facts` what
    verification found of them (`shard_report.MEMBERS`), where it is known.
    """

    storage: Storage
    dataset: str
    description: str
    version: int | None
    created: str
    digest: str
    splits: dict[str, list[Shard]]
    read_members: Callable[[Shard], pa.Table]
    read_facts: Callable[[Shard], pa.Table | None]
    longest_key: Callable[[], int]
    in_place: bool
    """The tars are where their owner put them, and their folder is his."""

    @property
    def shards(self) -> list[Shard]:
        """All of them, split by split."""
        return [shard for part in self.splits.values() for shard in part]

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(shard.samples for shard in self.shards)


def of_version(storage: Storage, manifest: Manifest) -> Contents:
    """What a version holds, published or about to be. Raises VersionError."""
    names = {shard.name: path for path, shard in view_names(manifest)}
    splits = {
        split: [
            Shard(
                each.path,
                split,
                each.samples,
                each.bytes,
                each.digest,
                view=names[each.name] if storage.hard_links else None,
            )
            for each in manifest.of_split(split)
        ]
        for split in manifest.splits
    }
    return Contents(
        storage=storage,
        dataset=manifest.dataset,
        description=str(manifest.config.get("description") or ""),
        version=manifest.version,
        created=manifest.created,
        digest=manifest.digest,
        splits=splits,
        read_members=partial(_members_of_ours, storage),
        read_facts=partial(_facts_of_ours, storage),
        longest_key=partial(_longest_key, storage, manifest),
        in_place=False,
    )


def of_index(index: TarIndex, name: str, split: str, created: str) -> Contents:
    """What an index of foreign tars says; all of them are one split."""
    rows: dict[str, TarFacts] = {row.path: row for row in index.rows}
    shards = [
        Shard(r.path, split, r.samples, r.bytes, r.digest, end=r.end, misread=r.misread)
        for r in index.rows
    ]
    return Contents(
        storage=index.tars,
        dataset=name,
        description="",
        version=None,
        created=created,
        digest=index.digest,
        splits={split: shards},
        read_members=lambda shard: index.read_members(rows[shard.path]),
        read_facts=lambda shard: None,
        longest_key=lambda: 0,  # `misread` says what is too long
        in_place=True,
    )


def _name(shard: Shard) -> str:
    return shard.path.removeprefix(seal.FOLDER).removesuffix(seal.TAR)


def _members_of_ours(storage: Storage, shard: Shard) -> pa.Table:
    """The member index of a shard that was packed here: its members lie one behind the other."""
    table = seal.read_member_index(storage, _name(shard))
    offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
    ends = offsets + (sizes + tar.BLOCK - 1) // tar.BLOCK * tar.BLOCK
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(offsets)]
    table = table.append_column("start", pa.array(starts, pa.int64()))
    return table.append_column("extension", table["field"]).select(TAR_MEMBERS.names)


def _facts_of_ours(storage: Storage, shard: Shard) -> pa.Table | None:
    report = shard_report.load_report(storage, _name(shard))
    return report.members if report is not None and report.digest == shard.digest else None


def _longest_key(storage: Storage, manifest: Manifest) -> int:
    """Bytes of the longest key."""
    keys = version.read_table(storage, manifest, version.LEDGER)["key"]
    return pc.max(pc.binary_length(keys)).as_py() or 0
