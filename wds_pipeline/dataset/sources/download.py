"""Downloads one URL: http and https by urllib3, the URLs of stores (s3://, gs://, …) by `storage`.

Each download ends in one `Fetched`, whatever happens; what passes (no answer, 408, 425, 429, 5xx, a body
that is cut short) is tried again with growing, random pauses, or after as long as the server's Retry-After
says.
"""

from __future__ import annotations

import random
import re
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
import urllib3.exceptions as http
import xxhash
from urllib3.util import Retry, Timeout, make_headers

from wds_pipeline.config_source import DownloadConfig
from wds_pipeline.config_storage import Place
from wds_pipeline.dataset import content
from wds_pipeline.dataset.sources.kept import OK, Fetched, id_of
from wds_pipeline.dataset.sources.table_files import split_url
from wds_pipeline.errors import WdsPipelineError
from wds_pipeline.storage import CONTENT, Storage, open_storage
from wds_pipeline.storage.ending import is_ending, pause

_REDIRECTS = 5
_CONNECT_SECONDS = 10.0
_LONGEST_WAIT = 60.0  # seconds; a server that asks for more is asked by the next build
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_PIECE = 64 * 1024
_SLOWEST = 1000  # bytes a second; less is as good as nothing
_IN_MEMORY = 4 * 1024 * 1024  # of a body; the rest of a larger one goes to a temporary file
_PASSING = {408, 425, 429}
_SECRET = re.compile(r"(?i)(sig|signature|token|secret|password|passwd|pwd|credential|auth|key)s?$")
_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp"}


@dataclass(frozen=True)
class Download:
    """A URL, and the field that its content is to be."""

    url: str
    field: str


def shown_url(url: str) -> str:
    """A URL for people and files: without its user, password, and what its query calls a key or signature."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:  # http://[
        return re.sub(r"//[^/]*@", "//", url)
    query = "&".join(map(_shown_parameter, parts.query.split("&"))) if parts.query else ""
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def _shown_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}=…" if equals and _SECRET.search(unquote(name).replace("-", "_")) else parameter


class _Failed(Exception):
    """One try failed; `passing` says whether another may not, `after` how long the server wants it to
    wait."""

    def __init__(
        self, status: str, code: int | None = None, *, passing: bool = False, after: float | None = None,
        detail: str = "",
    ) -> None:  # fmt: skip
        super().__init__(status)
        self.status, self.code, self.passing, self.after = status, code, passing, after
        self.detail = detail


class Downloader:
    """Downloads URLs, each call in a thread of its own."""

    def __init__(self, config: DownloadConfig, dataset: str = "") -> None:
        self._config = config
        self._dataset = dataset
        self._timeout = Timeout(
            connect=min(_CONNECT_SECONDS, config.timeout_seconds), read=config.timeout_seconds
        )
        self._managers = {
            scheme: self._manager(proxy) for scheme, proxy in {"": "", **getproxies()}.items()
            if scheme in ("", "http", "https")
        }  # fmt: skip
        self._store = lru_cache(256)(self._open_store)

    def _manager(self, proxy: str) -> urllib3.PoolManager:
        options: dict[str, Any] = {
            "num_pools": max(64, self._config.concurrency),
            "maxsize": self._config.concurrency,
            "timeout": self._timeout,
        }
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def __call__(self, job: Download) -> Fetched:
        """Downloads one. Never raises for what a server does."""
        found = Fetched(id_of(job.url), shown_url(job.url), "")
        for tries in range(1, self._config.retries + 2):
            try:
                return replace(self._try(job, found), tries=tries)
            except _Failed as error:
                again = error.passing and tries <= self._config.retries and not is_ending()
                wait = _pause(tries) if error.after is None else error.after
                if not again or wait > _LONGEST_WAIT:
                    detail = error.detail
                    if again:
                        detail = f"the server asks to wait for {wait:,.0f} s"
                    return replace(
                        found, status=error.status, code=error.code, tries=tries, detail=detail
                    )
                pause(wait)
        raise AssertionError

    def _try(self, job: Download, found: Fetched) -> Fetched:
        scheme = job.url.partition("://")[0].lower() if "://" in job.url else ""
        if scheme in ("http", "https"):
            return self._http(job, found)
        if scheme in _STORES:
            return self._of_store(job, found)
        raise _Failed("bad url", detail="expected http://, https:// or the URL of a store")

    # http and https

    def _http(self, job: Download, found: Fetched) -> Fetched:
        try:
            parts = urlsplit(job.url)
            host = parts.hostname or ""
            manager = self._managers.get(parts.scheme.lower()) or self._managers[""]
            if not host:
                raise _Failed("bad url", detail="it names no host")
            if proxy_bypass(host):
                manager = self._managers[""]
            headers = {"User-Agent": "wds_pipeline", "Accept-Encoding": "identity"}
            if "@" in parts.netloc:  # urllib3 sends them on request only
                pair = unquote(parts.netloc.rpartition("@")[0])
                headers |= make_headers(basic_auth=pair)
                job = replace(
                    job, url=urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
                )
            # All tries are ours: a body that is cut short is to be asked for again too.
            retries = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS)
            answer = manager.request(
                "GET", job.url, headers=headers, preload_content=False, retries=retries
            )
            return self._take(answer, job, found)
        except (http.HTTPError, ssl.SSLError, ValueError, UnicodeError, OSError) as error:
            raise _failure(error) from error

    def _take(self, answer: urllib3.BaseHTTPResponse, job: Download, found: Fetched) -> Fetched:
        whole = False
        try:
            code = answer.status
            if code != 200:
                passing = code in _PASSING or code >= 500
                raise _Failed(f"http {code}", code, passing=passing, after=_retry_after(answer))
            self._check_headers(answer.headers, job.field)
            body, size, digest = self._spool(self._pieces(answer))
            whole = True
            return replace(
                found, status=OK, code=code, body=body, size=size, content=CONTENT + digest
            )
        finally:
            answer.release_conn() if whole else answer.close()

    def _check_headers(self, headers: Mapping[str, str], field: str) -> None:
        length = headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._config.max_bytes:
            raise self._too_large(int(length))
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and content.kind((field,)) in ("image", "media", "array"):
            raise _Failed("bad content", 200, detail=f"a web page ({kind}) in the place of {field}")

    def _pieces(self, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        began, size = time.monotonic(), 0
        while data := answer.read1(_PIECE):
            size += len(data)
            seconds = time.monotonic() - began
            if seconds > self._config.timeout_seconds and size < _SLOWEST * seconds:
                raise _Failed("timeout", passing=True, detail=f"{size:,} bytes in {seconds:,.0f} s")
            yield data

    def _spool(self, pieces: Iterator[bytes]) -> tuple[IO[bytes], int, str]:
        """The content, its size and hash; no more of it than is allowed is ever held."""
        body: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # type: ignore[assignment]  # noqa: SIM115
        size, digest = 0, xxhash.xxh3_128()
        try:
            for data in pieces:
                size += len(data)
                if size > self._config.max_bytes:
                    raise self._too_large(size)
                body.write(data)
                digest.update(data)
            if not size:
                raise _Failed("bad content", 200, detail="0 bytes")
        except BaseException:
            body.close()
            raise
        body.seek(0)
        return body, size, digest.hexdigest()

    def _too_large(self, size: int) -> _Failed:
        limit = self._config.max_bytes
        return _Failed(
            "too large", 200, detail=f"{size:,} bytes or more; download.max_bytes is {limit:,}"
        )

    # The URLs of stores

    def _open_store(self, folder: str) -> Storage:
        return open_storage(Place(url=folder, dataset=self._dataset, part="source"))

    def _of_store(self, job: Download, found: Fetched) -> Fetched:
        folder, name = split_url(job.url)
        try:
            store = self._store(folder)
            facts = store.stat(name) if name else None
            if facts is None:
                raise _Failed("not found", detail="the store has no such file")
            if facts.size > self._config.max_bytes:
                raise self._too_large(facts.size)
            with store.open(name) as file:
                body, size, digest = self._spool(iter(lambda: file.read(_PIECE), b""))
        except FileNotFoundError:
            raise _Failed("not found", detail="the store has no such file") from None
        except (WdsPipelineError, OSError) as error:  # the store has tried again by itself
            raise _Failed("not readable", detail=type(error).__name__) from error
        return replace(found, status=OK, body=body, size=size, content=CONTENT + digest)


def _pause(tries: int) -> float:
    """Seconds before the next try."""
    return random.uniform(0.5, 1) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (tries - 1))


def _retry_after(answer: urllib3.BaseHTTPResponse) -> float | None:
    try:
        return Retry().get_retry_after(answer)
    except (http.InvalidHeader, ValueError, OverflowError):
        return None


def _failure(error: Exception) -> _Failed:
    """What went wrong, in our words: those of the client have the URL in them."""
    cause: Any = error
    if isinstance(cause, http.MaxRetryError):
        if isinstance(cause.reason, http.ResponseError):
            return _Failed("too many redirects", detail=f"more than {_REDIRECTS}")
        cause = cause.reason or cause
    if isinstance(cause, http.ProxyError):
        return _Failed("no connection", passing=True, detail="to the proxy")
    if isinstance(cause, http.NameResolutionError):
        return _Failed("no such host", passing=True)
    if isinstance(cause, http.TimeoutError | TimeoutError) and not isinstance(
        cause, http.NewConnectionError
    ):
        return _Failed("timeout", passing=True)
    if isinstance(cause, http.NewConnectionError | ConnectionError):
        return _Failed("no connection", passing=True)
    if isinstance(cause, http.SSLError | ssl.SSLError):
        return _Failed("bad certificate")
    if isinstance(cause, http.DecodeError):
        return _Failed("bad content", 200, detail="its Content-Encoding cannot be undone")
    if isinstance(cause, http.ProtocolError | http.IncompleteRead):
        return _Failed("cut short", passing=True)
    if isinstance(cause, http.LocationValueError | ValueError | UnicodeError):
        return _Failed("bad url", detail="it, or where it leads to, is none that http can ask for")
    return _Failed("no connection", passing=True, detail=type(cause).__name__)
