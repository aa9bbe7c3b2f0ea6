"""A source's files in a bucket: many small ones at a time, large ones block by block, each by its etag."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import obstore
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.errors import (
    SourceChanged,
    SourceError,
)
from wds_pipeline.storage.base import BLOCK, CONTENT, KEYS, UNREADABLE, Read, Reads, check_content
from wds_pipeline.storage.s3.errors import WEB_PAGE, BadAnswer, read_answer
from wds_pipeline.storage.s3.listing import Page
from wds_pipeline.storage.s3.objects import S3Objects, not_found
from wds_pipeline.storage.s3.ranges import obstore_works

_ETAG = "etag:"  # a fingerprint that is the store's etag starts so
_AHEAD = 3
_ROWS = 50_000
# The second: it is in an archive. The third: an answer to HEAD has no code.
_OF_ONE_FILE = ("AccessDenied", "InvalidObjectState", 403)
Result = TypeVar("Result")


class S3Source(S3Objects):
    """What `pack` and `scan` ask of a bucket."""

    def start_reads(self, reads: Sequence[Read]) -> Reads:
        left = deque(reads)

        def work() -> None:
            # Each thread takes one after the other: a future for each would cost a tenth of its read.
            while True:
                try:
                    read = left.popleft()
                except IndexError:
                    return
                try:
                    self._fill(read)
                except BaseException:
                    left.clear()
                    raise

        threads, count = self._session.reads, min(len(left), self.place.storage.concurrency)
        running = [threads.submit(work) for _ in range(count)]

        def finish() -> None:
            wait(running)  # all of them, for the views are used again
            for each in running:
                each.result()

        return Reads(finish, left.clear)

    def _fill(self, read: Read) -> None:
        path, fingerprint = read.path, read.fingerprint
        wanted = _etag_of(fingerprint)
        options: Any = {"if_match": f'"{wanted}"'} if wanted else None

        def get() -> None:
            if not obstore_works():
                return self._fill_slowly(read, wanted)
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
            check_content(path, xxhash.xxh3_128_hexdigest(read.view), fingerprint)

    def _fill_slowly(self, read: Read, etag: str) -> None:
        more = {"IfMatch": f'"{etag}"'} if etag else {}
        answer = self._session.client.get_object(**self._target(read.path), **more)
        meta = {"size": answer["ContentLength"], "e_tag": answer["ETag"]}
        self._check_meta(read.path, meta, len(read.view), etag)
        data = answer["Body"].read()
        read.view[:] = data

    def _check_meta(self, path: str, meta: Any, size: int, etag: str) -> None:
        """The answer's own word: some stores ignore If-Match."""
        if etag and not meta["e_tag"]:
            raise BadAnswer(WEB_PAGE, 503)  # no store's answer
        same = bool(etag) and (meta["e_tag"] or "").strip('"') == etag
        if meta["size"] != size:
            if same:  # of the same object: cut short on the way
                raise BadAnswer("IncompleteBody", 500)
            raise SourceChanged(path, f"{meta['size']:,} bytes now, {size:,} were scanned")
        if etag and not same:
            raise SourceChanged(path, "it was written again after the scan")

    def _ask_source(self, kind: str, path: str, work: Callable[[], Result]) -> Result:
        """Like `_ask`; that the file changed, went or may not be read is SourceChanged."""
        with self._told_of_one_file(path):
            return self._ask(kind, path, work)

    @contextmanager
    def _told_of_one_file(self, path: str) -> Iterator[None]:
        """Makes answers that are about this file alone SourceChanged."""
        try:
            with not_found(path):
                yield
        except FileNotFoundError:
            raise SourceChanged(path, "it is gone") from None
        except SourceError as error:
            cause = error.__cause__
            answer = read_answer(cause) if isinstance(cause, Exception) else None
            if answer is not None and answer.status == 412:
                raise SourceChanged(path, "it was written again after the scan") from None
            if answer is not None and answer.status == 416:
                raise SourceChanged(path, "it has fewer bytes now than were scanned") from None
            if answer is not None and (answer.code or answer.status) in _OF_ONE_FILE:
                reason = answer.code or f"HTTP status {answer.status}"
                raise SourceChanged(path, f"{UNREADABLE}: {reason}") from error
            raise

    def read_chunks(self, path: str, size: int, fingerprint: str) -> Iterator[memoryview]:
        etag = _etag_of(fingerprint) or self._known_etag(path, size)
        content = xxhash.xxh3_128() if fingerprint.startswith(CONTENT) else None
        threads = self._session.ranges

        def fetch(offset: int) -> bytes:
            length = min(BLOCK, size - offset)
            with self._told_of_one_file(path):
                return self._range(path, offset, length, f'"{etag}"')

        coming: list[Future[bytes]] = []
        offsets = iter(range(0, size, BLOCK))
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
            check_content(path, content.hexdigest(), fingerprint)

    def _known_etag(self, path: str, size: int) -> str:
        found = self._head(path)
        if found is None:
            raise SourceChanged(path, "it is gone")
        self._check_meta(path, {"size": found["ContentLength"], "e_tag": None}, size, "")
        return str(found["ETag"]).strip('"')

    def check_source(self, path: str, size: int, fingerprint: str) -> None:
        with self._told_of_one_file(path):
            found = self._head(path)
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


def _etag_of(fingerprint: str) -> str:
    return fingerprint[len(_ETAG) :] if fingerprint.startswith(_ETAG) else ""
