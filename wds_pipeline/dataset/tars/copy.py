"""Tars, or a whole published version, from one store to another: checked by digest, and taken up again.

What is at the destination already, with the same digest, is not copied again; of a version's shards it is the
seal, which comes last, that says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from wds_pipeline.compute import run_all
from wds_pipeline.dataset import export, publish, seal, tar_read, version
from wds_pipeline.dataset.tars.inputs import Tar
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.errors import DestinationError, SourceError, VerificationError, VersionError
from wds_pipeline.storage import FileInfo, Storage
from wds_pipeline.storage.base import BLOCK

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]
WORKERS = 8
_XXH3 = "xxh3-128"
_BESIDE = (seal.MEMBERS, seal.REPORT, seal.SEAL)  # in this order, the seal last
_FILES = (
    *(version.LEDGER, version.INVENTORY, version.QUARANTINE),
    *(version.REPORT_JSON, version.REPORT_HTML),
)


@dataclass
class Copied:
    """What was done: tars that were copied, or were there, and the bytes of the former."""

    tars: int = 0
    there: int = 0
    bytes: int = 0
    places: list[str] = field(default_factory=list)


class _Given(Exception):
    """Another file failed, or the user has had enough."""


class _Run:
    """Files being copied by some threads: an error, or an interrupt, ends them all between two blocks."""

    def __init__(self, workers: int, total: int, progress: Progress | None) -> None:
        self._workers = workers
        self._total, self._done = total, 0
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Does the work for all of them. Raises the first error."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="wds-copy") as threads:
            try:
                for _ in run_all(threads, work, items):
                    pass
            except BaseException:
                self._stopped.set()
                raise

    def blocks(self, file: BinaryIO) -> Iterator[memoryview]:
        """A file's bytes, each block valid until the next one is asked for."""
        view = memoryview(bytearray(BLOCK))
        while got := file.readinto(view):  # type: ignore[attr-defined]
            self.go_on()
            yield view[:got]

    def go_on(self) -> None:
        """Raises when it was stopped."""
        if self._stopped.is_set():
            raise _Given

    def count(self, size: int) -> None:
        """So many more bytes are done."""
        with self._lock:
            self._done += size
            if self._progress is not None:
                self._progress("copy", self._done, self._total)


def copy_tars(
    tars: Sequence[Tar],
    target: Storage,
    *,
    force: bool = False,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Copied:
    """Copies tars into a folder, by their names; each is read back.

    Raises DestinationError when another file of such a name is there, unless `force`, or two have one name;
    SourceError; VerificationError when what was stored is not what was read.
    """
    done = Copied()
    names: dict[str, Tar] = {}
    for each in tars:
        assert each.storage is not None and each.info is not None
        name = each.info.path.rpartition("/")[2]
        if name in names:
            raise DestinationError(
                f"{target.locate(name)}: {names[name].where} and {each.where} would both be copied there; "
                "copy them to folders of their own"
            )
        names[name] = each
    run = _Run(workers, sum(_info(each).size for each in tars), progress)

    def copy_one(name: str) -> None:
        tar = names[name]
        storage, info = tar.storage, _info(tar)
        assert storage is not None
        there = target.stat(name)
        same_file = target.locate(name) == tar.where
        if there is not None and (same_file or _same(run, storage, info, target, name, there)):
            done.there += 1
        elif there is not None and not force:
            raise DestinationError(
                f"{target.locate(name)}: is there already, and has other bytes; --force replaces it"
            )
        else:
            digest = _copy(run, storage, info.path, target, name, _XXH3)
            tar.check_unchanged()
            _check(run, target, name, info.size, digest)
            done.tars += 1
            done.bytes += info.size
        run.count(info.size)

    run.each(copy_one, names)
    done.places = [target.locate(name) for name in names]
    return done


def _info(tar: Tar) -> FileInfo:
    assert tar.info is not None
    return tar.info


def _same(
    run: _Run, source: Storage, info: FileInfo, target: Storage, name: str, there: FileInfo
) -> bool:
    if there.size != info.size:
        return False
    return _digest(run, source, info.path, _XXH3) == _digest(run, target, name, _XXH3)


def _digest(run: _Run, storage: Storage, path: str, algorithm: str) -> str:
    state = tar_read.hasher(f"{algorithm}:")
    assert state is not None
    with storage.open(path) as file:
        for block in run.blocks(file):
            state.update(block)
    return f"{algorithm}:{state.hexdigest()}"


def _copy(run: _Run, source: Storage, path: str, target: Storage, name: str, algorithm: str) -> str:
    """Copies a file; returns the digest of what was read. Raises SourceError."""
    state = tar_read.hasher(f"{algorithm}:")
    if state is None:
        raise VersionError(
            f"{source.locate(path)}: has a digest of a kind that is not known: {algorithm}"
        )
    try:
        with source.open(path) as file, target.create(name) as copy:
            for block in run.blocks(file):
                state.update(block)
                copy.write(bytes(block))
    except FileNotFoundError as error:
        raise SourceError(f"{source.locate(path)}: is gone; copy what is there now") from error
    return f"{algorithm}:{state.hexdigest()}"


def _check(run: _Run, target: Storage, name: str, size: int, digest: str) -> None:
    """Reads a copy back. Raises VerificationError, and removes it, when it is not what was read."""
    found = _digest(run, target, name, digest.partition(":")[0])
    stored = target.stat(name)
    if found != digest or stored is None or stored.size != size:
        target.delete(name)
        raise VerificationError(
            f"{target.locate(name)}: what is stored has the digest {found}, and {digest} was written; it was "
            "removed: copy again, and check the store if it happens again"
        )


def copy_version(
    source: Storage,
    manifest: Manifest,
    target: Storage,
    *,
    workers: int = WORKERS,
    progress: Progress | None = None,
) -> Copied:
    """Copies a published version, under its number: shards, then what lies beside the manifest, this last.

    The target is then a destination of the dataset, which `open_dataset` reads; exports are made anew,
    since some have URLs in them. Raises DestinationError when the target holds another dataset, or another
    version of this number; VerificationError for a damaged shard; VersionError for one that is gone.
    """
    if not version.check_marker(target, manifest.dataset):
        target.check_put_if_absent()
        version.write_marker(target, manifest.dataset)
    _check_number(target, manifest)
    done = Copied(places=[target.url])
    run = _Run(workers, manifest.total_bytes, progress)

    def copy_shard(shard: ShardEntry) -> None:
        if _is_there(source, target, shard):
            done.there += 1
        else:
            _copy_shard(run, source, target, shard)
            done.tars += 1
            done.bytes += shard.bytes
        run.count(shard.bytes)

    run.each(copy_shard, manifest.shards)
    _commit(source, manifest, target)
    return done


def _check_number(target: Storage, manifest: Manifest) -> bool:
    """Whether the target has this very version already."""
    there = version.try_read(target, manifest.version)
    if there is not None and there.write_id != manifest.write_id:
        raise DestinationError(
            f"{target.url}: has another version {manifest.version} of {manifest.dataset}, of "
            f"{there.created}; copy to a folder of its own"
        )
    return there is not None


def _is_there(source: Storage, target: Storage, shard: ShardEntry) -> bool:
    """Whether the target has a shard whole, by its seal."""
    found = seal.whole(target, shard.name)
    if found is None or (found.digest, found.bytes) != (shard.digest, shard.bytes):
        return False
    target.touch(seal.path(shard.name, seal.SEAL))  # as a build does: `gc` spares it
    report = seal.path(shard.name, seal.REPORT)
    return target.stat(report) is not None or source.stat(report) is None


def _copy_shard(run: _Run, source: Storage, target: Storage, shard: ShardEntry) -> None:
    run.go_on()
    digest = _copy(run, source, shard.path, target, shard.path, shard.digest.partition(":")[0])
    if digest != shard.digest:
        target.delete(shard.path)
        raise VerificationError(
            f"{source.locate(shard.path)}: damaged: found the digest {digest}; the manifest says "
            f"{shard.digest}. `wds-pipeline verify NAME --repair` packs it anew"
        )
    _check(run, target, shard.path, shard.bytes, digest)
    for ending in _BESIDE:
        path = seal.path(shard.name, ending)
        try:
            target.put(path, source.read(path))
        except FileNotFoundError:
            if ending != seal.REPORT:
                raise VersionError(
                    f"{source.locate(path)}: is gone; `wds-pipeline verify NAME --repair` makes it again"
                ) from None


def _commit(source: Storage, manifest: Manifest, target: Storage) -> None:
    """Writes the manifest when all else is there. As `publish.commit`, but a version stays as it was made."""
    if not _check_number(target, manifest):
        staged = version.build_folder(manifest.version, manifest.write_id)
        target.put(staged + version.SHARDS, manifest.table())
        for name in _FILES:
            target.put(staged + name, version.read_file(source, manifest, name))
        export.stage(target, manifest)
        path = version.folder(manifest.version) + "manifest.json"
        target.put_if_absent(path, manifest.dump())
        _check_number(target, manifest)
    publish.finish(target, manifest)
