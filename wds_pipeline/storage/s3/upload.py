"""Upload → object: parts go out while the shard is still being packed; it appears when all are there.

Each part is signed with its SHA-256, which the store checks, and sent with it as S3's own checksum,
which stores that know it keep. When it is complete it is looked at again: its size, its etag, its
checksum (docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from wds_pipeline.errors import WdsPipelineError
from wds_pipeline.storage.base import BLOCK
from wds_pipeline.storage.s3.errors import expect
from wds_pipeline.storage.s3.session import S3Session

_UNDER_WAY = 4
_GROWS_AFTER = 1000  # parts; S3 takes 10,000, so the later ones are larger
Result = TypeVar("Result")
Ask = Callable[[str, Callable[[], Any]], Any]
"""Does a request of a kind (`put`, `head`), with tries."""


@dataclass(frozen=True)
class _Part:
    etag: str
    sha256: bytes
    checksum: str  # as the store gave it back, if it did


class Upload:
    """One object under way, for `Storage.create`: write, then `complete` or `abort`."""

    def __init__(
        self, session: S3Session, key: str, ask: Ask, written: Callable[[int], None]
    ) -> None:
        self.session = session
        self.key = key
        self.ask = ask
        self.written = written
        self.size = 0
        self._id = ""
        self._parts: list[Future[_Part]] = []
        self._buffer = bytearray()

    @property
    def _target(self) -> dict[str, str]:
        return {"Bucket": self.session.bucket, "Key": self.key, **self.session.extra}

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        self.size += len(view)
        while len(view):
            limit = BLOCK << (len(self._parts) // _GROWS_AFTER)
            piece = view[: limit - len(self._buffer)]
            self._buffer += piece
            view = view[len(piece) :]
            if len(self._buffer) == limit:
                self._send()

    def complete(self) -> bool:
        """Makes the object appear; says whether it is what was sent. Raises DestinationError."""
        if not self._parts:
            data = bytes(self._buffer)
            etag, checksum = put_whole(self.session, self.key, data, self.ask, self.written), ""
        else:
            if self._buffer:
                self._send()
            parts = [each.result() for each in self._parts]
            etag, checksum = self._assemble(parts)
            self._id = ""
        return self._is_stored(etag, checksum)

    def abort(self) -> None:
        """Gives the parts up; `gc` finds them where even that fails."""
        wait([each for each in self._parts if not each.cancel()])
        if self._id:
            with suppress(WdsPipelineError, FileNotFoundError):
                client, upload = self.session.client, self._id
                self.ask(
                    "delete",
                    lambda: client.abort_multipart_upload(**self._target, UploadId=upload),
                )

    def _send(self) -> None:
        """Hands a part to the uploads, when few enough of them are under way."""
        if not self._id:
            client, asked = self.session.client, {**self._target, **self.session.encryption}
            made = self.ask(
                "put",
                lambda: expect(
                    client.create_multipart_upload(**asked, ChecksumAlgorithm="SHA256"), "UploadId"
                ),
            )
            self._id = made["UploadId"]
        if len(self._parts) >= _UNDER_WAY:
            self._parts[-_UNDER_WAY].result()
        data, self._buffer = self._buffer, bytearray()
        number = len(self._parts) + 1
        self._parts.append(self.session.uploads.submit(self._put_part, number, data))

    def _put_part(self, number: int, data: bytearray) -> _Part:
        digest = hashlib.sha256(data).digest()
        client, upload = self.session.client, self._id

        def put() -> Any:
            answer = client.upload_part(
                **self._target,
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ChecksumSHA256=b64encode(digest).decode(),
            )
            return expect(answer, "ETag")

        answer = self.ask("put", put)
        self.written(len(data))
        return _Part(answer["ETag"], digest, answer.get("ChecksumSHA256", ""))

    def _assemble(self, parts: list[_Part]) -> tuple[str, str]:
        """Completes the upload; returns the etag and the checksum that the object must have."""
        listed: list[dict[str, Any]] = []
        for number, part in enumerate(parts, 1):
            listed.append({"ETag": part.etag, "PartNumber": number})
            if part.checksum:
                listed[-1]["ChecksumSHA256"] = part.checksum
        digests = b"".join(part.sha256 for part in parts)
        checksum = f"{b64encode(hashlib.sha256(digests).digest()).decode()}-{len(parts)}"
        client, upload = self.session.client, self._id

        def complete() -> str:
            try:
                answer = client.complete_multipart_upload(
                    **self._target, UploadId=upload, MultipartUpload={"Parts": listed}
                )
            except ClientError as error:
                # An earlier try may have come through, and its answer not.
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise
                return expected_etag([part.etag for part in parts])
            return str(answer.get("ETag", ""))

        etag: str = self.ask("put", complete)
        return etag, checksum

    def _is_stored(self, etag: str, checksum: str) -> bool:
        """Whether what is stored is what was sent, as far as it can be told without reading it."""
        client = self.session.client
        answer = self.ask(
            "head",
            lambda: expect(
                client.head_object(**self._target, ChecksumMode="ENABLED"), "ETag", "ContentLength"
            ),
        )
        found, stored = answer.get("ChecksumSHA256", ""), answer.get("ETag", "")
        wrong: bool = answer["ContentLength"] != self.size
        # Some stores tell another kind of etag afterwards: that of the whole, not of its parts.
        wrong |= bool(etag) and ("-" in etag) == ("-" in stored) and stored != etag
        wrong |= bool(found and checksum) and found.partition("-")[0] != checksum.partition("-")[0]
        return not wrong


def expected_etag(etags: list[str]) -> str:
    """The etag of an object of such parts, where etags are MD5s: that of the parts' MD5s, `-`, their
    count; or "" where they are not."""
    try:
        joined = b"".join(bytes.fromhex(each.strip('"')) for each in etags)
    except ValueError:
        return ""
    return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"'


def put_whole(
    session: S3Session, key: str, data: bytes, ask: Ask, written: Callable[[int], None], **more: str
) -> str:
    """Writes an object in one request; returns its etag. Raises what `ask` raises."""
    checksum = b64encode(hashlib.sha256(data).digest()).decode()
    asked = {"Bucket": session.bucket, "Key": key, **session.extra, **session.encryption, **more}
    answer = ask(
        "put",
        lambda: expect(
            session.client.put_object(**asked, Body=data, ChecksumSHA256=checksum), "ETag"
        ),
    )
    written(len(data))
    return str(answer.get("ETag", ""))
