"""`memory://`: fsspec's dictionary of this process, for tests and notebooks.

Worker processes do not see it: `compute: {kind: threads}` goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from fsspec.spec import AbstractFileSystem

from wds_pipeline.storage.kinds.base import Found, Kind

_create = threading.Lock()


class Memory(Kind):
    """fsspec's dictionary of this process."""

    def below(self, after: str) -> Iterator[Found]:
        """One look over the dictionary, which has no folders to list."""

        def find(fs: AbstractFileSystem) -> dict[str, dict[str, Any]]:
            return fs.find(self.where(""), detail=True)

        found = self._do("list", "", find)
        start = len(self.root) + 1
        for path, info in sorted((where[start:], info) for where, info in found.items()):
            if path > after:
                yield self._found(path, info)

    def create(self, path: str, data: bytes) -> bool:
        """The dictionary's, under a lock: it looks first, and then writes."""
        with _create:
            return super().create(path, data)

    def touch(self, path: str) -> None:
        """A copy onto itself gets a new time."""
        self._do("copy", path, lambda fs: fs.cp_file(self.where(path), self.where(path)))
