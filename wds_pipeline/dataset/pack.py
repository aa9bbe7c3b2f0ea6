"""Recipe → sealed shard: one pass over the sources gives the tar, its member index and its digest.

The bytes depend on the recipe alone. Memory is one buffer, whatever the sizes: small members are
gathered in it, so that a shard costs one write per few MB; large ones stream through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import xxhash

from wds_pipeline.dataset import seal, tar
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.errors import SourceChanged
from wds_pipeline.storage import LocalStorage, Writer, open_storage

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
    source: str
    destination: str
    digest: str = "xxh3-128"


@dataclass(frozen=True)
class Packed:
    """What came of a job: the seal, or the source file because of which there is none."""

    name: str
    seal: Seal | None
    changed_path: str = ""
    changed_reason: str = ""


def run(job: PackJob) -> Packed:
    """Packs one shard; a source that changed since the scan is a result, not an error.

    Raises DestinationError when the destination cannot be written.
    """
    source, destination = open_storage(job.source), open_storage(job.destination)
    try:
        sealed = pack(job.recipe, source, destination, job.digest)
    except SourceChanged as error:
        return Packed(job.recipe.name, None, error.path, error.reason)
    return Packed(job.recipe.name, sealed)


def pack(
    recipe: Recipe, source: LocalStorage, destination: LocalStorage, digest: str = "xxh3-128"
) -> Seal:
    """Writes a recipe's tar and its member index, and seals them.

    The same recipe gives the same bytes on every machine. The seal is written last: a shard without
    one does not exist for anybody.

    Raises SourceChanged when a source file is no longer what the recipe says, DestinationError when
    the destination cannot be written; then nothing is sealed.
    """
    with destination.create(seal.path(recipe.name, seal.TAR)) as file:
        stream = _TarStream(file, source, DIGESTS[digest]())
        offsets = stream.write(recipe.members)
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
        digest=f"{digest}:{stream.digest.hexdigest()}",
    )
    destination.put(seal.path(recipe.name, seal.SEAL), seal.dump_seal(sealed))
    return sealed


def _member_index(recipe: Recipe, offsets: list[int]) -> pa.Table:
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

    def __init__(self, file: Writer, source: LocalStorage, digest: Digest) -> None:
        self.file = file
        self.source = source
        self.digest = digest
        self.position = 0  # bytes handed on
        self.buffer = memoryview(bytearray(_BUFFER))

    def write(self, members: pa.Table) -> list[int]:
        """Writes all members and the archive's end; returns where each one's data start."""
        buffer, filled = self.buffer, 0
        block, header, read_into = tar.BLOCK, tar.header, self.source.read_into
        offsets: list[int] = []
        columns = (members[name].to_pylist() for name in ("name", "path", "size", "fingerprint"))
        for name, path, size, fingerprint in zip(*columns, strict=True):
            head = header(name, size)
            start = filled + len(head)
            stop = start + size
            end = stop + -size % block
            if end > _BUFFER:
                self._flush(filled)
                start -= filled
                stop -= filled
                end -= filled
                filled = 0
            offsets.append(self.position + start)
            if end > _BUFFER:
                self._stream(head, path, size, fingerprint)
                continue
            buffer[filled:start] = head
            read_into(path, buffer[start:stop], fingerprint)
            buffer[stop:end] = bytes(end - stop)
            filled = end
        self._flush(filled)
        self._hand_on(tar.end(self.position))
        return offsets

    def _stream(self, head: bytes, path: str, size: int, fingerprint: str) -> None:
        """A member that does not fit into the buffer."""
        self._hand_on(head)
        for chunk in self.source.read_chunks(path, size, fingerprint):
            self._hand_on(chunk)
        self._hand_on(bytes(tar.padding(size)))

    def _flush(self, filled: int) -> None:
        if filled:
            self._hand_on(self.buffer[:filled])

    def _hand_on(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.file.write(data)
        self.position += len(data)
