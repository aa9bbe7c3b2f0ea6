"""A version that this project published, as the content of a catalog."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config_storage import Place
from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset import ledger, samples, seal, shard_report, version
from wds_pipeline.errors import DestinationError, VersionError, WdsPipelineError
from wds_pipeline.storage import Storage, open_storage
from wds_pipeline.training.catalog import ShardInfo

_INSIDE = (version.FOLDER, version.VIEWS, seal.FOLDER.rstrip("/"))


class PublishedOrigin(NamedTuple):
    """A version at its destination; all splits if `split` is None."""

    place: Place
    number: int
    split: str | None

    def load(self) -> Published:
        """Raises VersionError when the version is gone or cannot be read."""
        storage = open_storage(self.place)
        manifest = version.try_read(storage, self.number)
        if manifest is None:
            raise VersionError(
                f"{storage.url}: version {self.number}: {_why_gone(storage, self.number)}"
            )
        return Published(storage, manifest, self.split)


def resolve(place: Place, wanted: int | None, split: str | None) -> PublishedOrigin | None:
    """A version (None: the newest) and split that are there, at this moment; None if nothing was
    published there.

    Raises VersionError, saying what there is instead.
    """
    storage = open_storage(place)
    manifest = version.latest(storage) if wanted is None else version.try_read(storage, wanted)
    if manifest is None:
        have = version.list_versions(storage)
        if not have:
            return None
        name = version.read(storage, have[-1], "").dataset
        raise VersionError(
            f"{name}: {storage.url}: version {wanted} is not there; there are "
            f"{', '.join(map(str, have[-10:]))}; or version='latest'"
        )
    if split is not None and split not in manifest.splits:
        raise VersionError(
            f"{manifest.dataset}: version {manifest.version} has no split {split!r}; it has "
            f"{', '.join(manifest.splits)}{did_you_mean(split, manifest.splits)}"
        )
    return PublishedOrigin(place, manifest.version, split)


def destination_of(place: Place) -> str | None:
    """The destination that a folder or file seems to be in."""
    parts = place.url.rstrip("/").split("/")
    above = next((parts.index(name) for name in _INSIDE if name in parts), None)
    return "/".join(parts[:above]) if above else None


def nothing_there(place: Place) -> VersionError:
    """The error for a place where nothing was published."""
    above = destination_of(place)
    hint = f"; did you mean {above}?" if above else ""
    return VersionError(
        f"{place.url}: no version is published there; expected the destination of a dataset, with a "
        f"folder {version.FOLDER}/ in it, or tars with an index from `wds-pipeline index`{hint}"
    )


class Published:
    """What a published version, or a split of it, holds."""

    def __init__(self, storage: Storage, manifest: version.Manifest, split: str | None) -> None:
        self.storage = storage
        self.manifest = manifest
        self.dataset = manifest.dataset
        self.version = manifest.version
        self.split = split
        self.digest = manifest.digest if split is None else manifest.splits[split].digest
        self.title = f"{manifest.dataset}: version {manifest.version}"
        self.decoding = (
            f"`wds-pipeline verify {manifest.dataset} --level decode` finds it out, or build with "
            "`verify: {level: decode}`"
        )
        self.mend = (
            f"`wds-pipeline verify {manifest.dataset} --repair` packs it again from its source"
        )
        self._entries = manifest.of_split(split)
        self.shards = [
            ShardInfo(storage.locate(each.path), each.path, each.samples, each.bytes, each.digest)
            for each in self._entries
        ]

    def member_table(self, shard: int) -> pa.Table:
        """A shard's member index. Raises FileNotFoundError, VerificationError."""
        return seal.read_member_index(self.storage, self._entries[shard].name)

    def report_table(self, shard: int, columns: list[str]) -> pa.Table | None:
        """Some columns of a shard's report, a row a member; None if there is none that is readable."""
        return shard_report.read_columns(self.storage, self._entries[shard].name, columns)

    def field_names(self) -> list[str] | None:
        """The fields that the version's report tells of."""
        try:
            report = json.loads(version.read_file(self.storage, self.manifest, version.REPORT_JSON))
            return [each["field"] for each in report["fields"] if each["count"]]
        except (WdsPipelineError, ValueError, KeyError, TypeError):
            return None

    def key_table(self) -> pa.Table | None:
        """The samples' keys and the numbers of their shards, by the ledger; None where transforms made the
        samples, which the ledger does not know."""
        if self.manifest.transforms:
            return None
        table = version.read_table(self.storage, self.manifest, version.LEDGER)
        codes, names = ledger.names(table["split"])
        slots = table["slot"].to_numpy()
        number = {(each.split, each.slot): i for i, each in enumerate(self._entries)}
        places, which = np.unique(np.stack([codes, slots]), axis=1, return_inverse=True)
        shards = [number.get((names[code], slot), -1) for code, slot in places.T.tolist()]
        column = np.array(shards or [-1], np.int32)[which.reshape(-1)]
        here = pa.table({"key": table["key"], "shard": column})
        return here.filter(pc.greater_equal(here["shard"], 0))

    def why_no_key(self, key: str) -> str | None:
        """Whether a key is in the quarantine, or in another split."""
        table = version.read_table(self.storage, self.manifest, version.QUARANTINE)
        for row in table.filter(pc.equal(table["key"], key)).to_pylist():
            detail = row["detail"] or samples.advice(row["reason"])
            return f"it is in the quarantine: {row['reason']}: {detail}"
        if self.split is not None:
            table = version.read_table(self.storage, self.manifest, version.LEDGER)
            row = pc.index(table["key"], pa.scalar(key, table["key"].type)).as_py()
            if row >= 0:
                return f"it is in the split {table['split'][row].as_py()}"
        return None

    def why_gone(self) -> str | None:
        """What to say of a file that is gone, if its version is gone too."""
        try:
            if self.storage.stat(version.folder(self.version) + "manifest.json") is not None:
                return None
        except DestinationError:
            return None
        return _why_gone(self.storage, self.version)


def _why_gone(storage: Storage, number: int) -> str:
    left = version.list_versions(storage)
    known = f"open one of {', '.join(map(str, left[-10:]))}" if left else "no version is left"
    return (
        f"the version was removed, by `wds-pipeline gc` once the retention was over; {known}, and keep "
        "versions for as long as jobs read them (retention.versions, retention.days)"
    )
