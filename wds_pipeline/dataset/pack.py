"""Recipe → sealed shard: one pass over the sources gives the tar, its member index and its digest.

The bytes depend on the recipe alone. Memory is one buffer, whatever the sizes: small members are
gathered in it, so that a shard costs one write per few MB; large ones stream through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.dataset import seal, tar
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.errors import SourceChanged, VerificationError
from wds_pipeline.storage import Place, Storage, Writer, open_storage

_BUFFER = 4 * 1024 * 1024


class Digest(Protocol):
    """A hash under way, as `hashlib` and `xxhash` have it."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


DIGESTS: dict[str, Callable[[], Digest]] = {
    "xxh3-128": xxhash.xxh3_128,
    "sha256": hashlib.sha256,
}


@dataclass(frozen=True)
class PackJob:
    """All that a worker, here or elsewhere, needs to pack one shard."""

    recipe: Recipe
    source: Place | str
    destination: Place | str
    digest: str = "xxh3-128"
    published: str = ""


@dataclass(frozen=True)
class Packed:
    """What came of a job: the seal, or the source files (path, reason) because of which there is none,
    or why the shard would not be the one that was published."""

    name: str
    seal: Seal | None
    changed: tuple[tuple[str, str], ...] = ()
    refused: str = ""


def run(job: PackJob) -> Packed:
    """Packs one shard; a source that is not what it was is a result, not an error, so that the other
    shards are packed.

    Raises DestinationError when the destination cannot be written.
    """
    source, destination = open_storage(job.source), open_storage(job.destination)
    try:
        sealed = pack(job.recipe, source, destination, job.digest, job.published)
    except SourceChanged as error:
        return Packed(job.recipe.name, None, _all_changed(job.recipe, source, error))
    except VerificationError as error:
        return Packed(job.recipe.name, None, refused=str(error))
    return Packed(job.recipe.name, sealed)


def _all_changed(
    recipe: Recipe, source: Storage, first: SourceChanged
) -> tuple[tuple[str, str], ...]:
    """What else would be met, one attempt after the other: a folder of unreadable files, say."""
    found = {first.path: first.reason}
    columns = (recipe.members[name].to_pylist() for name in ("path", "size", "fingerprint"))
    for path, size, fingerprint in zip(*columns, strict=True):
        try:
            source.check_source(path, size, fingerprint)
        except SourceChanged as error:
            found.setdefault(error.path, error.reason)
    return tuple(found.items())


def pack(
    recipe: Recipe,
    source: Storage,
    destination: Storage,
    digest: str = "xxh3-128",
    published: str = "",
) -> Seal:
    """Writes a recipe's tar and its member index, and seals them.

    The same recipe gives the same bytes on every machine. The seal is written last: a shard without
    one does not exist for anybody. `published` is the digest that a version already gives the shard.

    Raises SourceChanged when a source file is no longer what the recipe says, VerificationError when
    the bytes are not those published, DestinationError when the destination cannot be written; then
    nothing is sealed, and what was stored is not replaced.
    """
    digest = published.partition(":")[0] or digest
    where = seal.path(recipe.name, seal.TAR)
    with destination.create(where) as file:
        stream = _TarStream(file, source, DIGESTS[digest]())
        offsets = stream.write(recipe.members)
        found = f"{digest}:{stream.digest.hexdigest()}"
        if published and found != published:
            raise VerificationError(
                f"{destination.locate(where)}: missing or damaged, and packed anew it would have the "
                f"digest {found}; it was published with {published}. A source file has other bytes "
                "but its old size and time: touch it and build, or set source.fingerprint: content"
            )
    if published:  # a repair is read back; other builds may already have read back a new shard
        destination.delete(seal.path(recipe.name, seal.REPORT))
    index = _member_index(recipe, offsets)
    destination.put(seal.path(recipe.name, seal.MEMBERS), seal.parquet_bytes(index))
    sealed = Seal(
        name=recipe.name,
        split=recipe.split,
        slot=recipe.slot,
        recipe=recipe.digest,
        samples=recipe.samples,
        members=recipe.members.num_rows,
        bytes=stream.position,
        digest=found,
    )
    destination.put(seal.path(recipe.name, seal.SEAL), seal.dump_seal(sealed))
    return sealed


def _member_index(recipe: Recipe, offsets: np.ndarray) -> pa.Table:
    fields = recipe.members["field"].cast(pa.string()).to_pylist()
    names = recipe.members["name"].to_pylist()
    keys = [name[: -len(field) - 1] for name, field in zip(names, fields, strict=True)]
    return pa.table(
        [
            pa.array(keys, pa.string()),
            pa.array(fields, pa.string()),
            pa.array(offsets, pa.int64()),
            recipe.members["size"].cast(pa.int64()),
        ],
        schema=seal.MEMBER_INDEX,
    )


class _TarStream:
    """Gathers members in a buffer and hands it on when it is full."""

    def __init__(self, file: Writer, source: Storage, digest: Digest) -> None:
        self.file = file
        self.source = source
        self.digest = digest
        self.position = 0  # bytes handed on
        self.buffer = memoryview(bytearray(_BUFFER))
        self.blocks = np.frombuffer(self.buffer, np.uint8).reshape(-1, tar.BLOCK)

    def write(self, members: pa.Table) -> np.ndarray:
        """Writes all members and the archive's end; returns where each one's data start."""
        names = members["name"].cast(pa.large_binary()).to_pylist()
        paths, fingerprints = members["path"].to_pylist(), members["fingerprint"].to_pylist()
        sizes = members["size"].to_numpy()
        heads = np.full(len(names), tar.BLOCK)
        for each in tar.unusual(names, sizes):
            heads[each] = len(tar.header(names[each].decode(), int(sizes[each])))
        bounds = np.concatenate(([0], np.cumsum(heads + sizes + -sizes % tar.BLOCK)))
        starts = bounds[:-1] + heads
        first = 0
        while first < len(names):
            base = bounds[first]
            stop = int(np.searchsorted(bounds, base + _BUFFER, side="right")) - 1
            if stop > first:
                some = slice(first, stop)
                self._put_heads(names[some], sizes[some], bounds[first : stop + 1] - base)
                begins = (starts[some] - base).tolist()
                ends = (starts[some] - base + sizes[some]).tolist()
                self._read(paths[some], begins, ends, fingerprints[some])
                self._hand_on(self.buffer[: bounds[stop] - base])
            else:  # it does not fit into the buffer
                stop = first + 1
                head = tar.header(names[first].decode(), int(sizes[first]))
                self._stream(head, paths[first], int(sizes[first]), fingerprints[first])
            first = stop
        self._hand_on(tar.end(self.position))
        return starts

    def _put_heads(self, names: list[bytes], sizes: np.ndarray, bounds: np.ndarray) -> None:
        """Puts headers and padding of members that lie between these bounds into the buffer."""
        rows = bounds // tar.BLOCK
        self.blocks[rows[1:] - 1] = 0  # each one's last block, most of which the data will cover
        self.blocks[rows[:-1]] = tar.plain_headers(names, sizes)
        for each in tar.unusual(names, sizes):
            head = tar.header(names[each].decode(), int(sizes[each]))
            self.buffer[bounds[each] : bounds[each] + len(head)] = head

    def _read(
        self, paths: list[str], begins: list[int], ends: list[int], fingerprints: list[str]
    ) -> None:
        """Reads members' data to their places in the buffer."""
        buffer, read_into = self.buffer, self.source.read_into
        for path, begin, end, fingerprint in zip(paths, begins, ends, fingerprints, strict=True):
            read_into(path, buffer[begin:end], fingerprint)

    def _stream(self, head: bytes, path: str, size: int, fingerprint: str) -> None:
        """Writes a member chunk by chunk."""
        self._hand_on(head)
        for chunk in self.source.read_chunks(path, size, fingerprint):
            self._hand_on(chunk)
        self._hand_on(bytes(tar.padding(size)))

    def _hand_on(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)
        self.position += len(data)
