"""Listing a bucket's keys: many at a time, in order, in bounded memory, going on where it stopped.

A page holds at most 1,000 keys and takes a round trip, so a long listing is divided: the key space is
cut at keys that exist, the pieces are listed at the same time and yielded in order. Pages are asked
for by signed URLs and taken apart by columns: botocore's own parser takes ten times as long.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from queue import Queue
from threading import Event
from typing import Any
from urllib.parse import unquote_plus

from wds_pipeline.storage.s3.errors import WEB_PAGE, BadAnswer

_SERIAL_PAGES = 16  # a listing as short as this is not divided
_PIECES = 32
_ENOUGH = 8  # pieces to begin with
_LONG_PIECE = 48  # pages, after which the rest of a piece is divided in turn
_THREADS = 16
_SIGNED_SECONDS = 300  # for which a page may be asked for again by who sees the URL: clocks differ
_PAGES_AHEAD = 32  # of each piece
_LAST = "\U0010ffff"
_KEY = re.compile(r"<Key>([^<]*)</Key>")
_SIZE = re.compile(r"<Size>(\d+)</Size>")
_ETAG = re.compile(r"<ETag>([^<]*)</ETag>")
_TIME = re.compile(r"<LastModified>([^<]*)</LastModified>")
_FOLDER = re.compile(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>")
_CODE = re.compile(r"<Code>(\w+)</Code>")


@dataclass
class Page:
    """One answer: keys with sizes in bytes, etags and times (ISO 8601), and folders, in order."""

    keys: list[str]
    sizes: list[str]
    etags: list[str]
    times: list[str]
    folders: list[str]
    more: bool

    @property
    def last(self) -> str:
        """The greatest key or folder, by its bytes."""
        ends = (*self.keys[-1:], *(each + _LAST for each in self.folders[-1:]))
        return max(ends, key=_bytes, default="")

    def until(self, end: str | None) -> Page:
        """The part up to a key, inclusive."""
        if end is None or not self.last or _bytes(self.last) <= _bytes(end):
            return self
        number = sum(_bytes(key) <= _bytes(end) for key in self.keys)
        return Page(
            self.keys[:number],
            self.sizes[:number],
            self.etags[:number],
            self.times[:number],
            [each for each in self.folders if _bytes(each) <= _bytes(end)],
            more=False,
        )


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def parse_page(body: bytes) -> Page:
    """An answer to ListObjectsV2. Raises BadAnswer for one that is not whole."""
    text = body.decode()
    if "</ListBucketResult>" not in text:
        if text.lstrip().lower().startswith(("<!doctype html", "<html")):
            raise BadAnswer(WEB_PAGE, 200)
        raise BadAnswer("IncompleteBody", 500)
    encoded = "<EncodingType>url</EncodingType>" in text

    def plain(value: str) -> str:
        if encoded:
            return unquote_plus(value) if "%" in value or "+" in value else value
        return html.unescape(value)

    keys = [plain(each) for each in _KEY.findall(text)]
    sizes, times = _SIZE.findall(text), _TIME.findall(text)
    etags = [html.unescape(each).strip('"') for each in _ETAG.findall(text)]
    if len(etags) != len(keys):
        etags = [""] * len(keys)
    if not len(keys) == len(sizes) == len(times):
        raise BadAnswer("IncompleteBody", 500)
    folders = [plain(each) for each in _FOLDER.findall(text)]
    return Page(keys, sizes, etags, times, folders, "<IsTruncated>true</IsTruncated>" in text)


class Lister:
    """Lists the keys of a bucket below a prefix. `ask(work)` does the work with tries."""

    def __init__(self, session: Any, prefix: str, ask: Any) -> None:
        self.session = session
        self.prefix = prefix
        self.ask = ask

    def page(
        self, after: str = "", *, delimiter: str = "", most: int = 1000, **options: Any
    ) -> Page:
        """The next page behind a key (which need not exist); `options` are urllib3's."""
        asked: dict[str, Any] = {
            "Bucket": self.session.bucket,
            "Prefix": self.prefix,
            "MaxKeys": most,
            "EncodingType": "url",
            **({"StartAfter": after} if after else {}),
            **({"Delimiter": delimiter} if delimiter else {}),
            **self.session.extra,
        }
        # Of a signed URL, whoever follows it says this, as a header that is part of the signature.
        signed = {"x-amz-request-payer": "requester"} if self.session.config.requester_pays else {}

        def get() -> Page:
            # Signed anew for each try: a signature has a time.
            url = self.session.client.generate_presigned_url(
                "list_objects_v2", ExpiresIn=_SIGNED_SECONDS, Params=asked
            )
            answer = self.session.http.request(
                "GET", url, headers=signed, redirect=False, **options
            )
            if answer.status != 200:
                code = _CODE.search(answer.data.decode("utf-8", "replace"))
                raise BadAnswer(code.group(1) if code else "", answer.status)
            return parse_page(answer.data)

        found: Page = self.ask(get)
        return found

    def pages(self, after: str = "", delimiter: str = "") -> Iterator[Page]:
        """All pages behind a key, in the order of the keys' bytes."""
        for _ in range(_SERIAL_PAGES):
            page = self.page(after, delimiter=delimiter)
            yield page
            if not page.more or not page.last:
                return
            after = page.last
        yield from self._at_once(self._cuts(after, delimiter), delimiter)

    def _serial(self, after: str, end: str | None, delimiter: str) -> Iterator[Page]:
        for number in count(1):
            page = self.page(after, delimiter=delimiter).until(end)
            yield page
            if not page.more or not page.last:
                return
            after = page.last
            if number % _LONG_PIECE == 0 and not delimiter:
                cuts = self._finer(after, end)
                if len(cuts) > 1:
                    yield from self._at_once(cuts, delimiter, end)
                    return

    def _at_once(
        self, cuts: list[str], delimiter: str, last_end: str | None = None
    ) -> Iterator[Page]:
        """The pages of all pieces, some pieces ahead of the one that is yielded."""
        stop = Event()
        queues: list[Queue[Page | BaseException | None]] = [Queue(_PAGES_AHEAD) for _ in cuts]

        def work(number: int) -> None:
            end = cuts[number + 1] if number + 1 < len(cuts) else last_end
            last: BaseException | None = None
            try:
                for page in self._serial(cuts[number], end, delimiter):
                    queues[number].put(page)
                    if stop.is_set():
                        return
            except BaseException as error:
                last = error
            queues[number].put(last)

        # Pieces are begun in order, so the one that is waited for is always under way.
        threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="wds-list")
        try:
            for number in range(len(cuts)):
                threads.submit(work, number)
            for queue in queues:
                while (page := queue.get()) is not None:
                    if isinstance(page, BaseException):
                        raise page
                    yield page
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            for queue in queues:  # nobody may wait for room in it
                while not queue.empty():
                    queue.get_nowait()

    def _cuts(self, after: str, delimiter: str) -> list[str]:
        """Where pieces begin, each behind such a key: the first at `after`."""
        if delimiter:  # one folder: its names, and no cut within one of its own folders
            start = len(self.prefix)
            found = []
            for each in self._names(after, self.prefix):
                name, slash, _ = each[start:].partition("/")
                found.append(self.prefix + name + (slash + _LAST if slash else ""))
            later = {each for each in found if _bytes(each) > _bytes(after)}
            return self._spread([after, *sorted(later, key=_bytes)])
        cuts, level = [after], [self.prefix]
        for _ in range(3):
            below = [each for folder in level for each in self._folders(folder, after)]
            if not below:
                below = [each for folder in level for each in self._names(after, folder)]
                return self._spread(sorted({*cuts, *below}, key=_bytes))
            cuts = sorted({*cuts, *below}, key=_bytes)
            if len(cuts) >= _ENOUGH:
                break
            level = below[:_PIECES]
        return self._spread(cuts)

    def _finer(self, after: str, end: str | None) -> list[str]:
        """Where the rest of a piece that turned out long may be divided: within the folder that it has
        come to, and behind that."""
        folder = after[: after.rfind("/") + 1] or self.prefix
        found = self._names(after, folder)
        if folder != self.prefix:
            found.append(folder + _LAST)
        within = {each for each in found if end is None or _bytes(each) < _bytes(end)}
        return [
            after,
            *sorted((each for each in within if _bytes(each) > _bytes(after)), key=_bytes),
        ]

    def _spread(self, cuts: list[str]) -> list[str]:
        """At most so many of them, evenly."""
        step = -(-len(cuts) // (4 * _PIECES))
        return cuts[::step]

    def _folders(self, folder: str, after: str) -> list[str]:
        page = Lister(self.session, folder, self.ask).page(delimiter="/")
        return [each for each in page.folders if _bytes(each) > _bytes(after)]

    def _names(self, after: str, folder: str) -> list[str]:
        """Cuts within a long flat folder: behind each letter that its names have where they first
        differ. A few requests for one key each find them."""
        lister = Lister(self.session, folder, self.ask)
        start = after if after.startswith(folder) else folder
        first = lister.page(start, most=1)
        if not first.keys:
            return []
        same = folder
        key = first.keys[0]
        while len(same) < len(key):
            beyond = lister.page(same + key[len(same)] + _LAST, most=1)
            if beyond.keys:
                break
            same += key[len(same)]
        found: list[str] = []
        while len(found) < _PIECES:
            at = (found[-1] if found else same + key[len(same) :][:1]) + _LAST
            page = lister.page(at, most=1)
            if not page.keys:
                break
            found.append(page.keys[0][: len(same) + 1])
        return [each for each in found if _bytes(each) > _bytes(after)]
