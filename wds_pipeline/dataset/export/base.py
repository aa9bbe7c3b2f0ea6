"""One export under way: where its files go, how they name the shards, and what they are made of."""

from __future__ import annotations

import io
import posixpath
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset.export.contents import Contents, Shard
from wds_pipeline.errors import DataError
from wds_pipeline.storage import Storage, Writer

_AHEAD = 8  # member indexes; each may have many thousand rows
_PLAIN_NAME = 100  # bytes; behind it, headers have a prefix or an extension
# Why what a reader of the tar itself sees is not what the index says; `long_name` is for some only.
ANY = frozenset(
    (
        *(
            "not_a_tar",
            "truncated",
            "bad_header",
            "no_end",
            "concatenated",
            "trailing_data",
            "sparse",
        ),
        *("key_not_adjacent", "duplicate_field", "dropping", "no_key", "hidden", "not_utf8"),
    )
)


@dataclass(frozen=True)
class Export:
    """One export under way. Paths are relative to the roots of the storages.

    `storage` and `folder` are where its files are written to, `home` where they will be read from.
    """

    name: str
    contents: Contents
    storage: Storage
    folder: str
    home: str

    def put(self, name: str, data: bytes | str) -> None:
        """Writes a file of the export. Raises DestinationError."""
        self.storage.put(self.folder + name, data.encode() if isinstance(data, str) else data)

    @contextmanager
    def create(self, name: str) -> Iterator[Writer]:
        """Writes a large file of the export, part by part. Raises DestinationError."""
        with self.storage.create(self.folder + name) as file:
            yield file

    @property
    def beside(self) -> bool:
        """Whether its files stay where they are relative to the shards."""
        return self.storage.url == self.contents.storage.url

    def refer(self, path: str, below: str = "") -> str:
        """How a file in the folder `below` of the export names a path of the shards' storage: relative, or,
        where the two are not in one place, absolute."""
        if not self.beside:
            return self.contents.storage.locate(path)
        return posixpath.relpath(path, posixpath.normpath(self.home + below))

    def beside_shard(self, shard: Shard, ending: str, data: bytes) -> str:
        """Puts a file next to a shard, if it is not there, and returns its path: of the shard's content
        alone, so it serves all versions that hold the shard. Raises DestinationError."""
        path = shard.path.removesuffix(".tar") + ending
        storage = self.contents.storage
        found = None if self.contents.in_place else storage.stat(path)
        if found is None or found.size != len(data):
            storage.put(path, data)
        return path

    def members(self) -> Iterator[tuple[Shard, pa.Table]]:
        """Every shard with its members, in order; read ahead."""
        read = self.contents.read_members
        shards = iter(self.contents.shards)
        threads = ThreadPoolExecutor(min(_AHEAD, self.contents.storage.lookups))
        ahead: deque[tuple[Shard, Future[pa.Table]]] = deque()
        try:
            ahead.extend((each, threads.submit(read, each)) for each in islice(shards, _AHEAD))
            while ahead:
                shard, coming = ahead.popleft()
                ahead.extend((each, threads.submit(read, each)) for each in islice(shards, 1))
                yield shard, coming.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def refuse_misread(self, codes: Collection[str] = ANY) -> None:
        """Raises DataError if a shard has what the tool would read otherwise than its index says."""
        for shard in self.contents.shards:
            for code, text in shard.misread.items():
                if code in codes:
                    self.refuse(shard, f"{text}, which it would misread")
        if "long_name" in codes and self.contents.longest_key() + 2 > _PLAIN_NAME // 2:
            for shard, members in self.members():
                self._refuse_long(shard, members)

    def _refuse_long(self, shard: Shard, members: pa.Table) -> None:
        for key, extension in zip(
            *(members[c].to_pylist() for c in ("key", "extension")), strict=True
        ):
            name = f"{key}.{extension}"
            if len(name.encode()) > _PLAIN_NAME:
                self.refuse(
                    shard, f"the name {name!r} has {len(name.encode())} bytes; it reads up to 100"
                )

    def refuse(self, shard: Shard, why: str) -> None:
        """Raises DataError: this export cannot be right for a shard."""
        raise DataError(
            f"{self.contents.dataset}: export {self.name}: {shard.path}: {why}; mend the tar or its "
            f"names, or leave {self.name} out"
        )


class Sink(io.RawIOBase):
    """A store's writer as the file that libraries want."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        self._writer.write(view)
        self._at += len(view)
        return len(view)

    def tell(self) -> int:
        return self._at


def first_members(keys: pa.ChunkedArray) -> list[int]:
    """Where each sample begins, as rows of its shard's members."""
    if not len(keys):
        return []
    keys = keys.combine_chunks()
    again = pc.equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return [0, *(np.flatnonzero(~again) + 1).tolist()]
