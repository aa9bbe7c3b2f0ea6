"""`http://` and `https://`: files of a web server, to read.

fsspec's session, and requests of our own: its `info` takes every failure for a missing file, and its
`cat_file` does not show the headers, which say what state the bytes are of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote, urljoin, urlsplit

from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from wds_pipeline.errors import DestinationError, SourceError
from wds_pipeline.storage import fingerprint
from wds_pipeline.storage.connections import threads
from wds_pipeline.storage.fingerprint import Facts
from wds_pipeline.storage.kinds.base import Found, Kind

_MOST_UNRANGED = 256 * 1024 * 1024
_KEPT = "!$'()*+,-./:;=@_~&"  # what a path may have unescaped, and servers' indexes may not escape


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes


class Http(Kind):
    """Files of a web server, to read; folders by the server's index pages."""

    extra = "http"
    credentials = "looked for in ~/.netrc"

    def options(self) -> dict[str, Any]:
        """Time limits for fsspec's session; the paths are escaped here."""
        import aiohttp

        options = super().options()
        limit = aiohttp.ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
        client = {"timeout": limit, "trust_env": True, **options.get("client_kwargs", {})}
        return {**options, "client_kwargs": client, "encoded": True}

    def _root(self, fs: AbstractFileSystem) -> str:
        return quote(self.place.url.rstrip("/"), safe=_KEPT + "%?#[]")

    def where(self, path: str) -> str:
        """The URL of a path."""
        return f"{self.root}/{quote(path, safe='/')}"

    def _request(
        self, request: str, method: str, path: str, headers: dict[str, str] | None = None
    ) -> _Answer:
        async def act(fs: Any) -> _Answer:
            session = await fs.set_session()
            # What is sent compressed on the way has neither the size nor the ETag of the file.
            options = {**fs.kwargs, "allow_redirects": True}
            sent = {"Accept-Encoding": "identity", **options.pop("headers", {}), **(headers or {})}
            url = fs.encode_url(self.where(path))
            async with session.request(method, url, headers=sent, **options) as answer:
                # A folder is not a file, though servers lead from the one to the other's index.
                folder = answer.url.path.endswith("/") and path and not path.endswith("/")
                if answer.status in (404, 410) or folder:
                    raise FileNotFoundError(path)
                answer.raise_for_status()
                return _Answer(answer.status, dict(answer.headers), await answer.read())

        return self._do(request, path, lambda fs: sync(fs.loop, act, fs))

    def check(self) -> None:
        """Whether the server has an index of the root."""
        self._request("head", "GET", "")

    def look(self, path: str) -> Found:
        """A file's facts, from the headers of its answer to HEAD. Raises FileNotFoundError."""
        headers = self._request("head", "HEAD", path).headers
        size = _header(headers, "Content-Length")
        if size is None:
            raise SourceError(
                f"{self.place.named.rstrip('/')}/{path}: the server does not tell the file's size "
                "(no Content-Length in its answer to HEAD); expected a server of plain files"
            )
        facts = _facts(headers)
        return Found(path, int(size), float(facts.get("mtime", 0)), facts)

    def folder(self, folder: str) -> tuple[list[Found], list[str]]:
        """What the server's index page of a folder links to."""
        answer = self._request("list", "GET", folder)
        if "html" not in (_header(answer.headers, "Content-Type") or ""):
            raise SourceError(
                f"{self.place.named.rstrip('/')}/{folder}: found no index page (HTML) of this folder; "
                "expected a server that lists its folders (autoindex), so that its files can be found"
            )
        page = _Links()
        page.feed(answer.data.decode("utf-8", errors="replace"))
        base = self.where(folder)
        names = {name for link in page.links if (name := _child(base, link))}
        files = [folder + name for name in names if not name.endswith("/")]
        found = threads(self.place.storage.concurrency).map(self._look_if_there, files)
        return [each for each in found if each is not None], sorted(
            name.rstrip("/") for name in names if name.endswith("/")
        )

    def _look_if_there(self, path: str) -> Found | None:
        try:
            return self.look(path)
        except FileNotFoundError:  # a dead link
            return None

    def fetch(self, path: str, start: int = 0, end: int | None = None) -> tuple[bytes, Facts]:
        """The bytes, and the state that the answer's headers tell."""
        headers = {}
        if start or end is not None:
            if start == end:
                return b"", _facts(self._request("head", "HEAD", path).headers)
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        answer = self._request("get", "GET", path, headers)
        self.ask.usage.count("get", requests=0, read=len(answer.data))
        data = answer.data
        if headers and answer.status != 206:
            if len(data) > _MOST_UNRANGED:
                raise SourceError(
                    f"{self.place.named.rstrip('/')}/{path}: the server sends only whole files (it "
                    f"ignores Range), and this one has {len(data):,} bytes; expected a server that "
                    "sends parts, or smaller files"
                )
            data = data[start:end]
        return data, _facts(answer.headers)

    def check_writable(self) -> NoReturn:
        """Raises DestinationError."""
        raise DestinationError(
            f"{self.place.named}: a web server can be a source, not a destination; expected a store "
            "that can be written: a folder, s3://, gs://, az://, sftp://, hf://buckets/"
        )

    def upload(self, path: str) -> NoReturn:
        """Raises DestinationError, as all that writes."""
        self.check_writable()

    def create(self, path: str, data: bytes) -> NoReturn:
        """Raises DestinationError."""
        self.check_writable()

    def copy(self, path: str, target: str) -> NoReturn:
        """Raises DestinationError."""
        self.check_writable()

    def touch(self, path: str) -> NoReturn:
        """Raises DestinationError."""
        self.check_writable()

    def remove(self, path: str) -> NoReturn:
        """Raises DestinationError."""
        self.check_writable()


def _facts(headers: Mapping[str, str]) -> Facts:
    names = ("ETag", "Content-MD5", "Last-Modified")
    return fingerprint.facts_of({name: _header(headers, name) for name in names})


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for each, value in headers.items() if each.lower() == name.lower()), None)


def _child(base: str, link: str) -> str:
    """The name of a file, or of a folder with its slash, that lies directly in the folder `base`; or
    `""`. Links to sort an index, to parents and elsewhere are none."""
    url, folder = urlsplit(urljoin(base, link)), urlsplit(base)
    same_server = (url.scheme, url.netloc) == (folder.scheme, folder.netloc)
    # The server may escape other characters than we do.
    path, start = unquote(url.path), unquote(folder.path)
    if url.query or url.fragment or not same_server or not path.startswith(start):
        return ""
    name = path[len(start) :]
    return name if re.fullmatch(r"[^/]+/?", name) else ""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]
