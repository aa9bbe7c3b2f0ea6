"""`gs://`: Google Cloud Storage, by gcsfs's requests.

The listing is asked for page by page, from any name on; the answer to a download says of which
generation the bytes are. So millions of names need no more memory than a page, and a read needs no
second request to be sure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, ClassVar

from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from wds_pipeline.storage import fingerprint
from wds_pipeline.storage.connections import threads
from wds_pipeline.storage.fingerprint import Facts
from wds_pipeline.storage.kinds.base import Found, Kind, Upload

_PART = 16 * 1024 * 1024
_OBJECT = "b/{}/o/{}"

Page = tuple[list[Found], list[str], str]


class Google(Kind):
    """Google Cloud Storage."""

    extra = "gcs"
    anonymous: ClassVar[dict[str, Any]] = {"token": "anon"}
    credentials = (
        "looked for by Google's Application Default Credentials: GOOGLE_APPLICATION_CREDENTIALS, "
        "`gcloud auth application-default login`, the machine's service account"
    )
    # An ETag changes with metadata and storage class too; the checksums with the bytes alone.
    order = ("md5", "crc32c", "generation", "etag", "mtime")

    def load(self) -> type[AbstractFileSystem]:
        """Not the one that asks by gRPC what kind of bucket it is: emulators and mirrors have none."""
        from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped]

        # It prints each failure with a traceback; we say it once.
        logging.getLogger("gcsfs").addHandler(logging.NullHandler())
        return GCSFileSystem

    def options(self) -> dict[str, Any]:
        """Time limits for its requests."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        return {"requests_timeout": limit, **super().options()}

    def _json(self, request: str, path: str, method: str, url: str, *args: str, **more: Any) -> Any:
        def act(fs: Any) -> Any:
            return sync(fs.loop, fs._call, method, url, *args, json_out=True, **more)

        return self._do(request, path, act)

    def _key(self, path: str) -> tuple[str, str]:
        with self.borrow():
            bucket, _, key = self.where(path).partition("/")
        return bucket, key

    def _prefix(self, folder: str) -> tuple[str, str]:
        bucket, key = self._key(folder)
        return bucket, key and f"{key.rstrip('/')}/"

    def check(self) -> None:
        """Whether the bucket is there and its names may be listed."""
        self._page("", "", folders=True, most=1)

    def look(self, path: str) -> Found:
        """An object's facts. Raises FileNotFoundError."""
        return self._object(self._json("head", path, "GET", _OBJECT, *self._key(path)))

    def _object(self, item: dict[str, Any]) -> Found:
        _, prefix = self._prefix("")
        facts = fingerprint.facts_of(item)
        path = item["name"][len(prefix) :]
        return Found(path, int(item["size"]), float(facts.get("mtime", 0)), facts)

    def _page(
        self, folder: str, token: str, *, folders: bool, after: str = "", most: int = 1000
    ) -> Page:
        bucket, prefix = self._prefix(folder)
        names: dict[str, Any] = {"prefix": prefix} if prefix else {}
        if folders:
            names["delimiter"] = "/"
        if after and not token:
            names["startOffset"] = prefix + after
        if token:
            names["pageToken"] = token
        page = self._json("list", folder, "GET", "b/{}/o", bucket, maxResults=most, **names)
        found = [
            self._object(item)
            for item in page.get("items", ())
            if not item["name"].endswith("/")  # a marker of a folder
        ]
        below = [each[len(prefix) :].rstrip("/") for each in page.get("prefixes", ())]
        return found, below, page.get("nextPageToken") or ""

    def folder(self, folder: str) -> tuple[list[Found], list[str]]:
        """The objects and the folders directly below a prefix; nothing where there is none."""
        files: list[Found] = []
        folders: list[str] = []
        token = ""
        while True:
            found, below, token = self._page(folder, token, folders=True)
            files += found
            folders += below
            if not token:
                return files, sorted(folders)

    def below(self, after: str) -> Iterator[Found]:
        """All objects, a page at a time; the next one is fetched meanwhile."""
        pool = threads(self.place.storage.concurrency)
        page: Page | None = self._page("", "", folders=False, after=after)
        while page is not None:
            found, _, token = page
            coming: Future[Page] | None = None
            if token:
                coming = pool.submit(self._page, "", token, folders=False)
            for each in found:
                if each.path > after:  # the offset itself is among them
                    yield each
            page = coming.result() if coming else None

    def fetch(self, path: str, start: int = 0, end: int | None = None) -> tuple[bytes, Facts]:
        """The bytes, and the state that the answer's headers tell."""
        if end is not None and end <= start:
            return b"", self.look(path).facts
        headers = {}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"

        def act(fs: Any) -> tuple[Any, bytes]:
            return sync(fs.loop, fs._call, "GET", fs.url(self.where(path)), headers=headers)

        answer, data = self._do("get", path, act)
        self.ask.usage.count("get", requests=0, read=len(data))
        return data, _facts(answer)

    def upload(self, path: str) -> Upload:
        """A resumable upload: parts go while it is written, and nobody sees them before the last."""
        return _Upload(self, path)

    def create(self, path: str, data: bytes) -> bool:
        """With `ifGenerationMatch=0`."""

        def act(fs: Any) -> None:
            fs.pipe_file(self.where(path), data, mode="create")

        return self._created(path, data, act)

    def copy(self, path: str, target: str) -> None:
        """By the server, which needs no time for it within a bucket."""
        self._do("copy", path, lambda fs: fs.cp_file(self.where(target), self.where(path)))

    def touch(self, path: str) -> None:
        """A copy onto itself."""
        self.copy(path, path)

    def remove(self, path: str) -> None:
        """Removes an object. Raises FileNotFoundError."""
        self._do("delete", path, lambda fs: fs.rm_file(self.where(path)))


def _facts(headers: Any) -> Facts:
    """What the headers of a download say."""
    facts: dict[str, Any] = {"generation": headers.get("x-goog-generation")}
    for value in headers.getall("x-goog-hash", []):
        for part in value.split(","):
            name, _, checksum = part.strip().partition("=")
            facts[{"md5": "md5Hash"}.get(name, name)] = checksum
    return fingerprint.facts_of(facts)


class _Upload(Upload):
    """gcsfs's file, which sends small ones in one request."""

    def __init__(self, kind: Google, path: str) -> None:
        self._kind, self._path = kind, path
        self._size = 0
        self._file: Any = None

    def _open(self, fs: Any) -> Any:
        # A name's ending would have it guess a Content-Type, and a Content-Encoding with it.
        kind = "application/octet-stream"
        return fs.open(self._kind.where(self._path), "wb", block_size=_PART, content_type=kind)

    def write(self, data: bytes | memoryview, /) -> None:
        if self._file is None:
            self._file = self._kind._do("put", self._path, self._open)
        # gcsfs tries parts again; the whole cannot be, since its beginning is gone.
        self._size += len(data)
        self._kind.ask("put", self._path, lambda: self._file.write(data), once=True)
        self._kind.ask.usage.count("put", requests=-1, written=len(data))

    def finish(self) -> None:
        if self._file is None:
            self.write(b"")
        self._kind.ask("put", self._path, self._file.close, once=True)
        parts = self._size // _PART
        self._kind.ask.usage.count("put", requests=parts - 1 if parts else -1)

    def abandon(self) -> None:
        """Google forgets an upload that is not finished after a week, and charges nothing for it."""
        if self._file is not None:
            self._file.closed = True  # else its end would finish the upload
