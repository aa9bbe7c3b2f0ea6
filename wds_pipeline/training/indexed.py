"""Tars that others made, with an index beside them (`wds-pipeline index`), as the content of a catalog."""

from __future__ import annotations

import re
import warnings
from typing import NamedTuple

import pyarrow as pa

from wds_pipeline.config_storage import Place
from wds_pipeline.dataset import tar_index
from wds_pipeline.dataset.tar_index import TarIndex
from wds_pipeline.dataset.tar_paths import find_tars
from wds_pipeline.errors import VersionError
from wds_pipeline.storage import open_storage
from wds_pipeline.training.catalog import ShardInfo

_TARS = re.compile(r"[{*?\[]|::|\.tar$")


class IndexedOrigin(NamedTuple):
    """An index in a folder below a place; of these tars, or of all."""

    place: Place
    folder: str
    paths: tuple[str, ...] | None

    def load(self) -> Indexed:
        """Raises VersionError when the index is gone, not readable, or lacks a tar."""
        index = tar_index.load(open_storage(self.place), self.folder)
        return Indexed(index if self.paths is None else index.select(list(self.paths)))


def names_tars(url: str) -> bool:
    """Whether a URL is of tars, by a pattern or one by one, and not of a folder."""
    return _TARS.search(url) is not None


def resolve_tars(place: Place) -> IndexedOrigin:
    """The tars that a pattern names, by the index beside them.

    Raises VersionError when there is none, or one of them is not in it; SourceError for tars that are
    not there.
    """
    tars = find_tars([place.url], place.storage)
    found = IndexedOrigin(
        place.model_copy(update={"url": tars.storage.place.url}),
        tar_index.FOLDER,
        tuple(file.path for file in tars.files),
    )
    return _with_warning(found)


def resolve_folder(place: Place) -> IndexedOrigin | None:
    """The index in a folder, or in that of the tars; None if there is none."""
    storage = open_storage(place)
    for folder in ("", f"{tar_index.FOLDER}/"):
        if storage.stat(folder + tar_index.INDEX) is not None:
            return _with_warning(IndexedOrigin(place, folder.rstrip("/"), None))
    return None


def _with_warning(origin: IndexedOrigin) -> IndexedOrigin:
    """Says what the index knows to be missing or cut, once, where it is opened."""
    index = origin.load().index
    errors = [each for row in index.rows for each in row.errors]
    if errors:
        warnings.warn(
            f"{index.place}: {len(errors):,} errors were found in these tars when they were indexed, such "
            f"as: {errors[0].shard}: {errors[0].message}",
            stacklevel=5,
        )
    return origin


def check_version_and_split(place: Place, number: int | None, split: str | None) -> None:
    """Raises VersionError: an index has neither."""
    for what, value in (("versions", number), ("splits", split)):
        if value is not None:
            raise VersionError(
                f"{place.url}: is an index of tars, which has no {what}; found {value!r}. Open some of the "
                "tars by their names, such as 'train-{0000..0575}.tar'"
            )


class Indexed:
    """What an index of tars holds. Its version is 0."""

    version = 0
    split: str | None = None
    mend = "restore the file, or index it as it is now with `wds-pipeline index`"
    decoding = "an index of foreign tars knows keys, fields and sizes"

    def __init__(self, index: TarIndex) -> None:
        self.index = index
        self.storage = index.tars
        self.title = self.dataset = index.tars.url
        self.digest = index.digest
        self._tars = index.indexed()
        self.shards = [
            ShardInfo(self.storage.locate(row.path), row.path, row.samples, row.bytes, row.digest)
            for row in index.rows
        ]

    def member_table(self, shard: int) -> pa.Table:
        """A tar's member index. Raises FileNotFoundError, VerificationError."""
        return self._tars[shard].members

    def report_table(self, shard: int, columns: list[str]) -> pa.Table | None:
        """None: nobody has decoded them."""
        return None

    def field_names(self) -> list[str]:
        """The fields that the index tells of."""
        return sorted({name for row in self.index.rows for name in row.fields})

    def key_table(self) -> pa.Table | None:
        """None: the member indexes have the keys."""
        return None

    def why_no_key(self, key: str) -> str | None:
        """None: nothing is known of it."""
        return None

    def why_gone(self) -> str | None:
        """None: they should be there."""
        return None
