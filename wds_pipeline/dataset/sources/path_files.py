"""Files that a table or list names: which of them are there, in which state."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.errors import SourceError
from wds_pipeline.storage import LocalStorage, Storage

_AT_ONCE = 2000


@dataclass
class Found:
    """The files, in the order in which they were asked for: sizes in bytes, fingerprints as a scan gives
    them; and what is wrong with some, by number. `newest_ns` is the latest time of modification seen."""

    sizes: np.ndarray
    fingerprints: list[str]
    wrong: dict[int, str] = field(default_factory=dict)
    newest_ns: int = 0


def relative(path: str, base: str) -> str | None:
    """A path as a base has it: an absolute one may be inside of it. None for one that leaves it."""
    if "://" in base:
        root = base.rstrip("/") + "/"
        found = path.removeprefix(root)
        inside = found and not found.startswith("/") and "://" not in found
        return found if inside and ".." not in found.split("/") else None
    root = base.partition("://")[2] if "://" in base else base
    whole = posixpath.normpath(posixpath.join(root, path))
    prefix = root if root.endswith("/") else root + "/"
    return whole[len(prefix) :] if whole.startswith(prefix) and whole != prefix else None


def look_up(storage: Storage, paths: Sequence[str]) -> Found:
    """The state of each of these files. Raises SourceError when they cannot be looked at."""
    if isinstance(storage, LocalStorage):
        return _stat_all(storage, paths)
    storage.contact()
    known = _listed(storage, sorted(set(paths), key=str.encode)) if paths else {}
    found = Found(np.zeros(len(paths), np.int64), [""] * len(paths))
    for number, path in enumerate(paths):
        state = known.get(path)
        if state is None:
            found.wrong[number] = f"{storage.locate(path)} is not there"
        else:
            found.sizes[number], found.fingerprints[number] = state
    return found


def _stat_all(storage: LocalStorage, paths: Sequence[str]) -> Found:
    found = Found(np.zeros(len(paths), np.int64), [""] * len(paths))
    top = storage.locate("")

    def some(start: int) -> None:
        for number in range(start, min(start + _AT_ONCE, len(paths))):
            where = top + paths[number]
            try:
                facts = os.stat(where)
            except (FileNotFoundError, NotADirectoryError, ValueError):
                found.wrong[number] = f"{where} is not there"
                continue
            except OSError as error:
                if isinstance(error, PermissionError):
                    found.wrong[number] = f"{where} is not readable: {error.strerror}"
                    continue
                raise SourceError(f"{where}: not readable: {error.strerror}") from error
            if not stat.S_ISREG(facts.st_mode):
                found.wrong[number] = f"{where} is no file"
                continue
            found.sizes[number] = facts.st_size
            found.fingerprints[number] = str(facts.st_mtime_ns)
            found.newest_ns = max(found.newest_ns, facts.st_mtime_ns)

    storage.at_once(some, range(0, len(paths), _AT_ONCE))
    return found


def _listed(storage: Storage, wanted: list[str]) -> dict[str, tuple[int, str]]:
    """By one listing from the first to the last of them: a request for each would cost more."""
    values, last = pa.array(wanted, pa.large_string()), wanted[-1].encode()
    known: dict[str, tuple[int, str]] = {}
    for table in storage.list_keys(wanted[0][:-1]):
        if table.num_rows:
            some = table.filter(pc.is_in(table["path"], value_set=values))
            known.update(_states(some))
            if table["path"][-1].as_py().encode() > last:
                break
    return known


def _states(table: pa.Table) -> Iterator[tuple[str, tuple[int, str]]]:
    columns = (table[name].to_pylist() for name in ("path", "size", "fingerprint"))
    for path, size, fingerprint in zip(*columns, strict=True):
        yield path, (size, fingerprint)
