"""How a store is reached: what a dataset's YAML may say under `storage:` of its source or destination.

Credentials are not among it. They come from where the store's own tools look for them: the
environment, a profile, the machine's role.
"""

from __future__ import annotations

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wds_pipeline.config_values import Model

_SECRET = re.compile(
    r"(^|_)(key|secret|token|password|passwd|passphrase|connection_string|credential)$"
)
_NEARLY_A_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):|(s3|gs|az|abfs|sftp|https?|hf|file)//")
_NO_SECRET = ("sse_kms_key", "key_filename")


class StorageConfig(Model):
    """How a store is reached, where its usual settings (environment, profile) do not say it.

    The first eight are for `s3://`; `options` are for the others.
    """

    profile: str | None = None
    """The profile of ~/.aws/config to take credentials, region and endpoint from; by default
    AWS_PROFILE, or the default one."""
    endpoint_url: str | None = None
    """The server of an S3-compatible store (`https://minio.example.org`); by default
    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, or Amazon's."""
    region: str | None = None
    """By default AWS_REGION, AWS_DEFAULT_REGION, or the profile's."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket stands in the path or in the host's name. `auto`: in the path wherever an
    endpoint is given."""
    anonymous: bool = False
    """Sends requests unsigned: for public buckets."""
    requester_pays: bool = False
    """Agrees to pay for requests to a bucket whose owner does not."""
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Server-side encryption of what is written; by default the bucket's."""
    sse_kms_key: str | None = None
    """The id of the KMS key, with `sse: aws:kms`."""
    options: dict[str, Any] = {}
    """Of any other kind of URL: what its fsspec filesystem takes (`sftp`: `{port: 2222}`)."""
    concurrency: int = Field(default=128, ge=1, le=1024)
    """How many requests a worker has under way at a time, at most."""
    timeout_seconds: float = Field(default=30, gt=0)
    """A request without an answer, or without a byte of it, for so long has failed."""
    retry_seconds: float = Field(default=60, ge=0)
    """For how long a request that failed in passing (throttled, reset, 5xx) is tried again, with
    growing, random pauses."""

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in _secrets(options):
            raise ValueError(
                f"{name!r} looks like a credential, which does not belong into this file; give it by "
                "the environment or by a file of the store's own tools"
            )
        return options

    @field_validator("endpoint_url")
    @classmethod
    def _url(cls, url: str | None) -> str | None:
        if url is not None:
            check_no_password(url)
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"found {url!r}; expected a URL such as https://minio.example.org")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> StorageConfig:
        if self.sse_kms_key and not (self.sse or "").startswith("aws:kms"):
            raise ValueError("sse_kms_key goes with `sse: aws:kms`")
        if self.anonymous and self.profile:
            raise ValueError("`anonymous: true` and `profile` exclude each other")
        return self


class Place(BaseModel):
    """All that a worker, here or elsewhere, needs to open one end of a dataset; no secret is in it."""

    model_config = ConfigDict(frozen=True)

    url: str
    storage: StorageConfig = StorageConfig()
    dataset: str = ""
    part: Literal["source", "destination"] = "destination"
    single_writer: bool = False
    """The user makes sure that nobody else commits at the same time."""

    @property
    def scheme(self) -> str:
        """`file`, `s3`, …"""
        return scheme_of(self.url)

    @property
    def named(self) -> str:
        """How messages name it: `captions: source.url: s3://raw/captions`."""
        head = f"{self.dataset}: {self.part}.url: " if self.dataset else ""
        return head + self.url


def scheme_of(url: str) -> str:
    """A URL's scheme in lower case; `file` for a plain path."""
    return url.partition("://")[0].lower() if "://" in url else "file"


def is_folder(url: str) -> bool:
    """Whether a URL is a folder of a local or mounted filesystem."""
    return scheme_of(url) in ("file", "local")


def check_no_password(url: str) -> None:
    """Raises ValueError for a URL with a password in it: URLs are shown and stored."""
    if "://" in url and urlsplit(url).password is not None:
        shown = re.sub(r"//[^@/]*@", "//…@", url)
        raise ValueError(
            f"{shown} has a password in it; URLs are shown and stored, so give credentials by the "
            "environment or by a file of the store's own tools"
        )


def check_slashes(url: str) -> None:
    """Raises ValueError for a URL that lacks a slash or the colon, and would be taken for a folder."""
    match = _NEARLY_A_URL.match(url)
    if match and "://" not in url:
        scheme, rest = match[1] or match[2], url[match.end() :].lstrip("/")
        raise ValueError(
            f"found {url!r}; did you mean {scheme}://{rest}? For a folder of that name write ./{url}"
        )


def absolute(url: str, base: str | os.PathLike[str]) -> str:
    """A URL as it is; a path made absolute from a folder."""
    if "://" in url:
        return url
    return os.path.normpath(os.path.join(os.getcwd(), base, os.path.expanduser(url)))


def _secrets(options: dict[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        if isinstance(value, dict):
            found += _secrets(value)
        elif _SECRET.search(str(name).lower()) and name not in _NO_SECRET:
            found.append(str(name))
    return found
