"""The keys of a source that is no tree of folders: which are taken, in the store's order.

A store lists all its keys in one order, by their bytes; so a listing of them is one long folder, which
`scan` takes as a whole and `watch` a part of at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset.listing import LISTING
from wds_pipeline.dataset.select import (
    JUNK_ENDS,
    JUNK_STARTS,
    LeftOut,
    folder_filter,
    glob_filter,
    why_junk,
)
from wds_pipeline.storage import Storage

_FOLDERS_KNOWN = 10_000


class KeyListing:
    """Goes through a store's keys, from behind `after`."""

    def __init__(self, source: Storage, config: SourceConfig, after: str = "") -> None:
        self._source = source
        self._after = after
        self._wanted = glob_filter(config.include, config.exclude)
        self._leaves = folder_filter(config.exclude)
        self._folders: dict[str, bool] = {"": True}
        self.left_out = LeftOut()

    def tables(self) -> Iterator[pa.Table]:
        """What is taken, as tables with the schema `LISTING`; some may be empty.

        Raises SourceError when the store cannot be listed.
        """
        for keys in self._source.list_keys(self._after):
            taken = keys.take(pa.array(self._take(keys["path"].to_pylist()), pa.int64()))
            problems = pa.nulls(taken.num_rows, pa.string())
            yield taken.append_column(LISTING.field("problem"), problems).cast(LISTING)

    def _take(self, paths: list[str]) -> list[int]:
        """The numbers of those that are taken."""
        wanted, taken = self._wanted, []
        last, enters = "", True
        for number, path in enumerate(paths):
            folder, _, name = path.rpartition("/")
            if folder != last:
                last, enters = folder, self._enters(folder)
            if not enters:
                continue
            if (name[:1] in JUNK_STARTS or name.endswith(JUNK_ENDS)) and (reason := why_junk(name)):
                self.left_out.add(reason, path)
            elif wanted is not None and not wanted(path):
                self.left_out.add("excluded", path)
            else:
                taken.append(number)
        return taken

    def _enters(self, folder: str) -> bool:
        """Whether a folder's files may be taken; one that is left out counts once."""
        known = self._folders.get(folder)
        if known is not None:
            return known
        if len(self._folders) > _FOLDERS_KNOWN:  # keys come in order, so old ones do not come back
            self._folders = {"": True}
        parent, _, name = folder.rpartition("/")
        enters = self._enters(parent)
        if enters:
            reason = why_junk(name) or ("excluded" if self._leaves(folder + "/") else None)
            if reason:
                self.left_out.add(reason, folder)
                enters = False
        self._folders[folder] = enters
        return enters
