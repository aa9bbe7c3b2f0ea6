"""What the `source:` of a dataset's YAML file may say: a folder, or something else that gives samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from wds_pipeline.config_storage import StorageConfig, check_no_password, check_slashes
from wds_pipeline.config_values import Glob, Model

Kind = Literal["url", "dataset", "shards", "table", "recipe", "merge"]
KINDS: tuple[Kind, ...] = ("url", "dataset", "shards", "table", "recipe", "merge")
_OF_A_FOLDER = ("include", "exclude", "follow_symlinks", "fingerprint")


def checked_url(url: str) -> str:
    """The URL. Raises ValueError for one that would be misread or has a password in it."""
    check_no_password(url)
    check_slashes(url)
    return url


def _or(*types: str) -> ConfigDict:
    """For the schema: what may be written instead of the keys."""

    def widen(schema: dict[str, Any]) -> None:
        inner = dict(schema)
        schema.clear()
        schema["anyOf"] = [inner, *({"type": each} for each in types)]
        schema["properties"] = {}  # all of them are in `anyOf`

    return ConfigDict(json_schema_extra=widen)


class DatasetSource(Model):
    """A published version of another dataset; a bare name will do."""

    model_config = _or("string")

    name: str = ""
    """A dataset of this folder of YAML files. Then the two are linked in Dagster's asset graph."""
    url: str = ""
    """Or the destination of a dataset, wherever its file is: a folder or URL."""
    storage: StorageConfig = StorageConfig()
    """With `url`: how that store is reached, where its usual settings do not say it."""
    version: int | Literal["latest"] = "latest"
    """The version to take; a number pins it."""
    splits: list[str] | None = None
    """Only samples of these splits; by default all."""
    where: str | None = None
    """Only samples that answer a query, such as `jpg.width >= 256 and txt.chars > 10`; its columns are those
    that verification found out (`width`, `height`, `chars`, `size`, `format`)."""
    fields: list[str] | None = None
    """Only these fields; by default all."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        return checked_url(url)

    @model_validator(mode="after")
    def _one_of(self) -> DatasetSource:
        if bool(self.name) == bool(self.url):
            raise ValueError(
                "expected either `name`, a dataset of this folder, or `url`, a destination"
            )
        return self


class ShardsSource(Model):
    """Tars that somebody else made; a bare pattern or a list of them will do."""

    model_config = _or("string", "array")

    urls: list[str] = Field(min_length=1)
    """Paths or URLs: with braces (`cc3m-{0000..0575}.tar`), `*`, joined by `::`, or folders of tars."""
    storage: StorageConfig = StorageConfig()
    """How their store is reached, where its usual settings do not say it."""
    fields: list[str] | None = None
    """Only these fields; by default all."""
    on_damage: Literal["error", "keep"] = "error"
    """What happens when a tar is cut or damaged. `error`: nothing is built. `keep`: the samples before the
    damage are taken; the last of them, which may lack members, goes to the quarantine."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"urls": [value]}
        return {"urls": value} if isinstance(value, list) else value

    @field_validator("urls")
    @classmethod
    def _url(cls, urls: list[str]) -> list[str]:
        return [checked_url(url) for url in urls]


class ColumnConfig(Model):
    """A column of a table, and what its cells are; a bare name is a column of values."""

    model_config = _or("string")

    column: str
    """The column's name."""
    holds: Literal["value", "path", "url"] = "value"
    """`value`: the content itself; `path`: the path of a file below `base`; `url`: a URL to download."""
    base: str = ""
    """With `holds: path`: the folder or URL that the paths start at; by default the table's folder."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("base")
    @classmethod
    def _url(cls, url: str) -> str:
        return checked_url(url)


class DownloadConfig(Model):
    """How URLs are downloaded."""

    concurrency: int = Field(default=32, ge=1, le=1024)
    """How many downloads are under way at a time."""
    timeout_seconds: float = Field(default=30, gt=0)
    """A server that sends nothing for so long has failed."""
    retries: int = Field(default=3, ge=0)
    """How often a download that failed in passing (no answer, 429, 5xx) is tried again."""
    max_bytes: int = Field(default=100_000_000, ge=1)
    """A larger file is not taken."""


class TableSource(Model):
    """A table: a row a sample, a column a field."""

    url: str = Field(min_length=1)
    """A file or folder of files: `.jsonl`, `.csv`, `.tsv`, `.parquet`, or `.txt` with a URL a line."""
    storage: StorageConfig = StorageConfig()
    """How its store is reached, where its usual settings do not say it."""
    format: Literal["jsonl", "csv", "tsv", "parquet", "txt"] | None = None
    """By default what the file's name says."""
    key: str = ""
    """The column with the samples' keys; by default the rows' numbers, nine digits; of a `.txt`, `hash`
    (of the URL, the default) or `stem` (its file's name)."""
    fields: dict[str, ColumnConfig] = Field(min_length=1)
    """Field → its column: `txt: caption`, `jpg: {column: image, holds: path}`."""
    download: DownloadConfig = DownloadConfig()
    """With `holds: url`: how."""


class RecipeSource(Model):
    """A list as `tarp create` takes it: a line a member, `name source`; a bare path will do."""

    model_config = _or("string")

    url: str = Field(min_length=1)
    """The list's file. A source is a path, `file:path`, `text:content`, or `pipe:command`."""
    storage: StorageConfig = StorageConfig()
    """How its store is reached, where its usual settings do not say it."""
    base: str = ""
    """The folder or URL that the paths start at; by default the list's folder."""
    allow_pipe: bool = False
    """Permits `pipe:`, which runs commands that the list has in it, as this user."""
    timeout_seconds: float = Field(default=600, gt=0)
    """A `pipe:` that takes longer has failed; it is ended, with all that it started."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @field_validator("url", "base")
    @classmethod
    def _url(cls, url: str) -> str:
        return checked_url(url)


class MergePart(Model):
    """One part of a merged source: any other kind, and its label."""

    label: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """The first folder of its samples' keys: `captions/0001`."""
    dataset: DatasetSource | None = None
    """A published version of another dataset."""
    shards: ShardsSource | None = None
    """Tars that somebody else made."""
    table: TableSource | None = None
    """A table."""
    recipe: RecipeSource | None = None
    """A list of members."""

    @model_validator(mode="after")
    def _one_of(self) -> MergePart:
        given = [kind for kind in KINDS if getattr(self, kind, None) is not None]
        if len(given) != 1:
            raise ValueError(
                f"found {', '.join(given) or 'nothing'}; expected one of dataset, shards, table, recipe"
            )
        return self


class MergeSource(Model):
    """Several sources as one; a bare list of parts will do."""

    model_config = _or("array")

    parts: list[MergePart] = Field(min_length=1)
    """The parts, each with its label."""
    label_field: str = ""
    """A text field that each sample gets, with the label of its part."""

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"parts": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _labels(self) -> MergeSource:
        labels = [part.label for part in self.parts]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"the label {label!r} is given twice; labels must differ")
        return self


class SourceConfig(Model):
    """What the dataset is made of: a folder of raw files (`url`), or one of the others."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [kind]} for kind in KINDS]},
    )

    url: str = ""
    """A folder (a relative one starts at the folder of this YAML file), `s3://bucket/prefix`, or any
    URL that fsspec can list: `http(s)://`, `gs://`, `az://`, `sftp://`, `hf://`."""
    storage: StorageConfig = StorageConfig()
    """How that store is reached, where its usual settings do not say it."""
    include: list[Glob] = ["**"]
    """Globs of the paths to take, relative to the source; `**` crosses folders, `{a,b}` is a or b."""
    exclude: list[Glob] = []
    """Globs of the paths to leave out; they win over `include`. A folder (`tmp/`, `**/tmp/**`) that is
    left out is not even opened."""
    follow_symlinks: Literal["inside", "always", "never"] = "inside"
    """`inside`: symbolic links are followed unless they leave the source."""
    fingerprint: Literal["stat", "content"] = "stat"
    """How an edit is noticed. `stat`: by size and time of modification, in an object store by size and
    etag. `content`: by a hash of the whole content (reads every file at each scan; for folders whose
    times mean nothing, such as a fresh git checkout)."""
    dataset: DatasetSource | None = None
    """Instead of a folder: a published version of another dataset, by its name (`dataset: captions`)."""
    shards: ShardsSource | None = None
    """Instead of a folder: tars that somebody else made (`shards: 'cc3m-{0000..0575}.tar'`)."""
    table: TableSource | None = None
    """Instead of a folder: a table, a row a sample."""
    recipe: RecipeSource | None = None
    """Instead of a folder: a list of members (`recipe: members.txt`)."""
    merge: MergeSource | None = None
    """Instead of a folder: several of the others, each with a label."""

    @field_validator("url")
    @classmethod
    def _checked(cls, url: str) -> str:
        return checked_url(url)

    @model_validator(mode="after")
    def _one_of(self) -> SourceConfig:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if not given:
            raise ValueError(
                f"found none of {', '.join(KINDS)}; expected one: url is a folder of raw files"
            )
        if len(given) > 1:
            raise ValueError(f"found {' and '.join(given)}; expected one of them (several: merge)")
        if given != ["url"]:
            for name in (*_OF_A_FOLDER, "storage"):
                if name in self.model_fields_set:
                    where = f"; write {given[0]}.storage" if name == "storage" else ""
                    raise ValueError(f"{name} goes with url, a folder of raw files{where}")
        return self

    @property
    def kind(self) -> Kind:
        """Which of them it is; `url` is a folder."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def upstream(self) -> list[DatasetSource]:
        """The other datasets that it takes samples from."""
        parts = (
            [self.dataset, *(part.dataset for part in self.merge.parts)]
            if self.merge
            else [self.dataset]
        )
        return [each for each in parts if each is not None]
