"""A job on its way to a worker elsewhere, and what comes back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wds_pipeline import __version__
from wds_pipeline.errors import WdsPipelineError, may_pass

_CODEC = "zstd"


@dataclass(frozen=True)
class Failed:
    """An error for the user. As a result, lest the worker writes a traceback and the call to its log."""

    error: WdsPipelineError


@dataclass(frozen=True)
class OtherVersion:
    """The version of this package at a worker that came when the others had been asked already."""

    found: str


def wrap(work: Callable[..., Any], *arguments: Any) -> tuple[str, int, bytes]:
    """What `run` takes: plain values, which any version can read. Raises what pickling raises.

    Compressed, for a scheduler holds hundreds of them: a recipe's paths and names are much alike.
    """
    import pyarrow as pa

    data = pickle.dumps((work, arguments), protocol=5)
    return __version__, len(data), pa.compress(data, codec=_CODEC, asbytes=True)


def run(version: str, size: int, data: bytes) -> Any:
    """Does the work at the worker; an error for the user is a result."""
    import pyarrow as pa

    if version != __version__:
        return OtherVersion(__version__)
    raw = pa.decompress(data, decompressed_size=size, codec=_CODEC, asbytes=True)
    work, arguments = pickle.loads(raw)
    try:
        return work(*arguments)
    except WdsPipelineError as error:
        error.passing = may_pass(error)  # its cause stays behind in this process
        return Failed(error)
