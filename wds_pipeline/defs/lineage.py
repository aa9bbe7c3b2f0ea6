"""Which datasets others are made of: as the asset graph shows it, and as an event says it of itself.

Of a dataset of this location its `published_version` is upstream, and where shards map one to one, its
`shards`, partition by partition. A version that is pinned, and a dataset that is named by its URL, are
assets that nobody here makes: that there are newer versions puts nothing out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_source import DatasetSource
from wds_pipeline.dataset import upstream
from wds_pipeline.defs import keys

_LOOKED_THROUGH = 20  # versions
_DATA_VERSION = "dagster/data_version"
_ALWAYS = "INITIAL"  # the data version of what has no event


@dataclass(frozen=True)
class Upstream:
    """A dataset that another is made of; `follows` says that their shards map one to one. `label` is that of
    the part of a merged source, or `base` of an overlay's."""

    source: DatasetSource
    label: str = ""
    follows: bool = False

    @property
    def is_here(self) -> bool:
        """Whether its newest version is what counts, and is made here."""
        return bool(self.source.name) and self.source.version == "latest"

    def key(self, dataset: str) -> dg.AssetKey:
        """What the dataset's `source_files` are made of."""
        if self.is_here:
            return keys.asset_key(self.source.name, keys.PUBLISHED_VERSION)
        if self.source.name:
            return keys.asset_key(self.source.name, f"version_{self.source.version}")
        return keys.asset_key(dataset, f"upstream_{self.label}" if self.label else "upstream")


def upstreams(config: DatasetConfig) -> list[Upstream]:
    """The datasets that one is made of, each once."""
    source, overlay = config.source, config.overlay
    found = [Upstream(overlay.base, "base", follows=True)] if overlay else []
    if source.dataset is not None:
        found.append(Upstream(source.dataset, follows=config.shards.layout == "source"))
    if source.merge is not None:
        found += [Upstream(part.dataset, part.label) for part in source.merge.parts if part.dataset]
    once: dict[dg.AssetKey, Upstream] = {}
    for each in found:
        once.setdefault(each.key(config.name), each)
    return list(once.values())


def source_deps(config: DatasetConfig) -> list[dg.AssetKey]:
    """What `source_files` depend on."""
    return [each.key(config.name) for each in upstreams(config)]


def followed(config: DatasetConfig) -> str | None:
    """The dataset of this location whose shards this one's are made of, one of one."""
    return next(
        (each.source.name for each in upstreams(config) if each.follows and each.is_here), None
    )


def shard_deps(config: DatasetConfig) -> list[dg.AssetDep]:
    """What `shards` depend on, beside the plan."""
    name = followed(config)
    if name is None:
        return []
    mapping = dg.IdentityPartitionMapping()
    return [dg.AssetDep(keys.asset_key(name, keys.SHARDS), partition_mapping=mapping)]


def external_specs(configs: Iterable[DatasetConfig]) -> list[dg.AssetSpec]:
    """The assets that datasets are made of and that are not made here, each once."""
    found: dict[dg.AssetKey, dg.AssetSpec] = {}
    for config in configs:
        for each in upstreams(config):
            if not each.is_here:
                key = each.key(config.name)
                found[key] = _spec(config, each, key)
    return list(found.values())


def _spec(config: DatasetConfig, each: Upstream, key: dg.AssetKey) -> dg.AssetSpec:
    source = each.source
    if source.name:
        return dg.AssetSpec(
            key,
            deps=[keys.asset_key(source.name, keys.PUBLISHED_VERSION)],
            group_name=source.name,
            kinds={"webdataset"},
            description=f"Version {source.version} of `{source.name}`, to which others are pinned.",
        )
    which = "the newest version" if source.version == "latest" else f"version {source.version}"
    return dg.AssetSpec(
        key,
        group_name=config.name,
        kinds={"webdataset"},
        description=f"A dataset that is published elsewhere: {which}"
        f"{f', the part {each.label}' if each.label else ''}.",
    )


def listing_tags(config: DatasetConfig, made_of: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a listing's event: which versions of other datasets it is of."""
    tags: dict[str, str] = {}
    taken = versions(made_of)
    for each in upstreams(config):
        # What is not made here has, to Dagster, the version that it always had.
        seen = str(taken.get(each.source.name, "")) if each.is_here else _ALWAYS
        tags |= input_tags(each.key(config.name), seen, None)
    return tags


def behind(instance: dg.DagsterInstance, config: DatasetConfig, tags: Mapping[str, str]) -> bool:
    """Whether the catalogue has a newer version of another dataset than a listing's tags speak of."""
    for each in upstreams(config):
        if each.is_here:
            key = each.key(config.name)
            event = instance.get_latest_materialization_event(key)
            found = event.asset_materialization if event else None
            known = (found.tags if found and found.tags else {}).get(_DATA_VERSION, "")
            seen = tags.get(_input(key), "")
            if known.isdigit() and (not seen.isdigit() or int(seen) < int(known)):
                return True
    return False


def shard_tags(
    instance: dg.DagsterInstance, config: DatasetConfig, made_of: Mapping[str, Any]
) -> dict[str, str]:
    """The tags of shards' events: which upstream shards they are made of. Dagster takes the newest event
    of the same partition, up to a certain one."""
    name = followed(config)
    if name is None:
        return {}
    last = _last_event_of(instance, name, versions(made_of).get(name, 0))
    return input_tags(keys.asset_key(name, keys.SHARDS), "", last)


def look_changed(
    instance: dg.DagsterInstance, config: DatasetConfig, made_of: Mapping[str, Any]
) -> set[str]:
    """The partitions whose upstream shards look as if they were others since they were taken in: a range of
    them was materialized, which gives them a data version that is not their digests."""
    name = followed(config)
    if name is None or _newest_logged(instance, name) != versions(made_of).get(name):
        return set()
    events, kind = instance.event_log_storage, dg.DagsterEventType.ASSET_MATERIALIZATION
    theirs, ours = (keys.asset_key(each, keys.SHARDS) for each in (name, config.name))
    tags = events.get_latest_tags_by_partition(theirs, kind, [_DATA_VERSION])
    of_range = {each for each, found in tags.items() if ":" not in found.get(_DATA_VERSION, "")}
    if not of_range:
        return set()
    since, taken = (events.get_latest_storage_id_by_partition(key, kind) for key in (theirs, ours))
    return {each for each in of_range if taken.get(each, 0) < since.get(each, 0)}


def _newest_logged(instance: dg.DagsterInstance, dataset: str) -> int | None:
    """The newest version that the catalogue has of a dataset."""
    key = keys.asset_key(dataset, keys.PUBLISHED_VERSION)
    records = instance.fetch_materializations(key, limit=1).records
    return _version_of(records[0]) if records else None


def _version_of(record: dg.EventLogRecord) -> int | None:
    event = record.asset_materialization
    value = event.metadata.get("version") if event else None
    return value.value if isinstance(value, dg.IntMetadataValue) else None


def _last_event_of(instance: dg.DagsterInstance, dataset: str, version: int) -> int | None:
    """The number of the last event before the dataset got another version than this; None if the catalogue
    does not know this one."""
    key = keys.asset_key(dataset, keys.PUBLISHED_VERSION)
    records = instance.fetch_materializations(key, limit=_LOOKED_THROUGH).records
    for number, record in enumerate(records):
        if _version_of(record) == version:
            newest = instance.event_log_storage.get_maximum_record_id()
            return newest if number == 0 else record.storage_id
    return None


def input_tags(key: dg.AssetKey, data_version: str, event: int | None) -> dict[str, str]:
    """What an event is made of, as Dagster writes it for assets that it materializes itself: with it, an
    asset is out of date only if the other has got another data version since."""
    return {
        _input(key): data_version,
        f"dagster/input_event_pointer/{key.to_user_string()}": str(event) if event else "NULL",
    }


def _input(key: dg.AssetKey) -> str:
    return f"dagster/input_data_version/{key.to_user_string()}"


def versions(made_of: Mapping[str, Any]) -> dict[str, int]:
    """By dataset, the version that a listing or a manifest says it is made of."""
    return {str(each["dataset"]): int(each["version"]) for each in upstream.taken_in(made_of)}
