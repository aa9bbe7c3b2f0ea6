"""The source of an overlay: any other, whose samples have the places that the base gives their keys."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import naming
from wds_pipeline.dataset.listing import LISTING, PLACES, LateListing, Listing
from wds_pipeline.dataset.overlay_base import Base
from wds_pipeline.dataset.sources.base import Progress, Source
from wds_pipeline.dataset.watch import Look
from wds_pipeline.storage import Storage

NOT_IN_BASE = "not_in_base"
_FORMAT = "overlay-1"  # of the listing's digest
_LAST = np.iinfo(np.int64).max


class OverlaySource(Source):
    """What an overlay is made of. Its listing's digest has the base's in it, so that a new version of that
    is noticed."""

    def __init__(self, config: DatasetConfig, inner: Source) -> None:
        super().__init__(config)
        self.inner = inner
        self.storage, self.usage = inner.storage, inner.usage
        self._base: Base | None = None

    @property
    def keep(self) -> Storage | None:  # type: ignore[override]
        """Where the source that is inside may keep something."""
        return self.inner.keep

    @keep.setter
    def keep(self, storage: Storage | None) -> None:
        self.inner.keep = storage

    @property
    def url(self) -> str:
        """How messages name it."""
        return self.inner.url

    def check(self) -> None:
        """As the inner source's: a repair needs no base. Raises SourceError, ConfigError."""
        self.inner.check()

    def base(self, number: int | None = None) -> Base:
        """The base's version of this moment, or a certain one. Raises SourceError, ConfigError."""
        found = self._base
        if number is None or found is None or found.manifest.version != number:
            newest = Base(self.config, number)
            same = found is not None and found.manifest.write_id == newest.manifest.write_id
            found = self._base = found if same else newest
        assert found is not None
        return found

    def scan(self, progress: Progress | None = None) -> Listing:
        """The inner source's listing, and the base's version; its ledger is read when places are asked for.
        Raises SourceError, ConfigError, and later the same."""
        base = self.base()
        found = self.inner.scan(progress)
        self.fetched, self.warnings = self.inner.fetched, self.inner.warnings
        return LateListing(_digest(found.digest, base), lambda: placed(found, self.config, base))

    def look(
        self,
        seconds: float,
        before: Look | None = None,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """As the inner source's; and reads the base's manifest. Raises SourceError, ConfigError."""
        found = self.inner.look(seconds, before, now=now, clock=clock)
        if not found.complete:
            return found
        return found.model_copy(update={"state": _digest(found.digest, self.base())})


def _digest(listing: str, base: Base) -> str:
    parts = (_FORMAT, listing, base.manifest.dataset, base.manifest.digest)
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def placed(listing: Listing, config: DatasetConfig, base: Base) -> Listing:
    """The listing with each file's place in the base; files of samples that the base lacks have the problem
    `not_in_base`. Raises SourceError."""
    named = naming.assign(listing.files, config.samples)
    keys = named["key"].combine_chunks()
    keys = pa.concat_arrays(keys.chunks) if isinstance(keys, pa.ChunkedArray) else keys
    at = pc.index_in(keys, value_set=base.places["key"].combine_chunks())
    there = pc.is_valid(at).to_numpy(zero_copy_only=False)
    sound = pc.equal(named["status"].cast(pa.string()), naming.OK).to_numpy()
    lacking = sound & ~there
    rows = pc.fill_null(at, 0)
    places = base.places.select(PLACES.names).take(rows)
    slot = np.where(there, places["slot"].to_numpy(), -1).astype(np.int32)
    position = np.where(there, places["position"].to_numpy(), _LAST)
    split = places["split"].cast(PLACES.field("split").type)
    problem = pc.if_else(pa.array(lacking), NOT_IN_BASE, listing.files["problem"].combine_chunks())
    files = listing.files.set_column(
        LISTING.get_field_index("problem"), LISTING.field("problem"), problem
    )
    return Listing(
        files,
        listing.folders,
        listing.skipped,
        listing.examples,
        origins=listing.origins,
        places=pa.table([split, slot, position], schema=PLACES),
        details={**listing.details, **_details(files, keys, lacking, base)},
        made_of=listing.made_of,
        overlay=base.record,
    )


def _details(files: pa.Table, keys: pa.Array, lacking: np.ndarray, base: Base) -> dict[str, str]:
    """More of the files whose samples the base left out too."""
    rows = np.flatnonzero(lacking)
    if not len(rows):
        return {}
    some = keys.take(pa.array(rows))
    why = base.why_not(some)
    paths = files["path"].take(pa.array(rows)).to_pylist()
    return {
        path: f"it is in the quarantine of {base.named}: {why[key]}"
        for path, key in zip(paths, some.to_pylist(), strict=True)
        if key in why
    }
