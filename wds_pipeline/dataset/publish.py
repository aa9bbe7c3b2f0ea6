"""The commit: one conditional create of the next version's manifest. Readers see old or new.

Three outcomes. Committed. Conflict: another build committed this number first; plan again on it, the
sealed shards are kept. Unknown (the reply was lost): the manifest is read back and its write id
compared; nothing is ever cleaned up on an unknown outcome.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime, timezone

from wds_pipeline import __version__
from wds_pipeline.dataset import export, seal, version
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.dataset.view import has_view, make_view, outdated, view_names
from wds_pipeline.errors import DestinationError, VersionError, may_pass
from wds_pipeline.storage import Storage

_TRIES = 10


def stamp() -> dict[str, str]:
    """The parts of a manifest that differ from commit to commit."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"write_id": uuid.uuid4().hex, "created": now, "writer": f"wds_pipeline {__version__}"}


def commit(storage: Storage, manifest: Manifest, files: Mapping[str, bytes]) -> bool:
    """Publishes a version with the files beside its manifest, and the exports that its configuration
    wants; False on a conflict.

    Raises DestinationError when the destination cannot be written, and then says whether the
    outcome is known; what `export.write` raises, and then nothing is published.
    """
    staged = version.build_folder(manifest.version, manifest.write_id)
    files = {**files, version.SHARDS: manifest.table()}
    for name, data in files.items():
        storage.put(staged + name, data)
    export.stage(storage, manifest)
    path = version.folder(manifest.version) + "manifest.json"
    failure: DestinationError | None = None
    try:
        storage.put_if_absent(path, manifest.dump())
    except DestinationError as error:
        failure = error  # what failed may be the reply alone
    try:
        committed = _committed_by(storage, manifest.version)
    except DestinationError as error:
        failure, committed = failure or error, None
    if failure is not None and committed is None:
        unknown = DestinationError(
            f"{manifest.dataset}: version {manifest.version}: {failure} (nothing was removed; build "
            "again: it finds what is there)"
        )
        unknown.passing = may_pass(failure)
        raise unknown from failure
    mine = committed == manifest.write_id
    if mine and _is_passed_over(storage, manifest):
        storage.delete(path)
        mine = False
    if not mine:
        for staged_file in list(export.files(storage, staged)):
            storage.delete(staged_file)  # known: this number is another build's
        return False
    finish(storage, manifest)
    return True


def _is_passed_over(storage: Storage, manifest: Manifest) -> bool:
    """Whether later versions know nothing of this one: `gc` had removed the number that another build
    had committed, and so it was free again.

    A reply that takes its time is another matter: others have built on this version meanwhile. `gc`
    goes from the oldest on, so the next version is there as long as this one was not removed.
    """
    later = [each for each in version.list_versions(storage) if each > manifest.version]
    following = version.try_read(storage, later[0]) if later else None
    if following is None:
        return False
    if following.parent == manifest.version and not following.parent_write_id:
        return False  # nobody knows: what was published stays
    mine = (manifest.version, manifest.write_id)
    return (following.parent, following.parent_write_id) != mine


def _committed_by(storage: Storage, number: int) -> str | None:
    manifest = version.try_read(storage, number)
    return manifest.write_id if manifest else None


def finish(storage: Storage, manifest: Manifest) -> None:
    """Tidies up after a commit: plain names for the files, brace-able names for the shards.

    Idempotent: the next build does it when the one that committed was killed before.
    """
    folder = version.folder(manifest.version)
    staged = version.build_folder(manifest.version, manifest.write_id)
    left = list(export.files(storage, staged)) if any(storage.list_names(staged)) else []
    for path in left:
        with suppress(DestinationError):  # another process may be tidying up too
            storage.link(folder + path[len(staged) :], path)
            storage.delete(path)
    with suppress(DestinationError):  # a filesystem without hard links; `view` says so
        repaired = outdated(storage, manifest)
        if repaired:  # by a build that was killed before it came to this
            relink_views(storage, repaired)
        if storage.hard_links and not has_view(storage, manifest):
            make_view(storage, manifest)
    export.into_view(storage, manifest)


def relink_views(storage: Storage, names: Collection[str]) -> None:
    """Points every version's brace-able names of these shards to their present files.

    The newest version's come last: as long as they are outdated, `finish` does this again.
    """
    for number in version.list_versions(storage):
        manifest = version.try_read(storage, number)
        if not any(storage.list_names(version.view_folder(number))):
            continue  # copies are made where somebody asked for them
        for path, shard in view_names(manifest) if manifest else ():
            if shard.name in names and storage.stat(path) is not None:
                storage.link(path, shard.path)


def _gone(storage: Storage, manifest: Manifest) -> list[str]:
    """A version's shards that are not there any more; the others are made young, so that `gc` spares
    them."""

    def touch(shard: ShardEntry) -> bool:
        return storage.touch(seal.path(shard.name, seal.SEAL)) and (
            storage.stat(shard.path) is not None
        )

    there = storage.at_once(touch, manifest.shards)
    return [shard.name for shard, found in zip(manifest.shards, there, strict=True) if not found]


def restore(storage: Storage, number: int, dataset: str) -> Manifest:
    """Makes an old version the newest, as a new commit; returns that.

    Raises VersionError when the version is gone, or any of its shards.
    """
    for _ in range(_TRIES):
        old = version.read(storage, number, dataset)
        newest = version.read(storage, None, dataset)
        if number in (newest.version, newest.restored_from):
            return newest  # it is the newest already
        gone = _gone(storage, old)
        if gone:
            raise VersionError(
                f"{dataset}: version {number} cannot be restored: {len(gone)} of its shards are gone, "
                f"such as {gone[0]}"
            )
        manifest = old.model_copy(
            update={
                **stamp(),
                "version": version.next_number(storage, newest.version),
                "parent": newest.version,
                "parent_write_id": newest.write_id,
                "restored_from": number,
                "new": version.NewShards(),
            }
        )
        names = (
            version.LEDGER,
            version.INVENTORY,
            version.QUARANTINE,
            version.REPORT_JSON,
            version.REPORT_HTML,
        )
        files = {name: version.read_file(storage, old, name) for name in names}
        if commit(storage, manifest, files):
            return manifest
    raise DestinationError(
        f"{dataset}: version {number} was not restored: other builds committed {_TRIES} times meanwhile; "
        "try again"
    )
