"""Recipe with transforms → sealed shard: input samples are read ahead, changed, and written as they come.

A sample that a transform cannot use does not cost the others their work: the shard is sealed without it,
under the name that it has in the plan without that sample. A report under the planned name says why, so that
the next build knows it, should this one be killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from wds_pipeline.dataset import seal, shard_report, tar
from wds_pipeline.dataset.digests import DIGESTS, Digest, check_published
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.shard_report import Rules, ShardReport
from wds_pipeline.errors import DataError, DestinationError, VerificationError
from wds_pipeline.storage import Read, Reads, Storage, Writer
from wds_pipeline.transforms.api import Sample
from wds_pipeline.transforms.chain import KEY, Chain

if TYPE_CHECKING:
    from wds_pipeline.dataset.pack import Source

_BUFFER = 4 * 1024 * 1024


def pack_transformed(
    recipe: Recipe, source: Source, destination: Storage, digest: str, published: str = ""
) -> tuple[Seal | None, dict[str, str]]:
    """Packs what the recipe's transforms make of its samples; returns the seal, None if every sample was
    rejected, and the rejected ones' reasons by key.

    Raises as `pack.pack`, and DataError when a transform of whole shards fails.
    """
    kind = published.partition(":")[0] or digest
    chain = Chain(recipe.steps, seal.partition_of(recipe.name))
    where = seal.path(recipe.name, seal.TAR)
    with destination.create(where) as file:
        writer = SampleWriter(file, DIGESTS[kind]())
        for sample in chain.run(read_samples(recipe.members, source)):
            if not writer.add(sample):
                raise DataError(
                    f"{destination.place.dataset}: {recipe.name}: the transforms gave the key "
                    f"{sample[KEY]!r} twice; expected each once: let it go on behind the input's key"
                )
        if chain.rejected:
            writer.check(chain)
        writer.end()
        found = f"{kind}:{writer.digest.hexdigest()}"
        if published and chain.rejected:
            key, reason = next(iter(chain.rejected.items()))
            raise VerificationError(
                f"{destination.locate(where)}: missing or damaged, and packed anew it would lack "
                f"{len(chain.rejected):,} samples, which the transforms reject now, such as {key}: {reason}"
            )
        check_published(destination.locate(where), found, published)
    name = recipe.name
    if chain.rejected:
        name = recipe.without(chain.rejected)
        _tell(recipe, chain.rejected, destination)
        if len(chain.rejected) < recipe.samples:
            _rename(destination, where, seal.path(name, seal.TAR), writer.position)
        destination.delete(where)
        if len(chain.rejected) >= recipe.samples:
            return None, chain.rejected
    if published:
        destination.delete(seal.path(name, seal.REPORT))
    index = pa.table(writer.columns, schema=seal.MEMBER_INDEX)
    destination.put(seal.path(name, seal.MEMBERS), seal.parquet_bytes(index))
    if chain.inputs < recipe.samples:  # a stream did not want more
        chain.left_out["not read by a transform of shards"] += recipe.samples - chain.inputs
    sealed = Seal(
        name=name,
        split=recipe.split,
        slot=recipe.slot,
        recipe=name.rpartition("-")[2],
        samples=writer.samples,
        members=index.num_rows,
        bytes=writer.position,
        digest=found,
        inputs=recipe.samples - len(chain.rejected),
        left_out=dict(sorted(chain.left_out.items())),
    )
    destination.put(seal.path(name, seal.SEAL), seal.dump_seal(sealed))
    return sealed, chain.rejected


def _rename(destination: Storage, where: str, target: str, size: int) -> None:
    try:
        destination.link(target, where)
    except DestinationError:
        # Another build may be at the same shard, and have renamed it a moment ago.
        there = destination.stat(target)
        if destination.stat(where) is not None or there is None or there.size != size:
            raise


def _tell(recipe: Recipe, rejected: dict[str, str], destination: Storage) -> None:
    """Leaves a report of the shard that was planned, with the samples that it cannot hold."""
    values: dict[str, list[object]] = {
        "key": list(rejected),
        "field": [""] * len(rejected),
        "size": [0] * len(rejected),
        "problem": ["transform_failed"] * len(rejected),
        "detail": list(rejected.values()),
        "decoded": [False] * len(rejected),
    }
    columns = [
        pa.array(values.get(each.name, [None] * len(rejected)), each.type)
        for each in shard_report.MEMBERS
    ]
    report = ShardReport(
        recipe.name, recipe.split, recipe.slot, Rules("stat", 1.0, 1, {}), "", 0, 0,
        pa.Table.from_arrays(columns, schema=shard_report.MEMBERS),
    )  # fmt: skip
    shard_report.save_report(destination, report)


class _Window(NamedTuple):
    """Samples that lie in one buffer: their members' rows, and each one's place in it."""

    samples: list[tuple[str, list[tuple[str, int, int]]]]
    buffer: memoryview
    reads: Reads


def read_samples(members: pa.Table, source: Source) -> Iterator[Sample]:
    """The input samples of a recipe, in order: `__key__`, and each field's bytes.

    Memory: some windows of a few MB, and one sample if that is larger. Raises SourceChanged.
    """
    names, fields = members["name"].to_pylist(), members["field"].to_pylist()
    keys = [name[: -len(field) - 1] for name, field in zip(names, fields, strict=True)]
    sizes = members["size"].to_numpy()
    first = np.flatnonzero(
        np.array([a != b for a, b in zip(keys, [None, *keys], strict=False)], bool)
    )
    bounds = np.append(first, len(keys))
    totals = np.add.reduceat(sizes, first) if len(first) else np.empty(0, np.int64)
    ends = np.concatenate([[0], np.cumsum(totals)])
    paths, fingerprints = members["path"].to_pylist(), members["fingerprint"].to_pylist()
    coming: deque[_Window] = deque()

    def start(begin: int, stop: int) -> _Window:
        buffer = memoryview(bytearray(int(ends[stop] - ends[begin])))
        at, reads, found = 0, [], []
        for sample in range(begin, stop):
            parts = []
            for row in range(bounds[sample], bounds[sample + 1]):
                size = int(sizes[row])
                reads.append(Read(paths[row], buffer[at : at + size], fingerprints[row]))
                parts.append((fields[row], at, at + size))
                at += size
            found.append((keys[bounds[sample]], parts))
        return _Window(found, buffer, source.start_reads(reads))

    begin = 0
    try:
        while begin < len(first) or coming:
            while begin < len(first) and len(coming) < source.windows:
                room = np.searchsorted(ends, ends[begin] + source.window_bytes, side="right") - 1
                stop = max(int(room), begin + 1)
                coming.append(start(begin, stop))
                begin = stop
            window = coming.popleft()
            window.reads()
            for key, parts in window.samples:
                yield {KEY: key, **{name: bytes(window.buffer[a:b]) for name, a, b in parts}}
    finally:
        for window in coming:
            window.reads.cancel()


class SampleWriter:
    """Writes samples as a tar, whose size nobody knows before; gathers its member index."""

    def __init__(self, file: Writer, digest: Digest) -> None:
        self.digest = digest
        self.position = 0
        self.samples = 0
        self.columns: list[list[object]] = [[], [], [], []]
        self._file = file
        self._buffer = bytearray()
        self._keys: set[str] = set()

    def add(self, sample: Sample) -> bool:
        """Writes a sample, its fields by code point; False, and nothing is written, for a key that was
        there."""
        key: str = sample[KEY]
        if key in self._keys:
            return False
        self._keys.add(key)
        self.samples += 1
        keys, fields, offsets, sizes = self.columns
        for field in sorted(name for name in sample if name != KEY):
            data = sample[field]
            self._put(tar.header(f"{key}.{field}", len(data)))
            keys.append(key)
            fields.append(field)
            offsets.append(self.position)
            sizes.append(len(data))
            self._put(data)
            self._put(bytes(tar.padding(len(data))))
        return True

    def check(self, chain: Chain) -> None:
        """Raises DataError if a sample was made of one that the chain rejected."""
        for key in self._keys:
            chain.check_used(key)

    def end(self) -> None:
        """Writes the archive's end."""
        self._put(tar.end(self.position))
        self._flush()

    def _put(self, data: bytes) -> None:
        self.position += len(data)
        if len(data) >= _BUFFER:
            self._flush()
            self._hand_on(data)
            return
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        self.digest.update(data)
        self._file.write(data)
