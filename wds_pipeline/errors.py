"""The errors that a user can cause or meet; each says what, where, found, expected, and what to do.

The command line and the Dagster edge print `str(error)` alone: no traceback for a user's mistake.
"""

from __future__ import annotations

import errno

# What a network filesystem or a busy disk may answer now and not in a minute.
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class WdsPipelineError(Exception):
    """Base of all errors that carry a message for the user."""

    passing = False
    """Whether the same call may succeed a moment later, if nothing is changed."""


def may_pass(error: BaseException) -> bool:
    """Whether what failed may succeed a moment later: storage that is away, a worker that died."""
    if isinstance(error, OSError):
        return error.errno in _PASSING or isinstance(error, TimeoutError)
    if isinstance(error, WdsPipelineError):
        return error.passing or (isinstance(error.__cause__, OSError) and may_pass(error.__cause__))
    return False


class Ended(BaseException):
    """This worker process is to end now. Unlike SystemExit, no code that it runs for a user raises it."""


class ConfigError(WdsPipelineError):
    """A dataset's YAML file, or the set of them, is not usable."""


class SourceError(WdsPipelineError):
    """The source is gone, empty or unreadable."""


class SourceChanged(SourceError):
    """A source file is no longer what the scan saw.

    `path` is the file, relative to the source; `reason` is one short clause.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DestinationError(WdsPipelineError):
    """The destination is not writable, full, or holds something else."""


class DataError(WdsPipelineError):
    """The data break a rule whose policy is `error`, or the quarantine's budget."""


class VerificationError(WdsPipelineError):
    """A stored shard or version is not what its seal, index or plan says."""


class VersionError(WdsPipelineError):
    """A version, sample or format that was asked for does not exist or cannot be read."""


class DecodeError(WdsPipelineError):
    """A sample's field does not decode, or a function of the user's failed on it.

    `dataset` is as messages name it, `url` the shard's, `key` the sample's; `field` is None where a
    function was given the whole sample, and all are None where none is at fault alone.
    """

    def __init__(
        self,
        message: str,
        *,
        dataset: str | None = None,
        url: str | None = None,
        key: str | None = None,
        field: str | None = None,
    ) -> None:
        # Made from its message alone where a DataLoader brings it from a worker.
        super().__init__(message)
        self.dataset = dataset
        self.url = url
        self.key = key
        self.field = field


class WorkerError(WdsPipelineError):
    """A worker died or could not be reached."""

    passing = True
