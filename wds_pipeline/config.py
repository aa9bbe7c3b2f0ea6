"""What a dataset's YAML file may say: the models that validate it.

The models' field descriptions are the reference: the JSON schema (`wds-pipeline schema`) and
`docs/config.md` come from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import ByteSize, Field, PrivateAttr, field_validator, model_validator

from wds_pipeline.config_automation import FreshnessConfig, Schedule, SensorConfig
from wds_pipeline.config_combine import CombineConfig as CombineConfig
from wds_pipeline.config_compute import ComputeConfig as ComputeConfig
from wds_pipeline.config_overlay import OverlayConfig as OverlayConfig
from wds_pipeline.config_source import KINDS, DatasetSource
from wds_pipeline.config_source import SourceConfig as SourceConfig
from wds_pipeline.config_split import SplitConfig as SplitConfig
from wds_pipeline.config_split import check_split_name as check_split_name
from wds_pipeline.config_storage import (
    Place,
    StorageConfig,
    absolute,
    check_no_password,
    check_slashes,
)
from wds_pipeline.config_transforms import Transforms
from wds_pipeline.config_values import (
    Callable,
    ExportName,
    Model,
    Regex,
    Share,
    Size,
    did_you_mean,
)
from wds_pipeline.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")  # Dagster takes tags of 63 characters
_OWNER = re.compile(r"team:\w+|[\w.%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", re.ASCII)
_NOT_OF_THE_CONTENT: Any = {
    **dict.fromkeys(("description", "destination", "compute", "retention", "schedule"), True),
    **dict.fromkeys(("sensor", "freshness", "owners", "on_failure", "exports", "combine"), True),
    "source": {
        "storage": True,
        **{kind: {"storage"} for kind in ("dataset", "shards", "table", "recipe")},
    },
    "overlay": {"base": {"storage"}},
}


Policy = Literal["error", "quarantine", "keep"]


class DestinationConfig(Model):
    """Where versions are published."""

    url: str = Field(min_length=1)
    """A folder (a relative one starts at the folder of this YAML file), `s3://bucket/prefix`, or any
    other URL that fsspec can write to."""
    storage: StorageConfig = StorageConfig()
    """How that store is reached, where its usual settings do not say it."""
    commit: Literal["conditional", "single_writer"] = "conditional"
    """How a version is committed. `conditional`: by a create that fails if the name exists, which is
    safe whatever else runs; the build refuses a store without it. `single_writer`: by looking first,
    for such a store, when you make sure that only one build of the dataset runs at a time."""

    @field_validator("url")
    @classmethod
    def _readable_by_webdataset(cls, url: str) -> str:
        check_no_password(url)
        check_slashes(url)
        for bad in ("{", "}", "::", "pipe:"):
            if bad in url:
                raise ValueError(
                    f"webdataset would misread URLs with {bad!r}; choose another folder"
                )
        return url


class KeyRule(Model):
    """Rewrites keys, so that files of several folders can form one sample."""

    pattern: Regex
    """A regular expression (Python's), searched in the key."""
    replace: str = ""
    """What each match becomes; `\\1` is the first group."""

    @model_validator(mode="after")
    def _replaceable(self) -> KeyRule:
        try:
            re.sub(self.pattern, self.replace, "")
        except (re.error, IndexError) as error:
            raise ValueError(
                f"replace: {self.replace!r} does not fit the pattern: {error}"
            ) from None
        return self


class SamplesConfig(Model):
    """How files form samples, and what happens to those that cannot be used."""

    naming: Literal["strict", "webdataset", "last_dot", "escape"] = "strict"
    """Where a file's name splits into key and field. `strict`: at the first dot, as WebDataset does;
    a field with a dot of its own (`photo.v2.jpg`) must be listed in `fields`, or its sample goes to
    the quarantine. `webdataset`: at the first dot, any field. `last_dot`: at the last dot, other dots
    become `_`. `escape`: at the last dot, other dots become `%2E`."""
    key: KeyRule | None = None
    """Rewrites keys, so that `images/1.jpg` and `captions/1.txt` can be one sample."""
    fields: dict[str, list[str]] | None = None
    """Field → the extensions that it is made of (`jpg: [jpg, jpeg]`). Files with other extensions
    are ignored and counted. Without it, every extension is a field."""
    required: list[str] = []
    """Fields without which a sample is incomplete."""
    on_missing: Policy = "quarantine"
    """What happens to a sample without a required field."""
    on_invalid: Policy = "quarantine"
    """What happens to a sample with content that does not decode: a broken image, an image of
    another format than its extension says, an empty file, text that is not UTF-8, json that does
    not parse."""
    on_bad_name: Literal["error", "quarantine"] = "quarantine"
    """What happens to a sample that tar, webdataset or a filesystem would misread."""
    max_quarantined: Share = 0.01
    """The build fails when a larger share of the samples is in the quarantine."""

    @field_validator("fields")
    @classmethod
    def _lower_case(cls, fields: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        if fields is None:
            return None
        owner: dict[str, str] = {}
        clean: dict[str, list[str]] = {}
        for name, extensions in fields.items():
            for each in (name, *extensions):
                if not each or each != each.strip(". ") or "/" in each or each.startswith("__"):
                    raise ValueError(f"{each!r}: expected an extension such as jpg or seg.png")
            if name != name.lower():
                raise ValueError(f"{name!r}: webdataset reads fields in lower case; write it so")
            clean[name] = list(dict.fromkeys(each.lower() for each in extensions))
            for each in clean[name]:
                if owner.setdefault(each, name) != name:
                    raise ValueError(f"the extension {each!r} is in {owner[each]!r} and {name!r}")
        return clean

    @model_validator(mode="after")
    def _required_fields_exist(self) -> SamplesConfig:
        for name in self.required:
            if self.fields is not None and name not in self.fields:
                raise ValueError(
                    f"required: {name!r} is not in fields ({', '.join(self.fields)})"
                    f"{did_you_mean(name, self.fields)}"
                )
        return self


class ShardsConfig(Model):
    """How large shards are, and how their bytes are named."""

    max_bytes: Size = ByteSize(256_000_000)
    """A shard is closed before it grows beyond this (256MB, 1GiB, …)."""
    max_samples: int = Field(default=10_000, ge=1)
    """A shard is closed at this many samples."""
    compact_below: Share = 0.0
    """Closed shards that deletions left emptier than this share of `max_bytes` (and of
    `max_samples`) are dissolved into others at the next build; 0 never moves a sample."""
    layout: Literal["hash", "source"] = "hash"
    """Which samples share a shard. `hash`: new ones are ordered by a hash of their keys, so that each
    shard is a random part of the whole. `source`: with `source.dataset`, those that share one there;
    each shard is made of one of that dataset's, in its order."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """With `layout: hash`: another number gives new samples another order, and all of them after
    `wds-pipeline repack`."""
    digest: Literal["xxh3-128", "sha256"] = "xxh3-128"
    """The shards' digest: the fast one notices every accident, the cryptographic one also intent."""

    @field_validator("max_bytes")
    @classmethod
    def _positive(cls, value: ByteSize) -> ByteSize:
        if value < 1:
            raise ValueError("expected at least 1 byte")
        return value


class VerifyConfig(Model):
    """How much of what was stored is read back, before it is published."""

    level: Literal["stat", "digest", "samples", "decode"] = "decode"
    """`stat`: every shard is there, in its size; `digest`: and in its bytes; `samples`: and its
    members are those of the plan, read by another program than the writer; `decode`: and images,
    json, text and arrays decode."""
    sample: Share = 1.0
    """The share of the samples to decode; the other levels are always whole."""
    max_pixels: int = Field(default=100_000_000, ge=1)
    """An image with more pixels is not decoded but reported as a decompression bomb."""
    on_leak: Literal["warn", "error"] = "warn"
    """Whether the same content in two splits fails the build."""


class RetentionConfig(Model):
    """Which versions `gc` keeps; the newest is always kept."""

    versions: int = Field(default=10, ge=1)
    """How many of the newest versions to keep."""
    days: float = Field(default=30, ge=0)
    """Versions younger than this are kept too."""


class DatasetConfig(Model):
    """One dataset."""

    name: str
    """Lower-case letters, digits and `_`; the Dagster job is `<name>_build`."""
    description: str = ""
    """One sentence for those who find the dataset in the UI."""
    source: SourceConfig
    destination: DestinationConfig
    samples: SamplesConfig = SamplesConfig()
    transforms: Transforms = []
    """What is done to each sample before it is packed: a list of transforms, each its name and parameters
    (`- resize: {fields: [jpg], size: 256}`), built in or of your own (`package.module:function`)."""
    overlay: OverlayConfig | None = None
    """Makes this dataset new fields of another one's samples: each shard holds what belongs to the samples of
    one of the base's, in their order, and both are read as one."""
    split: SplitConfig = SplitConfig()
    shards: ShardsConfig = ShardsConfig()
    verify: VerifyConfig = VerifyConfig()
    compute: ComputeConfig = ComputeConfig()
    retention: RetentionConfig = RetentionConfig()
    exports: list[ExportName] = []
    """What each version has for other tools, beside its manifest: `wids`, `energon`, `dali`,
    `streaming_wds`, `open_clip`, `huggingface`, `croissant`, `urls`, `sample_table`."""
    combine: CombineConfig | None = None
    """Of a token dataset: how `<name>_combine` and `wds-pipeline combine` make one memory-mapped folder of
    it."""
    schedule: Schedule | None = None
    """When Dagster builds, verifies and tidies up by itself; a bare cron expression is `build`, in UTC."""
    sensor: SensorConfig | None = None
    """Builds the dataset when its source changes; `sensor: {}` will do."""
    freshness: FreshnessConfig = FreshnessConfig()
    owners: list[str] = []
    """Who answers for the dataset, shown in the UI: mail addresses or `team:name`."""
    on_failure: Callable | None = None
    """`package.module:function`, called with a `FailedRun` when a run of this dataset fails: an alert."""

    _file: Path | None = PrivateAttr(default=None)
    _written: dict[str, Any] = PrivateAttr(default_factory=dict)
    _upstream: dict[str, Place] = PrivateAttr(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _asset_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"found {name!r}; expected lower-case letters, digits and _, at most 50, e.g. captions"
            )
        return name

    @field_validator("owners")
    @classmethod
    def _owners(cls, owners: list[str]) -> list[str]:
        for owner in owners:
            if not _OWNER.fullmatch(owner):
                raise ValueError(
                    f"found {owner!r}; expected a mail address, or team: and a name of letters, "
                    "digits and _"
                )
        return owners

    @model_validator(mode="after")
    def _named_already(self) -> DatasetConfig:
        """What is not a folder has samples already, with webdataset's names."""
        if self.source.kind != "url" and "naming" not in self.samples.model_fields_set:
            named = self.samples.model_copy(update={"naming": "webdataset"})
            object.__setattr__(self, "samples", named)
        if self.shards.layout == "source":
            if self.source.kind != "dataset":
                raise ValueError(
                    "shards.layout: source goes with source.dataset: the shards are laid out as that "
                    "dataset's"
                )
            if "split" in self.model_fields_set:
                raise ValueError(
                    "split: with shards.layout: source the splits are the other dataset's"
                )
            for name in sorted(self.shards.model_fields_set - {"digest", "layout"}):
                raise ValueError(
                    f"shards.{name}: with shards.layout: source the shards are as large as that dataset's; "
                    "remove one of the two"
                )
        return self

    @model_validator(mode="after")
    def _laid_out_as_the_base(self) -> DatasetConfig:
        if self.overlay is not None:
            if "split" in self.model_fields_set:
                raise ValueError("split: with an overlay the splits are the base's")
            for name in sorted(self.shards.model_fields_set - {"digest"}):
                raise ValueError(
                    f"shards.{name}: with an overlay the shards are laid out as the base's"
                )
        return self

    @property
    def upstream(self) -> list[DatasetSource]:
        """The other datasets that it needs: those that it takes samples from, and an overlay's base."""
        return [*self.source.upstream, *([self.overlay.base] if self.overlay else [])]

    @property
    def says_split(self) -> bool:
        """Whether it has a `split:` of its own; else samples of other datasets keep their splits."""
        return "split" in self.model_fields_set

    @property
    def file(self) -> Path | None:
        """The YAML file, if it came from one."""
        return self._file

    @property
    def written(self) -> dict[str, Any]:
        """The configuration as its file says it, `${NAME}` unexpanded: safe to store and to show."""
        return self._written or self.model_dump(mode="json", exclude_unset=True)

    def resolve(self, url: str) -> str:
        """A URL or path of the configuration, made absolute from the YAML file's folder."""
        return absolute(url, self._file.parent if self._file else "")

    @property
    def combine_folder(self) -> Path | None:
        """The folder that `combine.url` names, if it does."""
        url = self.combine.url if self.combine else ""
        return Path(self.resolve(url)) if url else None

    @property
    def source_url(self) -> str:
        """The source, as messages name it."""
        source = self.source
        if source.dataset is not None:
            return source.dataset.name or self.resolve(source.dataset.url)
        if source.shards is not None:
            first, more = source.shards.urls[0], len(source.shards.urls) - 1
            return self.resolve(first) + (f" and {more:,} more" if more else "")
        if source.merge is not None:
            return " + ".join(part.label for part in source.merge.parts)
        other = source.table or source.recipe
        return self.resolve(source.url if other is None else other.url)

    def upstream_place(self, other: DatasetSource) -> Place:
        """Where another dataset is published.

        Raises ConfigError for a name that is not among the datasets that this one was read with.
        """
        if not other.name:
            return Place(url=self.resolve(other.url), storage=other.storage, dataset=self.name)
        if other.name not in self._upstream:
            known = ", ".join(self._upstream)
            key = self._asks_as(other)
            raise ConfigError(
                f"{self._file or self.name}: {key}: {other.name!r}: no such dataset"
                f"{did_you_mean(other.name, self._upstream) or ';'} known datasets: {known or 'none'}; or "
                f"name its destination: {key.rpartition('.')[2]}: {{url: …}}"
            )
        return self._upstream[other.name]

    def _asks_as(self, other: DatasetSource) -> str:
        return "overlay.base" if self.overlay and other is self.overlay.base else "source.dataset"

    def with_upstream(self, others: Mapping[str, DatasetConfig]) -> DatasetConfig:
        """This dataset, knowing where the others that it may take samples from are published."""
        self._upstream = {name: each.destination_place for name, each in others.items()}
        return self

    @property
    def destination_url(self) -> str:
        return self.resolve(self.destination.url)

    @property
    def source_place(self) -> Place:
        """The source, as `open_storage` takes it, here or in a worker."""
        return Place(
            url=self.source_url, storage=self.source.storage, dataset=self.name, part="source"
        )

    @property
    def destination_place(self) -> Place:
        """The destination, as `open_storage` takes it, here or in a worker."""
        return Place(
            url=self.destination_url,
            storage=self.destination.storage,
            dataset=self.name,
            part="destination",
            single_writer=self.destination.commit == "single_writer",
        )

    def shown_url(self, part: Literal["source", "destination"]) -> str:
        """The URL for people: with `${NAME}` where the file says so, and not what that stands for."""
        written = _first_url(self.written.get(part))
        if "${" in written:
            return written
        return self.source_url if part == "source" else self.destination_url

    def digest(self) -> str:
        """A digest of all that decides what a build publishes (not of who does the work, or when)."""
        parts = self.model_dump(mode="json", exclude=_NOT_OF_THE_CONTENT)
        return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def _first_url(written: Any) -> str:
    """The first URL of a source or destination as its file has it, whatever its kind is."""
    if isinstance(written, Mapping):
        names = ("url", "urls", *KINDS)
        return _first_url(next((written[name] for name in names if name in written), ""))
    if isinstance(written, list):
        return _first_url(written[0]) if written else ""
    return str(written or "")


def json_schema() -> dict[str, Any]:
    """The JSON schema of a dataset's YAML file, for editors."""
    schema = DatasetConfig.model_json_schema()
    split = schema["$defs"]["SplitConfig"]
    split["properties"].pop("ratios")
    split["additionalProperties"] = Share.__metadata__[-1].json_schema  # type: ignore[attr-defined]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
