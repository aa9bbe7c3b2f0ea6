"""Parts of objects: by obstore where it can, else by a URL that botocore has signed.

obstore takes a tenth of a millisecond of a processor for a small part, in threads; with asyncio twice
that, botocore ten times. It refuses stores that answer 200 to what is 206, keys such as `a//b`, and in a
fork of a process that has used it, it waits for ever and takes the parent down (`obstore_works`). There a
signed URL does it, one for many parts of an object, in a quarter of a millisecond.
"""

from __future__ import annotations

import os
import re
import threading
import time
from functools import cache
from typing import Any

import obstore
import obstore.exceptions as obs
import urllib3

from wds_pipeline.storage.base import Stored
from wds_pipeline.storage.s3.errors import WEB_PAGE, BadAnswer, expect
from wds_pipeline.storage.s3.session import S3Session

_SIGNED_FOR = 3600  # seconds
_SIGNED_ANEW = 300.0  # after so many: credentials may end before their signatures
_SIGNED_KEYS = 4096
_CODE = re.compile(rb"<Code>\s*(\w+)\s*</Code>")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_used_here = threading.Event()  # obstore, in this process
_used_before_fork = threading.Event()


def _after_fork() -> None:
    if _used_here.is_set():
        _used_before_fork.set()


os.register_at_fork(after_in_child=_after_fork)


def obstore_works() -> bool:
    """Whether obstore may be used in this process, which it is then taken to be.

    Not in a fork of one that used it: its threads are not there, and what the child would wait for wakes
    those of the parent, which take it for theirs and crash.
    """
    if _used_before_fork.is_set():
        return False
    _used_here.set()
    return True


@cache
def ranges_of(session: S3Session) -> Ranges:
    """What reads parts of objects for a session."""
    return Ranges(session)


class Ranges:
    """Parts of the objects of one bucket. For threads."""

    def __init__(self, session: S3Session) -> None:
        self._session = session
        self._by_url = False
        self._urls: dict[str, tuple[str, float]] = {}

    def get(self, key: str, offset: int, size: int, etag: str) -> tuple[memoryview, Stored]:
        """The bytes that there are of a part, and the object's size and etag; which must be `etag`,
        unless that is "". Raises what the clients do, or BadAnswer."""
        if not self._by_url and obstore_works():
            options: Any = {"range": (offset, offset + size)}
            if etag:
                options["if_match"] = etag
            try:
                answer = obstore.get(self._session.reader, key, options=options)
            except ValueError:  # a key that it cannot say
                return self._get_by_url(key, offset, size, etag)
            except obs.GenericError as error:
                if "NotPartial" not in str(error):
                    raise
            else:
                meta = answer.meta
                if not meta["e_tag"]:
                    raise BadAnswer(WEB_PAGE, 503)  # no store's answer
                if answer.range[0] != offset:
                    raise BadAnswer("InvalidRange", 500)
                return memoryview(answer.bytes()), Stored(meta["size"], meta["e_tag"])
        return self._get_by_url(key, offset, size, etag)

    def _get_by_url(self, key: str, offset: int, size: int, etag: str) -> tuple[memoryview, Stored]:
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        if etag:
            headers["If-Match"] = etag
        if self._session.config.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        answer = self._session.http.request(
            "GET", self._url(key), headers=headers, preload_content=False, decode_content=False
        )
        try:
            return self._read(answer, offset, size)
        except BaseException:
            answer.close()  # what is left of it is not waited for
            raise
        finally:
            answer.release_conn()

    def _read(
        self, answer: urllib3.BaseHTTPResponse, offset: int, size: int
    ) -> tuple[memoryview, Stored]:
        if answer.status not in (200, 206):
            code = _CODE.search(answer.read())
            raise BadAnswer(code.group(1).decode() if code else "", answer.status)
        found = expect({"ETag": answer.headers.get("ETag")}, "ETag")["ETag"]
        part = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        length = int(answer.headers.get("Content-Length", -1))
        if part is not None:
            first, last, total = map(int, part.groups())
        elif length >= 0:  # all of it
            first, last, total = 0, length - 1, length
        else:
            raise BadAnswer(WEB_PAGE, 503)
        if part is None and (offset, size) != (0, length):
            raise BadAnswer("NoRanges", 501)
        if first != offset:
            raise BadAnswer("InvalidRange", 500)
        if part is not None and answer.status == 200:  # a store that does so always
            self._by_url = True
        data = answer.read(last - first + 1)
        return memoryview(data), Stored(total, found)

    def _url(self, key: str) -> str:
        url, at = self._urls.get(key, ("", 0.0))
        if not url or time.monotonic() - at > _SIGNED_ANEW:
            if len(self._urls) >= _SIGNED_KEYS:
                self._urls.clear()
            asked = {"Bucket": self._session.bucket, "Key": key, **self._session.extra}
            url = self._session.client.generate_presigned_url(
                "get_object", Params=asked, ExpiresIn=_SIGNED_FOR
            )
            self._urls[key] = url, time.monotonic()
        return url
