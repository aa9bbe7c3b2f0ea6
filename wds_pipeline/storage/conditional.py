"""Put-if-absent, of which a store is not believed until it has been seen: some ignore the condition of
a conditional create without a word, and overwrite.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from contextlib import suppress

from wds_pipeline.errors import DestinationError
from wds_pipeline.storage.base import TEMPORARY, Storage

Create = Callable[[str, bytes], bool]
"""The store's conditional create: writes the whole file unless there is one, says whether it did.

Raises NotImplementedError when the store refuses the condition itself, DestinationError for anything
else that goes wrong.
"""

_known: dict[tuple[str, str], bool] = {}
_lock = threading.Lock()


def probe(storage: Storage, create: Create) -> bool:
    """Whether the store's conditional create keeps a file that is there: a key is created twice.

    The key is removed again. Raises DestinationError when the store cannot be written or read.
    """
    path = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        create(path, b"first")
        # What the store says is not enough: a request that was tried again answers for both tries.
        return not create(path, b"second") and storage.read(path) == b"first"
    except (NotImplementedError, FileNotFoundError):
        return False
    finally:
        with suppress(DestinationError):  # `gc` removes it, if it stays
            storage.delete(path)


def check_put_if_absent(storage: Storage, create: Create) -> None:
    """Probes a destination, once in a process; not where the user makes sure of a single writer.

    Raises DestinationError when the store has no conditional create.
    """
    place = storage.place
    if place.single_writer:
        return
    key = (place.storage.endpoint_url or "", place.url.rstrip("/"))
    with _lock:
        if key not in _known:
            _known[key] = probe(storage, create)
        conditional = _known[key]
    if not conditional:
        raise DestinationError(
            f"{place.named}: the store overwrites a file that was to be created only if there is none "
            "(it ignores or refuses conditional writes), so that of two builds at once one could "
            "undo the other's version; use a store that has them, or make sure that only one build "
            "of this dataset runs at a time and set `destination.commit: single_writer`"
        )


def put_as_single_writer(storage: Storage, path: str, data: bytes) -> bool:
    """Put-if-absent without a condition, safe only while nobody else writes: looks, writes, reads back.

    False also when other bytes are read back: somebody else did write. Raises DestinationError.
    """
    if storage.stat(path) is not None:
        return False
    storage.put(path, data)
    try:
        return storage.read(path) == data
    except FileNotFoundError:
        return False
