"""Parts of a file of a store that fsspec knows, all of one state of it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, cast

from wds_pipeline.errors import SourceChanged
from wds_pipeline.storage import fingerprint
from wds_pipeline.storage.asking import BeyondEnd
from wds_pipeline.storage.base import REPLACED, Stored, check_range
from wds_pipeline.storage.kinds import Kind
from wds_pipeline.storage.read_ahead import ReadAhead

_BUFFERED = 64 * 1024


def open_ranged(kind: Kind, path: str, threads: ThreadPoolExecutor, where: str) -> BinaryIO:
    """The file as a seekable stream. `where` is its URL. Raises FileNotFoundError."""
    found = kind.look(path)
    state = fingerprint.choose(found.facts, kind.order)

    def fetch(start: int, size: int) -> bytes:
        with suppress(BeyondEnd):
            data, facts = kind.fetch(path, start, start + size)
            if len(data) == size and fingerprint.same(state, facts) is not False:
                return data
        raise OSError(f"{where}: {REPLACED}")

    return cast(BinaryIO, io.BufferedReader(ReadAhead(found.size, fetch, threads), _BUFFERED))


def read_range(
    kind: Kind, path: str, offset: int, size: int, known: Stored | None
) -> tuple[memoryview, Stored]:
    """Some bytes, and the state of the file; which is asked for when it is not `known`, since not
    every answer tells it. Raises FileNotFoundError, SourceChanged."""
    stored = known
    if stored is None:
        found = kind.look(path)
        stored = Stored(found.size, fingerprint.choose(found.facts, kind.order))
    check_range(path, offset, size, stored, known)
    try:
        data, facts = kind.fetch(path, offset, offset + size)
    except BeyondEnd:
        raise SourceChanged(path, REPLACED) from None
    if len(data) != size or fingerprint.same(stored.state, facts) is False:
        raise SourceChanged(path, REPLACED)
    return memoryview(data), stored
