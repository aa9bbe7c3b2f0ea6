"""Recipe → sealed shard: one pass over the sources gives the tar, its member index and its digest.

The bytes depend on the recipe alone. Memory is one buffer, whatever the sizes: small members are
gathered in it, so that a shard costs one write per few MB; large ones stream through it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from wds_pipeline.dataset import seal, tar
from wds_pipeline.dataset.digests import DIGESTS, Digest, check_published
from wds_pipeline.dataset.origins import OriginReader
from wds_pipeline.dataset.pack_transformed import pack_transformed
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.errors import (
    DestinationError,
    SourceChanged,
    SourceError,
    VerificationError,
    may_pass,
)
from wds_pipeline.storage import Place, Read, Reads, Storage, Usage, Writer, open_storage

Source = Storage | OriginReader


@dataclass(frozen=True)
class PackJob:
    """All that a worker, here or elsewhere, needs to pack one shard."""

    recipe: Recipe
    source: Place | str
    destination: Place | str
    digest: str = "xxh3-128"
    published: str = ""
    anew: bool = False
    """Whatever is stored; else a shard that is sealed is not packed again."""


@dataclass(frozen=True)
class Packed:
    """What came of a job: the seal, or the source files (path, reason) because of which there is none,
    or why the shard would not be the one that was published, or what failed in passing.

    `rejected` are the samples that a transform could not use, each with its reason: the seal is then of
    the shard without them, which has another name, and None if none is left. `usage` is what it asked
    of the source and of the destination.
    """

    name: str
    seal: Seal | None
    changed: tuple[tuple[str, str], ...] = ()
    refused: str = ""
    failed: str = ""
    rejected: Mapping[str, str] = field(default_factory=dict)
    usage: tuple[Usage, Usage] = field(default_factory=lambda: (Usage(), Usage()))


def run(job: PackJob) -> Packed:
    """Packs one shard, if it is not sealed already: a job whose worker died is done again.

    A source that is not what it was is a result, not an error, so that the other shards are packed; so
    is what failed in passing, when the store's budget of tries is spent.

    Raises SourceError, DestinationError when no other shard would fare better.
    """
    source, destination = open_source(job.recipe, job.source), open_storage(job.destination)
    done = _run(job, source, destination)
    return replace(done, usage=(source.usage, destination.usage))


def open_source(recipe: Recipe, source: Place | str) -> Source:
    """What a recipe's members are read from."""
    if recipe.stores is None:
        return open_storage(source)
    return OriginReader(recipe.stores, recipe.members)


def _run(job: PackJob, source: Source, destination: Storage) -> Packed:
    name = job.recipe.name
    rejected: dict[str, str] = {}
    try:
        sealed = None if job.published or job.anew else seal.whole(destination, name)
        if sealed is None and job.recipe.steps:
            sealed, rejected = pack_transformed(
                job.recipe, source, destination, job.digest, job.published
            )
        elif sealed is None:
            sealed = pack(job.recipe, source, destination, job.digest, job.published)
    except SourceChanged as error:
        return Packed(name, None, _all_changed(job.recipe, source, error))
    except VerificationError as error:
        return Packed(name, None, refused=str(error))
    except (SourceError, DestinationError) as error:
        if not may_pass(error):
            raise
        return Packed(name, None, failed=str(error))
    return Packed(name, sealed, rejected=rejected)


def _all_changed(
    recipe: Recipe, source: Source, first: SourceChanged
) -> tuple[tuple[str, str], ...]:
    """What else would be met, one attempt after the other: a folder of unreadable files, say."""
    found = {first.path: first.reason}
    columns = (recipe.members[name].to_pylist() for name in ("path", "size", "fingerprint"))
    for path, size, fingerprint in zip(*columns, strict=True):
        try:
            source.check_source(path, size, fingerprint)
        except SourceChanged as error:
            found.setdefault(error.path, error.reason)
        except SourceError:  # the store is away: what is known by now will do
            break
    return tuple(found.items())


def pack(
    recipe: Recipe,
    source: Source,
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
        check_published(destination.locate(where), found, published)
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


@dataclass
class _Window:
    """Members whose tar blocks lie in a buffer, and the reads by which their data come to be there."""

    blocks: memoryview
    reads: Reads
    buffer: memoryview


class _TarStream:
    """Gathers members in buffers and hands each on when it is full: in the tar's order, though the
    source may be reading for some of them at a time."""

    def __init__(self, file: Writer, source: Source, digest: Digest) -> None:
        self.file = file
        self.source = source
        self.digest = digest
        self.position = 0  # bytes handed on
        self.free = [memoryview(bytearray(source.window_bytes)) for _ in range(source.windows)]
        self.coming: deque[_Window] = deque()

    def write(self, members: pa.Table) -> np.ndarray:
        """Writes all members and the archive's end; returns where each one's data start."""
        try:
            return self._write(members)
        finally:
            for (
                window
            ) in self.coming:  # of a shard that failed: the next one wants the store's time
                window.reads.cancel()

    def _write(self, members: pa.Table) -> np.ndarray:
        names = members["name"].cast(pa.large_binary()).to_pylist()
        paths, fingerprints = members["path"].to_pylist(), members["fingerprint"].to_pylist()
        sizes = members["size"].to_numpy()
        heads = np.full(len(names), tar.BLOCK)
        for each in tar.unusual(names, sizes):
            heads[each] = len(tar.header(names[each].decode(), int(sizes[each])))
        bounds = np.concatenate(([0], np.cumsum(heads + sizes + -sizes % tar.BLOCK)))
        starts = bounds[:-1] + heads
        room = self.source.window_bytes
        first = 0
        while first < len(names):
            base = bounds[first]
            stop = int(np.searchsorted(bounds, base + room, side="right")) - 1
            if stop > first:
                some = slice(first, stop)
                buffer = self._free_buffer()
                _put_heads(buffer, names[some], sizes[some], bounds[first : stop + 1] - base)
                begins = (starts[some] - base).tolist()
                ends = (starts[some] - base + sizes[some]).tolist()
                views = [buffer[begin:end] for begin, end in zip(begins, ends, strict=True)]
                reads = self.source.start_reads(
                    list(map(Read, paths[some], views, fingerprints[some]))
                )
                self.coming.append(_Window(buffer[: bounds[stop] - base], reads, buffer))
            else:  # it does not fit into a buffer
                stop = first + 1
                self._finish()
                head = tar.header(names[first].decode(), int(sizes[first]))
                self._stream(head, paths[first], int(sizes[first]), fingerprints[first])
            first = stop
        self._finish()
        self._hand_on(tar.end(self.position))
        return starts

    def _free_buffer(self) -> memoryview:
        if not self.free:
            self._finish_one()
        return self.free.pop()

    def _finish(self) -> None:
        while self.coming:
            self._finish_one()

    def _finish_one(self) -> None:
        """Waits for the oldest window's data and hands its blocks on."""
        window = self.coming.popleft()
        window.reads()
        self._hand_on(window.blocks)
        self.free.append(window.buffer)

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


def _put_heads(
    buffer: memoryview, names: list[bytes], sizes: np.ndarray, bounds: np.ndarray
) -> None:
    """Puts headers and padding of members that lie between these bounds into the buffer."""
    blocks = np.frombuffer(buffer, np.uint8).reshape(-1, tar.BLOCK)
    rows = bounds // tar.BLOCK
    blocks[rows[1:] - 1] = 0  # each one's last block, most of which the data will cover
    blocks[rows[:-1]] = tar.plain_headers(names, sizes)
    for each in tar.unusual(names, sizes):
        head = tar.header(names[each].decode(), int(sizes[each]))
        buffer[bounds[each] : bounds[each] + len(head)] = head
