"""What S3 and its clients answer, as what the user can do about it.

Answers of the server are known by their code (docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
Only codes are shown, not messages: some repeat what was signed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import botocore.exceptions as boto
import obstore.exceptions as obs
import urllib3.exceptions as http

from wds_pipeline.config_storage import Place
from wds_pipeline.errors import DestinationError, SourceError, WdsPipelineError

# The store may do it a moment later.
_PASSING_CODES = frozenset(
    {
        "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
        "ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests",
        "OperationAborted", "ConditionalRequestConflict", "BadDigest",
        "XAmzContentSHA256Mismatch", "IncompleteBody",
    }
)  # fmt: skip
_LET_IN = frozenset(
    {
        "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
        "TokenRefreshRequired", "RequestTimeTooSkewed", "AccountProblem", "AllAccessDisabled",
        "NotSignedUp", "Unauthorized", "Forbidden", "401", "403",
    }
)  # fmt: skip
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "307"})
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.InfiniteLoopConfigError,
    boto.SSOError,
    boto.UnauthorizedSSOTokenError,
)
_AWAY = (
    boto.ConnectionError,  # and its kinds: closed, refused, timed out
    boto.HTTPClientError,
    boto.IncompleteReadError,
    http.HTTPError,
    ConnectionError,
    TimeoutError,
)
# What a reader can do, which tried for as long as it was told.
_LATER = (
    "go on later, or have it tried for longer (storage.retry_seconds), or with fewer requests at a time "
    "(storage.concurrency)"
)
WEB_PAGE = "a web page"  # in place of S3's answer, from a console or a portal
NOT_TRUSTED = "NotTrusted"  # ours: TLS failed
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*(\w+)\s*</Code>")


@dataclass(frozen=True)
class Answer:
    """What went wrong: S3's code, HTTP's status (0 if there was no answer), and whether it may pass."""

    code: str
    status: int = 0
    passing: bool = False


def read_answer(error: Exception) -> Answer | None:
    """What the store or the way to it said; None for an error of another kind."""
    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _answer(str(error.response.get("Error", {}).get("Code", "")), status)
    if isinstance(error, BadAnswer):
        return _answer(error.code, error.status)
    if isinstance(error, obs.BaseError | FileNotFoundError) and _STATUS.search(str(error)):
        code, found = _CODE.search(str(error)), _STATUS.search(str(error))
        return _answer(code.group(1) if code else "", int(found.group(1)) if found else 0)
    if isinstance(error, RecursionError):  # botocore follows a redirect that does not say where to
        return Answer("PermanentRedirect", 301)
    if isinstance(error, obs.GenericError) and "BareRedirect" in str(error):
        return Answer("PermanentRedirect", 301)
    if isinstance(error, boto.SSLError | http.SSLError):
        return Answer(NOT_TRUSTED)
    if isinstance(error, (obs.GenericError, *_AWAY)):
        return Answer(_way(error), 0, True)
    return None


class BadAnswer(Exception):
    """An answer that no client of ours raises by itself: an HTTP status and S3's code."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(code, status)
        self.code = code
        self.status = status


def expect(answer: Any, *names: str) -> Any:
    """An answer that has what such an answer must have. Raises BadAnswer for another: somebody between
    us and the store answers 200 to everything."""
    if not all(answer.get(name) is not None for name in names):
        raise BadAnswer(WEB_PAGE, 503)
    return answer


def explain(
    error: Exception, place: Place, where: str, profile: str, server: str = "its endpoint"
) -> Exception:
    """What the user is told instead of what a client raised; other errors are returned as they are.

    `where` is the URL at which it happened, `profile` the credentials that were used, `server` who was
    asked.
    """
    if isinstance(error, WdsPipelineError):
        return error
    if isinstance(error, boto.ProfileNotFound):
        return _make(
            place,
            f"{where}: {str(error).rstrip('.')}; expected one of ~/.aws/config: check AWS_PROFILE and "
            f"{_options(place)}.profile",
        )
    if isinstance(error, _NO_CREDENTIALS):
        what = str(error).rstrip(".")
        return _make(
            place,
            f"no credentials for {where} ({profile}): {what}; expected them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), in a profile (AWS_PROFILE, or "
            f"{_options(place)}.profile), or from the machine's role. For a public bucket set "
            f"{_options(place)}.anonymous: true",
        )
    answer = read_answer(error)
    if answer is None:
        if isinstance(error, boto.BotoCoreError):
            return _make(place, f"{where}: {error}")
        return error
    return _make(place, _message(answer, place, where, profile, server), passing=answer.passing)


def _message(answer: Answer, place: Place, where: str, profile: str, server: str) -> str:
    code = answer.code or f"HTTP status {answer.status}"
    options = _options(place)
    if code == "NoSuchBucket":
        return (
            f"{where}: {server} has no such bucket ({code}); check {_url(place)}, and who is asked"
        )
    if code == "SignatureDoesNotMatch":
        return (
            f"{where}: access denied ({code}) with {profile}: its secret key is not that of its access "
            "key; check both"
        )
    if code == NOT_TRUSTED:
        return (
            f"{where}: {server} does not speak TLS, or with a certificate that is not trusted; check "
            "the endpoint's https://, or name its authority in AWS_CA_BUNDLE"
        )
    if code in _LET_IN or answer.status in (401, 403):
        return (
            f"{where}: access denied ({code}) with {profile}; expected credentials that may "
            f"{_rights(place)} there: "
            f"check them, or {options}.profile"
        )
    if code in _ELSEWHERE or answer.status in (301, 307):
        return (
            f"{where}: the bucket is in another region, or at another endpoint ({code}); set "
            f"{options}.region, {options}.endpoint_url or {options}.addressing_style"
        )
    if code == WEB_PAGE:
        return f"{where}: found a web page; expected an S3 endpoint: check {options}.endpoint_url"
    if answer.passing and not answer.status:
        return (
            f"{where}: the store does not answer at {server} ({code}); check the network, the proxy "
            f"and the endpoint (AWS_ENDPOINT_URL, or {options}.endpoint_url)"
        )
    if answer.passing:
        later = "build again later" if place.dataset else _LATER
        return f"{where}: the store cannot do it for the moment ({code}); {later}"
    return f"{where}: the store refused ({code})"


def _options(place: Place) -> str:
    """Where the settings are: who opens a URL gives them in code, and is of no dataset's file."""
    return f"{place.part}.storage" if place.dataset else "storage"


def _url(place: Place) -> str:
    return f"{place.part}.url" if place.dataset else "the URL"


def _rights(place: Place) -> str:
    if not place.dataset:
        return "list and read (and write, for what writes)"
    return "list and read" if place.part == "source" else "list, read, write and delete"


def _make(place: Place, message: str, passing: bool = False) -> WdsPipelineError:
    kind = SourceError if place.part == "source" else DestinationError
    head = f"{place.dataset}: {place.part}.url: " if place.dataset else ""
    error = kind(head + message)
    error.passing = passing
    return error


def _answer(code: str, status: int) -> Answer:
    passing = status >= 500 or status in (408, 425, 429) or code in _PASSING_CODES
    return Answer(code if not code.isdigit() else "", status, passing and status != 501)


def _way(error: Exception) -> str:
    """In a few words, what was wrong on the way."""
    text = str(error)
    if "Name or service not known" in text or "dns error" in text or "resolve" in text:
        return "the host's name is not known"
    if "refused" in text:
        return "connection refused"
    if "timed out" in text or "TimedOut" in text:
        return "timed out"
    unreachable = (
        boto.EndpointConnectionError | http.NewConnectionError
    )  # a kind of timeout, for urllib3
    if isinstance(error, unreachable) or "error sending request" in text:
        return "cannot connect"
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError | http.TimeoutError):
        return "timed out"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, obs.GenericError):
        found = re.search(r"HTTP error: ([^\n]*)|Generic \S+ error: ([^\n]*)", text)
        return (found.group(1) or found.group(2) or "no answer")[:80] if found else "no answer"
    return type(error).__name__
