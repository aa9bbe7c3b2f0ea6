"""What stores say of their files and of their failures, in one form."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from wds_pipeline.storage.asking import explain, without_secrets
from wds_pipeline.storage.fingerprint import choose, facts_of, same, seconds_of

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    "value",
    [
        MOMENT,
        MOMENT.replace(tzinfo=None),
        MOMENT.astimezone(timezone(timedelta(hours=5))),
        MOMENT.timestamp(),
        int(MOMENT.timestamp()),
        "2026-01-02T03:04:05+00:00",
        "2026-01-02T03:04:05Z",
        "Fri, 02 Jan 2026 03:04:05 GMT",
    ],
)
def test_times_in_any_form(value: Any) -> None:
    assert seconds_of(value) == MOMENT.timestamp()
    assert facts_of({"mtime": value}) == {"mtime": "1767323045.000000"}


@pytest.mark.parametrize("value", ["", "yesterday", None, True, b"x"])
def test_what_is_no_time(value: Any) -> None:
    assert "mtime" not in facts_of({"last_modified": value})


def test_a_checksum_in_base64_and_hex_is_one() -> None:
    in_base64 = facts_of({"md5Hash": "XUFAKrxLKna5cZ2REBfFkg=="})
    in_hex = facts_of({"Content-MD5": "5d41402abc4b2a76b9719d911017c592"})
    assert in_base64 == in_hex == {"md5": "5d41402abc4b2a76b9719d911017c592"}
    assert facts_of({"content_md5": bytes.fromhex("5d41402abc4b2a76b9719d911017c592")}) == in_hex


def test_the_best_fact_is_the_fingerprint() -> None:
    facts = facts_of({"ETag": '"1"', "mtime": 5, "md5": "5d41402abc4b2a76b9719d911017c592"})
    assert choose(facts) == 'etag:"1"'
    assert choose(facts, ("md5", "etag")) == "md5:5d41402abc4b2a76b9719d911017c592"
    assert choose({}) == ""
    assert same('etag:"1"', facts) is True
    assert same('etag:"2"', facts) is False
    assert same("generation:3", facts) is None, "it does not say"


@pytest.mark.parametrize(
    "text",
    [
        "GET https://a.example/c?sv=2024&sig=SEKRET%3D&se=2026",
        "bad Authorization: Bearer SEKRET",
        "AccountKey=SEKRET;EndpointSuffix=x",
        "{'secret_access_key': 'SEKRET'}",
        'token = "SEKRET"',
        "https://me:SEKRET@host/x",
        "X-Amz-Signature=SEKRET&x=1",
    ],
)
def test_secrets_are_not_shown(text: str) -> None:
    assert "SEKRET" not in without_secrets(text)


class _Client(Exception):
    def __init__(self, **values: Any) -> None:
        super().__init__("what it says\nand more")
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("error", "passing", "refused", "absent"),
    [
        (_Client(status=503), True, False, False),
        (_Client(status_code=429), True, False, False),
        (_Client(code="500"), True, False, False),
        (_Client(response=_Client(status_code=401)), False, True, False),
        (_Client(status=403), False, True, False),
        (_Client(status=404), False, False, True),
        (_Client(status=400), False, False, False),
        (_Client(code=200), False, False, False),
        (FileNotFoundError("x"), False, False, True),
        (TimeoutError(), True, False, False),
        (ConnectionResetError(104, "reset"), True, False, False),
        (EOFError(), True, False, False),
        (OSError("Forbidden: b/x"), False, True, False),
        (ValueError("nonsense"), False, False, False),
    ],
)
def test_what_an_error_means(error: Exception, passing: bool, refused: bool, absent: bool) -> None:
    failure = explain(error)
    assert (failure.passing, failure.refused, failure.absent) == (passing, refused, absent)
    assert "\n" not in failure.text
