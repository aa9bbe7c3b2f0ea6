"""A prefix of a bucket: asking for its objects, and reading them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
from botocore.exceptions import ClientError

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import (
    ConfigError,
    SourceChanged,
    WdsPipelineError,
)
from wds_pipeline.storage.base import REPLACED, TEMPORARY, FileInfo, Storage, Stored, check_range
from wds_pipeline.storage.read_ahead import ReadAhead
from wds_pipeline.storage.s3.errors import BadAnswer, expect, read_answer
from wds_pipeline.storage.s3.listing import Lister, Page
from wds_pipeline.storage.s3.ranges import ranges_of
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
        self.ranges = place.storage.concurrency
        self._process = -1

    @property
    def _session(self) -> S3Session:
        """That of this process: connections do not outlive a fork."""
        if self._process != os.getpid():
            if self._process >= 0:
                self.usage.after_fork()
            self._of_process = session_for(self.place)
            self._process = os.getpid()
        return self._of_process

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

    def read_range(
        self, path: str, offset: int, size: int, known: Stored | None = None
    ) -> tuple[memoryview, Stored]:
        """Some bytes of a file, and its state: its etag. Raises FileNotFoundError, SourceChanged."""
        ranges = ranges_of(self._session)
        wanted = known.state if known is not None else ""

        def get() -> tuple[memoryview, Stored]:
            data, stored = ranges.get(self._key(path), offset, size, wanted)
            check_range(path, offset, size, stored, known)
            if len(data) != size:
                raise BadAnswer("IncompleteBody", 500)
            return data, stored

        try:
            with not_found(path):
                answer = self._ask("get", path, get)
        except WdsPipelineError as error:
            cause = error.__cause__
            found = read_answer(cause) if isinstance(cause, Exception) else None
            if found is None or found.status not in (412, 416):
                raise
            shorter = f"it has fewer than {offset + size:,} bytes"
            raise SourceChanged(path, REPLACED if found.status == 412 else shorter) from None
        self.usage.count("get", requests=0, read=size)
        return answer

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Does the work in a thread, `storage.concurrency` of them at a time."""
        return self._session.reads.submit(work)

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
