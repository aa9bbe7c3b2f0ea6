"""Raw files below one folder of a disk or store."""

from __future__ import annotations

import time
from collections.abc import Callable

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import watch
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.watch import Look
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
