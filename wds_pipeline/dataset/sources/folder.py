"""Raw files below one folder of a disk or store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import watch
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import Storage, open_storage


class FolderSource(Source):
    """`source.url`: every file below it is a field of a sample, by its name."""

    storage: Storage

    def __init__(self, config: DatasetConfig) -> None:
        super().__init__(config)
        self.storage = open_storage(config.source_place)
        self.usage = self.storage.usage

    @property
    def url(self) -> str:
        """The folder, as its storage names it."""
        return self.storage.url

    def check(self) -> None:
        """As `Storage.check`."""
        self.storage.check()

    def scan(self, progress: Progress | None = None) -> Listing:
        """Walks the folder, or lists the store's keys. Raises SourceError."""

        def count(seen: int) -> None:
            if progress is not None:
                progress("scan", seen, 0)

        return scan(self.storage, self.config.source, self.dataset, count)

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """As far as the time goes; see `watch.look`. Raises SourceError."""
        return watch.look(
            self.storage, self.config.source, self.dataset, seconds, before, now=now, clock=clock
        )


def refuse_nesting(source: Storage, destination: Storage, dataset: str) -> None:
    """Raises ConfigError for a destination inside the source: it would be packed into itself."""
    one, other = (_root(each) for each in (source, destination))
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(
            f"{dataset}: destination.url: {destination.url} and source.url: {source.url} are the same "
            "folder, or one lies in the other; give the destination a folder outside of the source"
        )


def _root(storage: Storage) -> str:
    if storage.folders:
        return os.path.join(os.path.realpath(storage.locate("")), "")
    known = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    server = storage.place.storage.endpoint_url or next(filter(None, known), "")
    return f"{server} {storage.url.rstrip('/')}/"
