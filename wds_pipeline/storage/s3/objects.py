"""A prefix of a bucket: asking for its objects, and reading them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
from botocore.exceptions import ClientError

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import (
    ConfigError,
    WdsPipelineError,
)
from wds_pipeline.storage.base import TEMPORARY, FileInfo, Storage
from wds_pipeline.storage.read_ahead import ReadAhead
from wds_pipeline.storage.s3.errors import BadAnswer, expect, read_answer
from wds_pipeline.storage.s3.listing import Lister, Page
from wds_pipeline.storage.s3.session import S3Session, session_for

_CONTACT_SECONDS = 4.0  # how long a first contact is tried, and each try of it
Result = TypeVar("Result")


class S3Objects(Storage):
    """A prefix of a bucket. Another process's writes are seen at once, as S3 has it since 2020."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        bucket, _, prefix = place.url.partition("://")[2].partition("/")
        if not bucket:
            raise ConfigError(f"{place.named}: found no bucket; expected s3://bucket/prefix")
        if place.storage.options:
            raise ConfigError(
                f"{place.named}: {place.part}.storage.options is for other stores; S3's settings have "
                "keys of their own, such as storage.endpoint_url"
            )
        self.bucket = bucket
        self.prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""

    @cached_property
    def _session(self) -> S3Session:
        return session_for(self.place)

    def _key(self, path: str) -> str:
        return self.prefix + path

    def _target(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path), **self._session.extra}

    def _ask(self, kind: str, path: str, work: Callable[[], Result]) -> Result:
        return self._session.call(kind, work, self.place, self.usage, self.locate(path))

    def check(self) -> None:
        """Asks for one key, within seconds, however patient the rest of the work is to be."""
        config = self.place.storage
        seconds = min(_CONTACT_SECONDS, config.retry_seconds)

        def ask(work: Callable[[], Page]) -> Page:
            call = self._session.call
            return call("list", work, self.place, self.usage, self.url, seconds)

        lister = Lister(self._session, self.prefix, ask)
        lister.page(most=1, timeout=min(_CONTACT_SECONDS, config.timeout_seconds))

    # Reading what is at a destination.

    def read(self, path: str) -> bytes:
        def get() -> bytes:
            answer = expect(self._session.client.get_object(**self._target(path)), "ETag")
            data: bytes = answer["Body"].read()
            return data

        with not_found(path):
            data = self._ask("get", path, get)
        self.usage.count("get", requests=0, read=len(data))
        return data

    def open(self, path: str) -> BinaryIO:
        answer = self._head(path)
        if answer is None:
            raise FileNotFoundError(path)
        etag = answer["ETag"]

        def fetch(offset: int, size: int) -> bytes:
            return self._range(path, offset, size, etag)

        stream = ReadAhead(answer["ContentLength"], fetch, self._session.ranges)
        return cast(BinaryIO, io.BufferedReader(stream, 64 * 1024))

    def _range(self, path: str, offset: int, size: int, etag: str) -> bytes:
        """Some bytes of a file that still has this etag. Raises FileNotFoundError, BadAnswer (412)."""

        def get() -> bytes:
            answer = self._session.client.get_object(
                **self._target(path), Range=f"bytes={offset}-{offset + size - 1}", IfMatch=etag
            )
            if expect(answer, "ETag")["ETag"] != etag:
                raise BadAnswer("PreconditionFailed", 412)
            data: bytes = answer["Body"].read()
            if len(data) != size:
                raise BadAnswer("IncompleteBody", 500)
            return data

        with not_found(path):
            data = self._ask("get", path, get)
        self.usage.count("get", requests=0, read=len(data))
        return data

    def _head(self, path: str) -> dict[str, Any] | None:
        def head() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = expect(
                    self._session.client.head_object(**self._target(path)),
                    "ETag",
                    "ContentLength",
                    "LastModified",
                )
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None  # of a bucket that is not there, `check` tells
                raise
            return found

        return self._ask("head", path, head)

    def stat(self, path: str) -> FileInfo | None:
        found = self._head(path)
        if found is None:
            return None
        return FileInfo(path, found["ContentLength"], found["LastModified"].timestamp())

    def _lister(self, folder: str) -> Lister:
        prefix = self._key(f"{folder.rstrip('/')}/" if folder else "")
        return Lister(self._session, prefix, lambda work: self._ask("list", folder, work))

    def list_files(self, folder: str = "") -> Iterator[FileInfo]:
        lister = self._lister(folder)
        for page in lister.pages(delimiter="/"):
            for key, size, seconds in zip(page.keys, page.sizes, _seconds(page), strict=True):
                if not key.endswith("/"):
                    yield FileInfo(key[len(self.prefix) :], int(size), seconds)

    def list_folders(self, folder: str = "") -> list[str]:
        lister = self._lister(folder)
        found = (each for page in lister.pages(delimiter="/") for each in page.folders)
        return sorted({each[len(lister.prefix) : -1] for each in found} - {""})

    def is_empty(self) -> bool:
        lister = self._lister("")
        return not any(
            page.folders or any(not self._is_droppable(key) for key in page.keys)
            for page in lister.pages(delimiter="/")
        )

    def _is_droppable(self, key: str) -> bool:
        name = key[len(self.prefix) :]
        return name.startswith(TEMPORARY) or not name


@contextmanager
def not_found(path: str) -> Iterator[None]:
    """Makes a missing key a FileNotFoundError, but not a missing bucket."""
    try:
        yield
    except WdsPipelineError as error:
        answer = read_answer(error.__cause__) if isinstance(error.__cause__, Exception) else None
        if answer is not None and answer.status == 404 and answer.code != "NoSuchBucket":
            raise FileNotFoundError(path) from None
        raise


def _seconds(page: Page) -> list[float]:
    """When each key was written, in seconds since 1970."""
    times = pa.array(page.times, pa.string()).cast(pa.timestamp("ms", "UTC"))
    return [value / 1000 for value in times.cast(pa.int64()).to_pylist()]
