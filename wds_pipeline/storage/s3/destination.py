"""`s3://bucket/prefix`: Amazon S3 and what speaks like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from wds_pipeline.errors import (
    DestinationError,
)
from wds_pipeline.storage import conditional
from wds_pipeline.storage.base import FileInfo, Writer
from wds_pipeline.storage.s3.errors import expect, read_answer
from wds_pipeline.storage.s3.objects import not_found
from wds_pipeline.storage.s3.source import S3Source
from wds_pipeline.storage.s3.upload import Upload, put_whole

_COPY_LIMIT = 5 * 1024**3  # of one request


@dataclass(frozen=True)
class Unfinished(FileInfo):
    """An upload that nobody completed; `id` is the store's name for it."""

    id: str = ""


class S3Storage(S3Source):
    """A prefix of a bucket. Another process's writes are seen at once, as S3 has it since 2020."""

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
                    return doubtful and self._stored(path) == data
                if answer.status == 409 or not answer.passing:
                    raise  # refused; or, 409, to be tried again
                doubtful = True
                stored = self._stored(path)  # what this raises is tried again with the rest
                if stored is not None:
                    return stored == data
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

    def _stored(self, path: str) -> bytes | None:
        """What is stored, asked once; None for nothing."""
        self.usage.count("get")
        try:
            answer = self._session.client.get_object(**self._target(path))
        except ClientError as error:
            if error.response["Error"].get("Code") == "NoSuchKey":
                return None
            raise
        data: bytes = expect(answer, "ETag")["Body"].read()
        return data

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
            lambda: expect(
                session.client.copy_object(
                    **self._target(path), **session.encryption, CopySource=source, **more
                ),
                "CopyObjectResult",
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
        # In one step: what `gc` removes at the same moment must not come back.
        try:
            with not_found(path):
                self._copy(path, path, MetadataDirective="REPLACE")
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
            page = self._ask("list", "", lambda: _uploads(session.client, asked))  # noqa: B023
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


def _uploads(client: Any, asked: dict[str, str]) -> Any:
    """A page of the uploads under way; empty of a store that does not tell."""
    try:
        return client.list_multipart_uploads(**asked)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 405, 501) and (
            error.response["Error"].get("Code") != "NoSuchBucket"
        ):
            return {}
        raise
