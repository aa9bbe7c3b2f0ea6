"""What differs between two sets of samples: two versions of a dataset, or two sets of tars.

A sample is its key and its fields' contents, by their digests. Of versions, shards that both have are the
same without a look, and of the others the reports that verification left say the digests; no tar is read
unless one of them lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from wds_pipeline.dataset import shard_report
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.inputs import Tar, find_inputs
from wds_pipeline.dataset.tars.sample import Data, Sample, pieces
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.errors import DataError, VersionError
from wds_pipeline.storage import Storage

Progress = Callable[[str, int, int], None]
KINDS = ("added", "deleted", "edited", "moved")


class Content(NamedTuple):
    """A field: its size in bytes, and the xxh3-128 of its bytes."""

    size: int
    digest: str


@dataclass(frozen=True)
class Placed:
    """A sample: where it is (a split's shard slot, or a tar), and what it holds."""

    place: str
    split: str
    fields: Mapping[str, Content]


@dataclass(frozen=True)
class Change:
    """A sample that differs: `kind` of `KINDS`; `fields` of it that do, each with its content before and
    after, None where it was or is not there. One that was edited may have moved, too."""

    kind: str
    key: str
    before: Placed | None
    after: Placed | None
    fields: Mapping[str, tuple[Content | None, Content | None]] = field(default_factory=dict)

    @property
    def has_moved(self) -> bool:
        """Whether it is at another place."""
        return None not in (self.before, self.after) and _place(self.before) != _place(self.after)


def _place(placed: Placed | None) -> str:
    return placed.place if placed else ""


@dataclass
class Difference:
    """All changes, in the order of the keys, how many samples are the same, and of what."""

    old: str
    new: str
    changes: list[Change]
    same: int

    def counts(self) -> dict[str, Counter[str]]:
        """How many there are of each kind, by split: the one that the sample is in now, or was in."""
        found: dict[str, Counter[str]] = {}
        for each in self.changes:
            placed = each.after or each.before
            assert placed is not None
            found.setdefault(placed.split, Counter())[each.kind] += 1
        return dict(sorted(found.items()))

    @property
    def totals(self) -> Counter[str]:
        """How many there are of each kind."""
        return Counter(each.kind for each in self.changes)


def compare(
    old: Mapping[str, Placed], new: Mapping[str, Placed], *, moves: bool = True
) -> tuple[list[Change], int]:
    """The changes from one to the other, and how many samples are the same; with `moves`, those are not that
    are at another place."""
    changes, same = [], 0
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before is None or after is None:
            changes.append(Change("added" if before is None else "deleted", key, before, after))
            continue
        fields = {
            name: (before.fields.get(name), after.fields.get(name))
            for name in dict.fromkeys([*before.fields, *after.fields])
            if before.fields.get(name) != after.fields.get(name)
        }
        if fields:
            changes.append(Change("edited", key, before, after, fields))
        elif moves and before.place != after.place:
            changes.append(Change("moved", key, before, after))
        else:
            same += 1
    return changes, same


def diff_tars(
    old: Sequence[str], new: Sequence[str], *, moves: bool = True, progress: Progress | None = None
) -> Difference:
    """What differs between the samples of two sets of tars, all of which are read.

    Tars are places if there are several on both sides, by their paths below what each side has in common.
    Memory: some 500 bytes a sample. Raises DataError for a damaged tar or a key that is there twice,
    ConfigError, SourceError.
    """
    sides = [find_inputs(old), find_inputs(new)]
    several = all(len(side) > 1 for side in sides)
    total = sum(each.info.size for side in sides for each in side if each.info is not None)
    done = 0
    found: list[dict[str, Placed]] = []
    for side in sides:
        samples: dict[str, Placed] = {}
        for tar in side:
            place = tar.info.path if several and tar.info is not None else ""
            _add(samples, tar, place, "")
            done += tar.info.size if tar.info is not None else 0
            if progress is not None:
                progress("diff", done, total)
        found.append(samples)
    changes, same = compare(*found, moves=moves)
    return Difference("::".join(old), "::".join(new), changes, same)


def diff_versions(
    storage: Storage,
    old: Manifest,
    new: Manifest,
    *,
    moves: bool = True,
    progress: Progress | None = None,
) -> Difference:
    """What differs between two versions of a dataset.

    Raises VersionError when one cannot be read, DataError or SourceError for a tar that has to be read.
    """
    shared = {(each.name, each.digest) for each in old.shards} & {
        (each.name, each.digest) for each in new.shards
    }
    sides = [
        [each for each in side.shards if (each.name, each.digest) not in shared]
        for side in (old, new)
    ]
    total, done = sum(each.bytes for side in sides for each in side), 0
    found: list[dict[str, Placed]] = []
    for side in sides:
        samples: dict[str, Placed] = {}
        for shard in side:
            _add_shard(samples, storage, shard)
            done += shard.bytes
            if progress is not None:
                progress("diff", done, total)
        found.append(samples)
    changes, same = compare(*found, moves=moves)
    same += sum(each.samples for each in new.shards if (each.name, each.digest) in shared)
    names = [f"{each.dataset} {each.version}" for each in (old, new)]
    return Difference(names[0], names[1], changes, same)


def _add_shard(samples: dict[str, Placed], storage: Storage, shard: ShardEntry) -> None:
    report = shard_report.load_report(storage, shard.name)
    if report is None or report.digest != shard.digest or report.members["digest"].null_count:
        info = storage.stat(shard.path)
        if info is None:
            raise VersionError(
                f"{storage.locate(shard.path)}: is gone, and so is what it held; `wds-pipeline verify` finds "
                "what else is damaged"
            )
        _add(samples, Tar(storage, info), shard.partition, shard.split)
        return
    columns = (report.members[name].to_pylist() for name in ("key", "field", "size", "digest"))
    fields: dict[str, dict[str, Content]] = {}
    for key, name, size, digest in zip(*columns, strict=True):
        fields.setdefault(key, {})[name] = Content(size, digest.hex())
    for key, some in fields.items():
        samples[key] = Placed(shard.partition, shard.split, some)


def _add(samples: dict[str, Placed], tar: Tar, place: str, split: str) -> None:
    """Reads a tar's samples."""
    account = Account()
    for sample in tar.samples(account):
        if sample.key in samples:
            raise DataError(
                f"{tar.where}: the key {sample.key!r} is there twice, so it is not known what to "
                "compare it with"
            )
        samples[sample.key] = Placed(place, split, _contents(sample))


def _contents(sample: Sample) -> dict[str, Content]:
    return {field.lower(): Content(len(data), _digest(data)) for field, data, _ in sample.members}


def _digest(data: Data) -> str:
    state = xxhash.xxh3_128()
    for piece in pieces(data):
        state.update(piece)
    return state.hexdigest()


def in_words(change: Change) -> Iterable[str]:
    """What a change is, a clause a field."""
    for name, (before, after) in change.fields.items():
        if before is None or after is None:
            yield f"{'+' if before is None else '-'}{name}"
        elif before.size != after.size:
            yield f"{name} {before.size:,} → {after.size:,} bytes"
        else:
            yield f"{name} {before.digest[:8]} → {after.digest[:8]}"
    if change.has_moved:
        yield f"{_place(change.before)} → {_place(change.after)}"
