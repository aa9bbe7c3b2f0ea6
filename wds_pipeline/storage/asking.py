"""Asking a store that may be away: tries again what may pass, counts it, and explains what does not.

What goes wrong is told by what the clients' errors have in common (an HTTP status, the names of their
classes), so that none of the clients need be installed.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import (
    DestinationError,
    SourceError,
    WdsPipelineError,
    may_pass,
)
from wds_pipeline.storage.base import Usage
from wds_pipeline.storage.retry import persist

Answer = TypeVar("Answer")

_PASSING = {408, 425, 429, 500, 502, 503, 504}
# Classes of the clients (aiohttp, azure, paramiko, requests, httpx), by name.
_AWAY = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerTimeoutError",
    "ServiceRequestError",
    "ServiceResponseError",
    "IncompleteReadError",
    "SSHException",
    "NoValidConnectionsError",
    "EOFError",
    "ChannelException",
    "RequestException",
    "TransportError",
    "FSTimeoutError",
    "ChecksumError",
}
_REFUSED = {
    "AuthenticationException",
    "BadHostKeyException",
    "ClientAuthenticationError",
    "CredentialUnavailableError",
    "GoogleAuthError",
    "LocalTokenNotFoundError",
    "GatedRepoError",
}
_SECRET = re.compile(
    r"(?i)\b(sig|x-[a-z]+-signature|x-[a-z]+-credential|[a-z_-]*(?:token|password|passwd|secret"
    r"|credential|signature|accountkey|api_?key|access_?key))([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^&\s,;\"']+)"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic|sharedkey)\s+\S+")
_USERINFO = re.compile(r"//[^/@\s]*:[^/@\s]*@")


class BeyondEnd(Exception):
    """A range was asked for that begins behind the file's end: it has become shorter."""


@dataclass(frozen=True)
class Failure:
    """What went wrong, in short; whether it may pass, whether rights are the reason (of this one file,
    or of whoever asks), whether it is that nothing is there."""

    text: str
    passing: bool = False
    refused: bool = False
    of_one_file: bool = False
    absent: bool = False


def explain(error: BaseException) -> Failure:
    """What a client's error means."""
    text = _shown(error)
    names = {each.__name__ for each in type(error).__mro__}
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Failure(text, absent=True)
    if status in (401, 407) or names & _REFUSED:
        return Failure(text, refused=True)
    # gcsfs makes an OSError of a 403.
    if status == 403 or isinstance(error, PermissionError) or text.startswith("Forbidden"):
        return Failure(text, refused=True, of_one_file=True)
    if status is not None:
        return Failure(text, passing=status in _PASSING)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Failure(text if str(error) else "no answer in time", passing=True)
    closed = text == "Socket is closed"  # paramiko's OSError has no number
    return Failure(text, passing=closed or bool(names & _AWAY) or may_pass(error))


def _status(error: BaseException) -> int | None:
    """An HTTP status, wherever the client keeps it."""
    response = getattr(error, "response", None)
    for owner in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(owner, name, None)
            if isinstance(value, str) and value.isdigit():
                value = int(value)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _shown(error: BaseException) -> str:
    """The first line of a message, without anything that looks like a secret."""
    lines = str(error).removeprefix("[Errno None]").strip().splitlines()
    return without_secrets(lines[0] if lines else type(error).__name__)


def without_secrets(text: str) -> str:
    """A client's message as it may be shown."""
    text = _USERINFO.sub("//…@", _BEARER.sub(r"\1 …", _SECRET.sub(r"\1\2…", text)))
    return text if len(text) <= 300 else text[:300] + "…"


_ANSWERS = (
    FileNotFoundError,
    FileExistsError,
    BeyondEnd,
    NotImplementedError,
    WdsPipelineError,
)


class Asking:
    """Asks for one place: within its budget of time, on its account."""

    def __init__(self, place: Place, usage: Usage, credentials: str = "") -> None:
        self.place = place
        self.usage = usage
        self.credentials = credentials
        """Where the store's tools look for credentials, for messages."""

    def __call__(
        self, kind: str, path: str, act: Callable[[], Answer], *, once: bool = False
    ) -> Answer:
        """Acts, again while that may help and the place's `retry_seconds` last; counts each try.

        FileNotFoundError, FileExistsError, BeyondEnd and NotImplementedError are answers, and handed on.

        Raises SourceError or DestinationError, by the place's part.
        """

        def counted() -> Answer:
            self.usage.count(kind)
            return act()

        def told(error: Exception) -> Exception:
            if isinstance(error, _ANSWERS):
                return error
            if _status(error) == 416:
                return BeyondEnd(path)
            failure = explain(error)
            return FileNotFoundError(path) if failure.absent else self.error(path, failure)

        return persist(counted, 0 if once else self.place.storage.retry_seconds, self.usage, told)

    def error(self, path: str, failure: Failure) -> WdsPipelineError:
        """What the user is told."""
        part = self.place.part
        where = f"{self.place.named.rstrip('/')}/{path}" if path else self.place.named
        if failure.refused:
            may = "read" if part == "source" else "read and write"
            looked = f" ({self.credentials})" if self.credentials else ""
            message = (
                f"{where}: access was refused: {failure.text}; expected credentials that may {may} "
                f"it{looked}"
            )
        elif failure.passing:
            patience = self.place.storage.retry_seconds
            tried = f" (it was tried again for {patience:g} seconds)" if patience else ""
            message = (
                f"{where}: the store cannot be reached or does not answer: {failure.text}{tried}; check "
                "the URL and the network, then try again"
            )
        elif failure.absent:
            message = f"{where}: not found ({failure.text}); check {part}.url"
        else:
            verb = "read" if part == "source" else "used"
            message = f"{where}: cannot be {verb}: {failure.text}"
        error = SourceError(message) if part == "source" else DestinationError(message)
        error.passing = failure.passing
        return error


def within(seconds: float, act: Callable[[], Answer]) -> Answer:
    """Acts, and does not wait longer than that: for clients that try for long by themselves.

    Raises TimeoutError; what was begun is left to itself.
    """
    box: list[Any] = []

    def run() -> None:
        try:
            box[:] = [True, act()]
        except BaseException as error:
            box[:] = [False, error]

    thread = threading.Thread(target=run, daemon=True, name="wds-check")
    thread.start()
    thread.join(seconds)
    if not box:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    if not box[0]:
        raise box[1]
    return box[1]
