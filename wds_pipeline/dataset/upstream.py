"""What the datasets that another one is made of have published since it was built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_source import DatasetSource
from wds_pipeline.dataset import version
from wds_pipeline.dataset.listing import Listing
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.dataset.wording import listed_changes
from wds_pipeline.storage import Storage, open_storage

_LOOKED_THROUGH = 20  # versions of one dataset


@dataclass(frozen=True)
class News:
    """Versions of another dataset that are newer than the one that was taken in, oldest first; `taken` is 0
    if none was."""

    dataset: str
    taken: int
    versions: list[Manifest]

    def __str__(self) -> str:
        newest = self.versions[-1]
        changes: Counter[str] = Counter()
        for each in self.versions:
            changes.update(each.changes)
        what = f"version {newest.version} of {self.dataset} was published"
        if not self.taken:
            return what
        if len(self.versions) > 1:
            first = self.versions[0].version
            what = f"versions {first} to {newest.version} of {self.dataset} were published"
        return f"{what} ({listed_changes(changes)})" if changes else what

    @property
    def since(self) -> datetime:
        """When the oldest of them was published."""
        return datetime.fromisoformat(self.versions[0].created)


def news(config: DatasetConfig, newest: Manifest) -> list[News]:
    """What there is since a version was made; of a dataset that is pinned to a version there is never any.

    Raises DestinationError, SourceError, VersionError.
    """
    taken = list(taken_in(origin(newest)))
    found: dict[str, News] = {}
    for source in config.upstream:
        if source.version == "latest":
            storage = open_storage(config.upstream_place(source))
            before = _taken(taken, storage.url, source.name)
            versions = _newer(storage, before, source)
            if versions:
                name = source.name or versions[-1].dataset
                found[storage.url] = News(name, before, versions)
    return list(found.values())


def unpublished(config: DatasetConfig) -> list[str]:
    """The datasets that one is made of and that have no version yet. Raises as `news`."""
    return [
        source.name or config.resolve(source.url)
        for source in config.upstream
        if source.version == "latest"
        and version.latest(open_storage(config.upstream_place(source))) is None
    ]


def only(config: DatasetConfig) -> bool:
    """Whether a dataset is made of published versions alone, which are whole as soon as they are there."""
    source = config.source
    parts = source.merge.parts if source.merge else [source]
    return all(part.dataset is not None for part in parts)


def _newer(storage: Storage, taken: int, source: DatasetSource) -> list[Manifest]:
    """The versions after one, from the first on that has something else in the splits that are wanted."""
    newest = version.latest(storage)
    if newest is None or newest.version <= taken:
        return []
    before = version.try_read(storage, taken) if taken else None
    start = max(taken + 1, newest.version - _LOOKED_THROUGH + 1) if taken else newest.version
    between = (version.try_read(storage, number) for number in range(start, newest.version))
    versions = [*(each for each in between if each is not None), newest]  # `gc` takes some
    if before is None:
        return versions
    known = _digests(before, source)
    first = next((n for n, each in enumerate(versions) if _digests(each, source) != known), None)
    return [] if first is None else versions[first:]


def _digests(manifest: Manifest, source: DatasetSource) -> dict[str, str]:
    return {
        name: split.digest
        for name, split in manifest.splits.items()
        if source.splits is None or name in source.splits
    }


def _taken(taken: Iterable[Mapping[str, Any]], url: str, name: str) -> int:
    for each in taken:
        if url == each.get("url") or (name and name == each["dataset"]):
            return int(each["version"])
    return 0


def origin(found: Listing | Manifest) -> dict[str, Any]:
    """What a listing or a version is made of, and laid over."""
    return {"source": found.made_of, "overlay": found.overlay}


def taken_in(made_of: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The versions of other datasets that a `made_of` speaks of: `dataset` and `version` of each, and, of a
    source, `url`."""
    if {"dataset", "version"} <= made_of.keys():
        yield made_of
    else:
        for part in made_of.values():
            if isinstance(part, Mapping):
                yield from taken_in(part)
