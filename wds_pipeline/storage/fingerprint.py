"""What tells one state of a stored file from another: the best fact that its store gives.

A fingerprint is `kind:value`. The kind is part of it, so that a fact of another kind, from another
request say, is never taken for a change.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

Facts = dict[str, str]
"""What is known of one state of a file: value by kind."""

KINDS = (
    "etag",
    "md5",
    "sha256",
    "crc32c",
    "xet",
    "blob",
    "version",
    "generation",
    "mtime",
)
"""Best first, where a store does not want another order."""

# How fsspec's filesystems, and HTTP's headers, name the facts.
_NAMES = {
    "etag": ("etag", "ETag", "e_tag"),
    "md5": ("md5Hash", "content_md5", "Content-MD5", "md5"),
    "sha256": ("sha256",),
    "crc32c": ("crc32c",),
    "xet": ("xet_hash",),
    "blob": ("blob_id",),
    "version": ("version_id", "VersionId"),
    "generation": ("generation",),
    "mtime": (
        "mtime",
        "last_modified",
        "LastModified",
        "Last-Modified",
        "modified",
        "updated",
        "last_write_time",
        "modify",
        "created",
    ),
}


def facts_of(values: Mapping[str, Any]) -> Facts:
    """The facts in what a filesystem says of a file, or in the headers of an answer."""
    found: Facts = {}
    for kind, names in _NAMES.items():
        value = next((values[name] for name in names if values.get(name) not in (None, "")), None)
        if value is None:
            continue
        if kind == "mtime":
            seconds = seconds_of(value)
            if seconds is not None:
                found[kind] = f"{seconds:.6f}"
        else:
            text = _text(value)
            found[kind] = _hex(text) if kind in ("md5", "crc32c") else text
    return found


def seconds_of(value: Any) -> float | None:
    """A time of modification in any of the forms that filesystems give, in seconds; None if none."""
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=timezone.utc)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        for parse in (datetime.fromisoformat, parsedate_to_datetime):
            try:
                return seconds_of(parse(value.replace("Z", "+00:00")))
            except ValueError:
                continue
    return None


def choose(facts: Facts, order: Iterable[str] = KINDS) -> str:
    """The fingerprint: the best of the facts; `""` when there is none."""
    return next((f"{kind}:{facts[kind]}" for kind in order if kind in facts), "")


def same(fingerprint: str, facts: Facts) -> bool | None:
    """Whether these facts are of the state that has the fingerprint; None when they do not say."""
    kind, _, value = fingerprint.partition(":")
    return facts[kind] == value if kind in facts else None


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes | bytearray) else str(value)


def _hex(text: str) -> str:
    """A checksum in hex; stores give base64 in one place and hex in another."""
    if len(text) not in (8, 24):
        return text
    try:
        return base64.b64decode(text, validate=True).hex()
    except (ValueError, binascii.Error):
        return text
