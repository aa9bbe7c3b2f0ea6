"""`s3://bucket/prefix`: Amazon S3 and what speaks like it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar, cast

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from botocore.exceptions import ClientError
from obstore.exceptions import NotFoundError, PreconditionError

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    SourceChanged,
    SourceError,
    WdsPipelineError,
)
from wds_pipeline.storage import conditional
from wds_pipeline.storage.base import CONTENT, KEYS, TEMPORARY, FileInfo, Read, Storage, Writer
from wds_pipeline.storage.read_ahead import ReadAhead
from wds_pipeline.storage.s3_errors import BadAnswer, read_answer
from wds_pipeline.storage.s3_list import Lister, Page
from wds_pipeline.storage.s3_session import S3Session, session_for
from wds_pipeline.storage.s3_upload import Upload, put_whole

_ETAG = "etag:"  # a fingerprint that is the store's etag starts so
_BLOCK = 8 * 1024 * 1024
_AHEAD = 3
_COPY_LIMIT = 5 * 1024**3  # of one request
_ROWS = 50_000
Result = TypeVar("Result")


@dataclass(frozen=True)
class Unfinished(FileInfo):
    """An upload that nobody completed; `id` is the store's name for it."""

    id: str = ""


class S3Storage(Storage):
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

    @property
    def _session(self) -> S3Session:
        return session_for(self.place)

    def _key(self, path: str) -> str:
        return self.prefix + path

    def _target(self, path: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._key(path), **self._session.extra}

    def _ask(self, kind: str, path: str, work: Callable[[], Result]) -> Result:
        return self._session.call(kind, work, self.place, self.usage, self.locate(path))

    def check(self) -> None:
        self._session.contact(self.place, self.usage, self.url, self.prefix)

    # Reading what is at a destination.

    def read(self, path: str) -> bytes:
        return self._get(path)[0]

    def _get(self, path: str, **more: str) -> tuple[bytes, dict[str, Any]]:
        def get() -> tuple[bytes, dict[str, Any]]:
            answer = self._session.client.get_object(**self._target(path), **more)
            return answer["Body"].read(), answer

        with _not_found(path):
            data, answer = self._ask("get", path, get)
        self.usage.count("get", requests=0, read=len(data))
        return data, answer

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
            if answer["ETag"] != etag:
                raise BadAnswer("PreconditionFailed", 412)
            data: bytes = answer["Body"].read()
            if len(data) != size:
                raise BadAnswer("IncompleteBody", 500)
            return data

        with _not_found(path):
            data = self._ask("get", path, get)
        self.usage.count("get", requests=0, read=len(data))
        return data

    def _head(self, path: str) -> dict[str, Any] | None:
        def head() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._session.client.head_object(**self._target(path))
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

    # Reading a source's files.

    def start_reads(self, reads: Sequence[Read]) -> Callable[[], None]:
        threads = self._session.reads
        running: list[Future[None]] = [threads.submit(self._fill, each) for each in reads]

        def finish() -> None:
            try:
                wait(running, return_when=FIRST_EXCEPTION)
                for each in running:
                    each.result()
            finally:
                wait([each for each in running if not each.cancel()])  # the views are reused

        return finish

    def _fill(self, read: Read) -> None:
        path, fingerprint = read.path, read.fingerprint
        wanted = _etag_of(fingerprint)
        options: Any = {"if_match": f'"{wanted}"'} if wanted else None

        def get() -> None:
            try:
                answer = obstore.get(self._session.reader, self._key(path), options=options)
            except ValueError:  # a key that obstore cannot say, such as a//b
                return self._fill_slowly(read, wanted)
            self._check_meta(path, answer.meta, len(read.view), wanted)
            data = answer.bytes()
            if len(data) != len(read.view):
                raise BadAnswer("IncompleteBody", 500)
            read.view[:] = memoryview(data)

        self._ask_source("get", path, get)
        self.usage.count("get", requests=0, read=len(read.view))
        if fingerprint.startswith(CONTENT):
            _check_content(path, xxhash.xxh3_128_hexdigest(read.view), fingerprint)

    def _fill_slowly(self, read: Read, etag: str) -> None:
        more = {"IfMatch": f'"{etag}"'} if etag else {}
        answer = self._session.client.get_object(**self._target(read.path), **more)
        meta = {"size": answer["ContentLength"], "e_tag": answer["ETag"]}
        self._check_meta(read.path, meta, len(read.view), etag)
        data = answer["Body"].read()
        read.view[:] = data

    def _check_meta(self, path: str, meta: Any, size: int, etag: str) -> None:
        """The answer's own word: some stores ignore If-Match."""
        if meta["size"] != size:
            raise SourceChanged(path, f"{meta['size']:,} bytes now, {size:,} were scanned")
        if etag and (meta["e_tag"] or "").strip('"') != etag:
            raise SourceChanged(path, "it was written again after the scan")

    def _ask_source(self, kind: str, path: str, work: Callable[[], Result]) -> Result:
        """Like `_ask`; that the file changed or went is SourceChanged."""
        try:
            with _not_found(path):
                return self._ask(kind, path, lambda: _changed(path, work))
        except FileNotFoundError:
            raise SourceChanged(path, "it is gone") from None

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        etag = _etag_of(fingerprint) or self._known_etag(path, size)
        content = xxhash.xxh3_128() if fingerprint.startswith(CONTENT) else None
        threads = self._session.ranges

        def fetch(offset: int) -> bytes:
            length = min(_BLOCK, size - offset)
            return self._ask_source(
                "get", path, lambda: self._range(path, offset, length, f'"{etag}"')
            )

        coming: list[Future[bytes]] = []
        offsets = iter(range(0, size, _BLOCK))
        try:
            while True:
                while len(coming) < _AHEAD and (offset := next(offsets, None)) is not None:
                    coming.append(threads.submit(fetch, offset))
                if not coming:
                    break
                data = coming.pop(0).result()
                if content is not None:
                    content.update(data)
                yield memoryview(data)
        finally:
            for each in coming:
                each.cancel()
        if content is not None:
            _check_content(path, content.hexdigest(), fingerprint)

    def _known_etag(self, path: str, size: int) -> str:
        found = self._head(path)
        if found is None:
            raise SourceChanged(path, "it is gone")
        self._check_meta(path, {"size": found["ContentLength"], "e_tag": None}, size, "")
        return str(found["ETag"]).strip('"')

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        found = self._ask_source("head", path, lambda: self._head(path))
        if found is None:
            raise SourceChanged(path, "it is gone")
        meta = {"size": found["ContentLength"], "e_tag": found["ETag"]}
        self._check_meta(path, meta, size, _etag_of(fingerprint))

    def list_keys(self, after: str = "") -> Iterator[pa.Table]:
        lister = self._lister("")
        batch: list[Page] = []
        last = ""
        for page in lister.pages(self._key(after) if after else ""):
            if page.keys and not last.encode() < page.keys[0].encode():
                raise SourceError(
                    f"{self.place.named}: the store lists its keys in no order (as S3's directory "
                    "buckets do), which is not supported; expected a general purpose bucket"
                )
            last = page.keys[-1] if page.keys else last
            batch.append(page)
            if sum(len(each.keys) for each in batch) >= _ROWS:
                yield self._table(batch)
                batch = []
        yield self._table(batch)

    def _table(self, pages: list[Page]) -> pa.Table:
        start = len(self.prefix)
        paths = [key[start:] for page in pages for key in page.keys]
        sizes = pa.array([each for page in pages for each in page.sizes], pa.string())
        prints = [
            _ETAG + etag if etag else f"time:{time}"
            for page in pages
            for etag, time in zip(page.etags, page.times, strict=True)
        ]
        table = pa.table(
            [
                pa.array(paths, pa.large_string()),
                sizes.cast(pa.int64()),
                pa.array(prints, pa.large_string()),
            ],
            schema=KEYS,
        )
        return table.filter(pc.invert(pc.match_substring_regex(table["path"], "(^|/)$")))

    # Writing.

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        upload = Upload(
            self._session,
            self._key(path),
            lambda kind, work: self._ask(kind, path, work),
            lambda size: self.usage.count("put", requests=0, written=size),
        )
        try:
            yield upload
            if not upload.complete():
                error = DestinationError(
                    f"{self.place.named}: {self.locate(path)}: what is stored is not what was sent: "
                    "its size, etag or checksum differs; build again"
                )
                error.passing = True
                raise error
        except BaseException:
            upload.abort()
            raise

    def put(self, path: str, data: bytes) -> None:
        self._put(path, data, lambda work: self._ask("put", path, work))

    def _put(
        self, path: str, data: bytes, ask: Callable[[Callable[[], Any]], Any], **more: str
    ) -> None:
        put_whole(
            self._session,
            self._key(path),
            bytes(data),
            lambda _, work: ask(work),
            lambda size: self.usage.count("put", requests=0, written=size),
            **more,
        )

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self.place.single_writer:
            return conditional.put_as_single_writer(self, path, data)
        self.check_put_if_absent()
        return self._create(path, data)

    def check_put_if_absent(self) -> None:
        conditional.check_put_if_absent(self, self._create)

    def _create(self, path: str, data: bytes) -> bool:
        """PUT with If-None-Match, as long as it is not known what came of it.

        A reply may be lost after the server acted: then the next try meets our own object, and what is
        stored decides. Raises NotImplementedError where the store refuses the condition.
        """
        doubtful = False

        def attempt() -> bool:
            nonlocal doubtful
            try:
                self._put(path, data, lambda work: work(), IfNoneMatch="*")
                return True
            except Exception as error:
                answer = read_answer(error)
                if answer is None:
                    raise
                if answer.status == 501:
                    raise NotImplementedError(answer.code) from error
                if answer.status == 412:
                    return doubtful and self._holds(path, data)
                if answer.status == 409 or not answer.passing:
                    raise  # refused; or, 409, to be tried again
                doubtful = True
                if self._head(path) is not None:
                    return self._holds(path, data)
                raise

        try:
            return self._ask("put", path, attempt)
        except DestinationError as error:
            if not doubtful:
                raise
            told = DestinationError(
                f"{error}; it is not known whether the file was written, and nothing was removed"
            )
            told.passing = True
            raise told from error

    def _holds(self, path: str, data: bytes) -> bool:
        try:
            return self.read(path) == data
        except FileNotFoundError:
            return False

    def link(self, path: str, target: str) -> None:
        found = self._head(target)
        if found is None:
            raise DestinationError(
                f"{self.place.named}: {self.locate(target)}: is gone; build again"
            )
        if found["ContentLength"] <= _COPY_LIMIT:
            self._copy(path, target)
        else:
            self._copy_parts(path, target, found["ContentLength"], found["ETag"])

    def _copy(self, path: str, target: str, **more: str) -> None:
        source = {"Bucket": self.bucket, "Key": self._key(target)}
        session = self._session
        self._ask(
            "copy",
            path,
            lambda: session.client.copy_object(
                **self._target(path), **session.encryption, CopySource=source, **more
            ),
        )

    def _copy_parts(self, path: str, target: str, size: int, etag: str) -> None:
        client, asked = self._session.client, self._target(path)
        source = {"Bucket": self.bucket, "Key": self._key(target)}
        made = self._ask(
            "put",
            path,
            lambda: client.create_multipart_upload(**asked, **self._session.encryption),
        )["UploadId"]
        parts = []
        try:
            for number, start in enumerate(range(0, size, _COPY_LIMIT // 5), 1):
                end = min(start + _COPY_LIMIT // 5, size) - 1
                copied = self._ask(
                    "copy",
                    path,
                    lambda number=number, start=start, end=end: client.upload_part_copy(  # type: ignore[misc]
                        **asked, UploadId=made, PartNumber=number, CopySource=source,
                        CopySourceIfMatch=etag, CopySourceRange=f"bytes={start}-{end}",
                    ),
                )  # fmt: skip
                parts.append({"ETag": copied["CopyPartResult"]["ETag"], "PartNumber": number})
            self._ask(
                "put",
                path,
                lambda: client.complete_multipart_upload(
                    **asked, UploadId=made, MultipartUpload={"Parts": parts}
                ),
            )
        except BaseException:
            self.remove_unfinished(Unfinished(path, 0, 0.0, made))
            raise

    def touch(self, path: str) -> bool:
        try:
            self.put(path, self.read(path))
        except FileNotFoundError:
            return False
        return True

    def delete(self, path: str) -> None:
        self._ask("delete", path, lambda: self._session.client.delete_object(**self._target(path)))

    def unfinished(self) -> Iterator[FileInfo]:
        session = self._session
        more: dict[str, str] = {}
        while True:
            asked = {"Bucket": self.bucket, "Prefix": self.prefix, **session.extra, **more}
            page = self._ask("list", "", lambda: session.client.list_multipart_uploads(**asked))  # noqa: B023
            for each in page.get("Uploads", ()):
                begun = each["Initiated"].timestamp()
                yield Unfinished(each["Key"][len(self.prefix) :], 0, begun, each["UploadId"])
            if not page.get("IsTruncated"):
                return
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    def remove_unfinished(self, file: FileInfo) -> None:
        assert isinstance(file, Unfinished)

        def abort() -> None:
            try:
                self._session.client.abort_multipart_upload(
                    **self._target(file.path), UploadId=file.id
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise

        self._ask("delete", file.path, abort)


@contextmanager
def _not_found(path: str) -> Iterator[None]:
    """Makes a missing key a FileNotFoundError, but not a missing bucket."""
    try:
        yield
    except WdsPipelineError as error:
        answer = read_answer(error.__cause__) if isinstance(error.__cause__, Exception) else None
        if answer is not None and answer.status == 404 and answer.code != "NoSuchBucket":
            raise FileNotFoundError(path) from None
        raise


def _changed(path: str, work: Callable[[], Result]) -> Result:
    """What the store says of If-Match, and of keys that are gone, while a source is read."""
    try:
        return work()
    except PreconditionError:
        raise SourceChanged(path, "it was written again after the scan") from None
    except NotFoundError as error:
        answer = read_answer(error)
        if answer is not None and answer.code == "NoSuchBucket":
            raise BadAnswer("NoSuchBucket", 404) from error
        raise SourceChanged(path, "it is gone") from None
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
            raise SourceChanged(path, "it was written again after the scan") from None
        raise


def _etag_of(fingerprint: str) -> str:
    return fingerprint[len(_ETAG) :] if fingerprint.startswith(_ETAG) else ""


def _check_content(path: str, digest: str, fingerprint: str) -> None:
    if digest != fingerprint.removeprefix(CONTENT):
        raise SourceChanged(path, "its content changed after the scan")


def _seconds(page: Page) -> list[float]:
    """When each key was written, in seconds since 1970."""
    times = pa.array(page.times, pa.string()).cast(pa.timestamp("ms", "UTC"))
    return [value / 1000 for value in times.cast(pa.int64()).to_pylist()]
