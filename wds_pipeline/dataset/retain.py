"""Which versions and shards are kept, and removing the others.

What a build under way has sealed belongs to no version yet, so nothing younger than the grace period
is touched; a build that takes up an old sealed shard makes it young again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from wds_pipeline.config import RetentionConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import TEMPORARY, FileInfo, Storage

GRACE_SECONDS = 24 * 3600.0
_SHARD = re.compile(r"(.+-\d{6,}-[0-9a-f]{32})\.(.+)")
_DAY = 24 * 3600.0


@dataclass
class Garbage:
    """What no kept version needs: versions by number, files by path, and their bytes; `uploads` are
    those that a store still keeps the parts of."""

    versions: list[int] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    files: list[FileInfo] = field(default_factory=list)
    uploads: list[FileInfo] = field(default_factory=list)
    young: int = 0

    def __bool__(self) -> bool:
        return bool(self.versions or self.files or self.uploads)

    @property
    def bytes(self) -> int:
        """What removal frees."""
        return sum(file.size for file in self.files)


def find_garbage(
    storage: Storage, config: RetentionConfig, grace: float = GRACE_SECONDS
) -> Garbage:
    """What `collect` would remove; `grace` in seconds.

    Raises VersionError when a manifest cannot be read: what it needs is then unknown.
    """
    numbers = version.list_versions(storage)
    manifests = {number: version.read(storage, number, "") for number in numbers}
    now = time.time()
    kept = set(numbers[-config.versions :])
    for number, manifest in manifests.items():
        if now - datetime.fromisoformat(manifest.created).timestamp() < config.days * _DAY:
            kept.add(number)
    garbage = Garbage(versions=[number for number in numbers if number not in kept])
    needed = {shard.name for number in kept for shard in manifests[number].shards}
    unneeded: dict[str, list[FileInfo]] = {}
    for file in storage.list_files(seal.FOLDER):
        match = _SHARD.fullmatch(file.path.removeprefix(seal.FOLDER))
        if match is None or _is_temporary(file):
            _add_if_temporary(garbage, file, now, grace)
        elif match.group(1) not in needed:
            unneeded.setdefault(match.group(1), []).append(file)
    for name, files in sorted(unneeded.items()):
        if now - max(file.modified for file in files) < grace:
            garbage.young += 1
            continue
        garbage.shards.append(name)
        garbage.files += files
    for file in storage.list_files():
        _add_if_temporary(garbage, file, now, grace)
    for number, file in _beside_versions(storage, manifests):
        if number not in garbage.versions:  # those go as a whole
            # Below the newest, a number without a manifest is what an interrupted `collect` left.
            left = number not in manifests and bool(numbers) and number < numbers[-1]
            _add_if_temporary(garbage, file, now, grace, always=left or "/build-" in file.path)
    garbage.uploads = [each for each in storage.unfinished() if now - each.modified >= grace]
    return garbage


def collect(storage: Storage, garbage: Garbage, grace: float = GRACE_SECONDS) -> int:
    """Removes the garbage; returns how many bytes were freed.

    Versions go first, manifest before all else, so that nobody opens one that is being taken apart; of
    shards the seals, for one half removed is one not sealed.
    Shards that a version took up since they were found stay.
    """
    for number in garbage.versions:
        folder = version.folder(number)
        storage.delete(folder + "manifest.json")
        for where in (folder, version.view_folder(number)):
            left = [*storage.list_files(where), *_deeper(storage, where)]
            storage.at_once(lambda file: storage.delete(file.path), left)
    for upload in garbage.uploads:
        storage.remove_unfinished(upload)
    needed = _needed(storage)
    spared: set[str] = set()
    removed: dict[str, bytes] = {}

    def remove(file: FileInfo) -> int:
        name = file.path.removeprefix(seal.FOLDER).partition(".")[0] or file.path
        found = storage.stat(file.path)
        if name in needed or name in spared or found is None:
            return 0
        if time.time() - found.modified < grace:
            spared.add(name)  # a build took it up or wrote it just now
            return 0
        if file.path.endswith(seal.SEAL):
            removed[name] = storage.read(file.path)
        storage.delete(file.path)
        return file.size

    seals = [file for file in garbage.files if file.path.endswith(seal.SEAL)]
    others = [file for file in garbage.files if not file.path.endswith(seal.SEAL)]
    freed = sum(storage.at_once(remove, seals))
    # A build may have taken shards up and published them since.
    needed = _needed(storage)
    for name in needed & removed.keys():
        storage.put(seal.path(name, seal.SEAL), removed[name])
        freed -= len(removed[name])
    return freed + sum(storage.at_once(remove, others))


def _needed(storage: Storage) -> set[str]:
    """The shards of all versions."""
    return {
        shard.name
        for number in version.list_versions(storage)
        for shard in version.read(storage, number, "").shards
    }


def _add_if_temporary(
    garbage: Garbage, file: FileInfo, now: float, grace: float, always: bool = False
) -> None:
    if (always or _is_temporary(file)) and now - file.modified >= grace:
        garbage.files.append(file)


def _is_temporary(file: FileInfo) -> bool:
    return file.path.rpartition("/")[2].startswith(TEMPORARY)


def _beside_versions(
    storage: Storage, manifests: Mapping[int, Manifest]
) -> Iterator[tuple[int, FileInfo]]:
    """What lies in the folders and views of versions, but not what a published one is still read from."""
    for parent in (version.FOLDER, version.VIEWS):
        for name in storage.list_folders(parent):
            if not name.isdigit():
                continue
            number, where = int(name), f"{parent}/{name}/"
            manifest = manifests.get(number)
            mine = version.build_folder(number, manifest.write_id) if manifest else None
            for file in (*storage.list_files(where), *_deeper(storage, where)):
                if mine is None or not file.path.startswith(mine):
                    yield number, file


def _deeper(storage: Storage, where: str) -> Iterator[FileInfo]:
    for name in storage.list_folders(where):
        yield from storage.list_files(f"{where}{name}/")
        yield from _deeper(storage, f"{where}{name}/")
