"""How long changes of the source have been waiting to be published.

A file that was written after the version was published has been waiting since then. Of one that came
with an older time (copied with its times, moved) or went, nothing says when; but its inode or its folder
was last changed at a time that is known, and it has been waiting at least since then. What another dataset
published has been waiting since its version was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset import naming, upstream, version
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import CONTENT, Storage

_EXAMPLES = 5
_ASKED = 256  # files, where each costs a request
_LOOKED_AT = 10_000  # files or folders, where the listing's time does not say it


@dataclass(frozen=True)
class Freshness:
    """How far the source is ahead of a version; counts are of files that belong to samples.

    `since` is when the oldest of the changes came, or the last moment at which it can have come;
    None if nothing is waiting or no time says it. `now` is when that was found.
    """

    version: int
    added: int = 0
    edited: int = 0
    deleted: int = 0
    since: datetime | None = None
    now: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def changes(self) -> int:
        return self.added + self.edited + self.deleted

    @property
    def lag(self) -> timedelta:
        """For how long the oldest change has been waiting; zero if none is."""
        return max(self.now - self.since, timedelta()) if self.since else timedelta()


def look(work: Build, listing: Listing, now: datetime | None = None) -> Freshness | None:
    """Compares a fresh listing of the source with the newest version; None if there is none.

    Raises DestinationError, VersionError, VerificationError when the version cannot be read.
    """
    now = now or datetime.now(timezone.utc)
    newest = work.newest()
    if newest is None:
        return None
    known = (newest.inputs, version.read_checked(work.destination, newest.version))
    if work.inputs(listing) in known:
        return Freshness(newest.version, now=now)
    inventory = version.read_table(work.destination, newest, version.INVENTORY)
    fresh, added, edited, deleted = _differences(work, listing.files, inventory)
    times = [
        _written(work, fresh, newest),
        _gone(work, deleted["path"].to_pylist()[:_LOOKED_AT], newest),
    ]
    if work.source.storage is None and (fresh.num_rows or deleted.num_rows):
        times += [each.since for each in upstream.news(work.config, newest)]
    oldest = min((each for each in times if each is not None), default=None)
    return Freshness(
        newest.version,
        added.num_rows,
        edited.num_rows,
        deleted.num_rows,
        min(oldest, now) if oldest else None,
        now,
        {
            name: table["path"].slice(0, _EXAMPLES).to_pylist()
            for name, table in (("added", added), ("edited", edited), ("deleted", deleted))
            if table.num_rows
        },
    )


def _differences(
    work: Build, files: pa.Table, before: pa.Table
) -> tuple[pa.Table, pa.Table, pa.Table, pa.Table]:
    """Files that are new or edited, those that are new, edited, and those of `before` that are gone;
    without those that are no part of a sample."""
    at = pc.index_in(files["path"], value_set=before["path"].combine_chunks())
    there = pc.is_valid(at).to_numpy()
    old = before.select(["size", "fingerprint"]).take(pc.fill_null(at, 0).combine_chunks())
    same = there & pc.equal(old["size"], files["size"]).to_numpy()
    # Fingerprints of two kinds, after a change of the configuration, say nothing of the source.
    kinds = (pc.starts_with(each["fingerprint"], CONTENT) for each in (old, files))
    equal = pc.equal(old["fingerprint"], files["fingerprint"])
    same &= pc.or_(equal, pc.xor(*kinds)).to_numpy()
    fresh, known = files.filter(pa.array(~same)), there[~same]
    if fresh.num_rows:
        status = naming.assign(fresh, work.config.samples)["status"].cast(pa.string())
        counts = ~_ignored(status)
        fresh, known = fresh.filter(pa.array(counts)), known[counts]
    gone = ~_ignored(before["status"].cast(pa.string()))
    gone[at.drop_null().to_numpy()] = False
    deleted = before.filter(pa.array(gone))
    return fresh, fresh.filter(pa.array(~known)), fresh.filter(pa.array(known)), deleted


def _ignored(status: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = pc.is_in(status, pa.array(list(naming.IGNORED))).to_numpy()
    return found


def _written(work: Build, fresh: pa.Table, newest: Manifest) -> datetime | None:
    """When the oldest of these files came."""
    if not fresh.num_rows:
        return None
    created = _created(newest)
    storage = work.source.storage
    timed = work.config.source.fingerprint == "stat" and storage is not None and storage.folders
    late = np.zeros(fresh.num_rows, bool)
    found: list[datetime] = []
    if timed:
        times = fresh["fingerprint"].cast(pa.int64()).to_numpy()
        late = times >= int(created.timestamp() * 1e9)
        if late.any():
            found.append(_moment(times[late].min() / 1e9))
    unclear = fresh["path"].filter(pa.array(~late)).slice(0, _LOOKED_AT).to_pylist()
    found += _came(work, unclear, created, timed=timed)
    return min(found, default=None)


def _came(
    work: Build, paths: Iterable[str], created: datetime, *, timed: bool
) -> Iterable[datetime]:
    """Of each of these files the last moment at which it can have come.

    `timed` says that their times of modification are older than the version.
    """
    storage = work.source.storage
    if storage is None:  # nothing says when it came there
        return
    if not storage.folders:
        yield from _stored(storage, list(paths)[:_ASKED])
        return
    for path in paths:
        try:
            found = os.stat(storage.locate(path))
        except OSError:  # gone since; or a name that is not UTF-8
            continue
        if not timed and found.st_mtime >= created.timestamp():
            yield _moment(found.st_mtime)
        elif found.st_ctime >= created.timestamp():
            yield _moment(found.st_ctime)
        else:  # it came with its folder
            yield max(_folder_changed(storage, path), created)


def _stored(storage: Storage, paths: list[str]) -> Iterable[datetime]:
    """When a store got these files."""
    found = storage.at_once(storage.stat, paths)
    return [_moment(each.modified) for each in found if each is not None]


def _gone(work: Build, paths: Iterable[str], newest: Manifest) -> datetime | None:
    """The last moment at which the oldest of these deletions can have been. A store does not say."""
    storage = work.source.storage
    if storage is None or not storage.folders:
        return None
    one_a_folder = {path.rpartition("/")[0]: path for path in paths}.values()
    times = [_folder_changed(storage, path) for path in one_a_folder]
    return max(min(times), _created(newest)) if times else None


def _folder_changed(storage: Storage, path: str) -> datetime:
    """When one of the folders above this path was last changed: any of them may have been moved."""
    times = [0.0]
    folder = path
    while folder:
        folder = folder.rpartition("/")[0]
        with suppress(OSError):  # it went too
            found = os.stat(storage.locate(folder))
            times.append(max(found.st_mtime, found.st_ctime))
    return _moment(max(times))


def _created(manifest: Manifest) -> datetime:
    return datetime.fromisoformat(manifest.created)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
