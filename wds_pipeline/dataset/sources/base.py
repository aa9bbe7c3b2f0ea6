"""What every kind of source can do."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.watch import Look
from wds_pipeline.storage import Storage, Usage

Progress = Callable[[str, int, int], None]
"""Called with what is under way ("scan", "download", …), how much is done, and of how much (0: unknown)."""


class Source(ABC):
    """What one dataset is made of.

    `storage` is the folder or store that the raw files are in, None for any other kind; `usage` is what was
    asked of the source so far. `keep` is a store where a source may keep what it had to fetch or work out,
    under `sources/`: the dataset's destination, set by a build; None while nothing may be written.
    """

    storage: Storage | None = None
    keep: Storage | None = None
    alone = True
    """Whether all that is kept there is its own: what another part of a merge needs is not for it to tidy."""
    fetched = False
    """Whether the last scan fetched what was not there before: the listing's digest does not tell."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self.dataset = config.name
        self.usage = Usage()
        self.warnings: list[str] = []
        """What a user should know of the last scan, beside the listing."""

    @property
    def url(self) -> str:
        """How messages name it."""
        return self.config.source_url

    @abstractmethod
    def check(self) -> None:
        """Whether it is there and lets us in, within seconds. Raises SourceError, ConfigError."""

    @abstractmethod
    def scan(self, progress: Progress | None = None) -> Listing:
        """Lists what there is. Raises SourceError, ConfigError, DataError."""

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """Looks whether there is anything new, for so many seconds at most: `Look.digest` of a complete look
        is that of `scan`. Fetches nothing and writes nothing. Raises SourceError.

        Here: by a scan of its own, for what is listed quickly.
        """
        began = now()
        found = self.scan()
        return Look(
            rules=self.config.source.kind, device=0, began=began, ended=now(),
            files=found.files.num_rows, bytes=found.bytes, state=found.digest, place=None,
        )  # fmt: skip
