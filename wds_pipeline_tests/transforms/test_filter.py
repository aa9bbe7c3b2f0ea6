"""`filter`: what stays; pictures are measured by their headers."""

from __future__ import annotations

from typing import Any

import pytest

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.filter import Filter
from wds_pipeline_tests.transforms.media import huge_png, jpeg, png, sample

JPEG = jpeg(96, 64)
SAMPLE = sample("cats/1", jpg=JPEG, txt="zwölf Boxkämpfer  jagen\n".encode(), json=b"{}")


@pytest.mark.parametrize(
    ("field", "limits", "stays"),
    [
        ("jpg", {"min_width": 96}, True),
        ("jpg", {"min_width": 97}, False),
        ("jpg", {"max_width": 96}, True),
        ("jpg", {"max_width": 95}, False),
        ("jpg", {"min_height": 65}, False),
        ("jpg", {"max_height": 64, "min_height": 64}, True),
        ("jpg", {"min_aspect": 1.5, "max_aspect": 1.5}, True),
        ("jpg", {"max_aspect": 1.49}, False),
        ("jpg", {"min_pixels": 96 * 64}, True),
        ("jpg", {"max_pixels": 96 * 64 - 1}, False),
        ("jpg", {"max_bytes": len(JPEG)}, True),
        ("jpg", {"max_bytes": len(JPEG) - 1}, False),
        ("txt", {"min_chars": 24, "max_chars": 24}, True),
        ("txt", {"min_chars": 25}, False),
        ("txt", {"min_words": 3, "max_words": 3}, True),
        ("txt", {"min_words": 4}, False),
        ("txt", {"max_words": 3, "max_chars": 5}, False),
        ("png", {"min_width": 10_000}, True),  # which it has not
    ],
)
def test_limits(field: str, limits: dict[str, Any], stays: bool) -> None:
    assert (Filter([field], **limits)(dict(SAMPLE)) == SAMPLE) == stays


@pytest.mark.parametrize(
    ("parameters", "stays"),
    [
        ({"has": ["jpg", "txt"]}, True),
        ({"has": ["jpg", "png"]}, False),
        ({"lacks": ["png"]}, True),
        ({"lacks": ["png", "txt"]}, False),
        ({"has": ["jpg"], "lacks": ["jpg"]}, False),
        ({"where": "jpg.width >= 96 and jpg.height < 65"}, True),
        ({"where": "jpg.width > 96"}, False),
        ({"where": 'not has("png") and startswith(key, "cats/")'}, True),
        ({"where": "png.width > 1"}, False),
        ({"where": "not png.width > 1"}, False),  # not known, so neither is the contrary
        ({"where": "txt.chars == 24 and txt.size > 24"}, True),
        ({"where": 'jpg.format == "JPEG"'}, True),
        ({"where": 'jpg.format in ["PNG", "WEBP"]'}, False),
    ],
)
def test_of_all_samples(parameters: dict[str, Any], stays: bool) -> None:
    assert (Filter(**parameters)(dict(SAMPLE)) == SAMPLE) == stays


def test_no_picture_is_decoded() -> None:
    huge = sample(png=huge_png(60_000, 60_000), jpg=jpeg(640, 480)[:700])
    assert Filter(["png"], min_width=60_000)(dict(huge)) == huge
    assert Filter(["jpg"], min_width=640, max_aspect=1.4)(dict(huge)) == huge
    assert Filter(where="png.width == 60000 and jpg.height == 480")(dict(huge)) == huge


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"fields": ["jpg"], "min_width": 1}, "jpg: no picture that Pillow recognises"),
        ({"fields": ["txt"], "min_chars": 1}, "txt: not UTF-8 text: byte 1"),
        ({"where": "jpg.width > 1"}, "jpg: no picture"),
        ({"where": "txt.width > 1"}, "txt: width is asked of it; expected a picture"),
    ],
)
def test_what_cannot_be_measured_is_rejected(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        Filter(**parameters)(sample(jpg=b"broken", txt=b"a\xff"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {},
            "found nothing; expected fields with limits such as min_width, or has, lacks and where",
        ),
        ({"fields": ["jpg"]}, "expected fields with limits"),
        ({"min_width": 3}, "found min_width; expected fields with limits"),
        ({"fields": ["jpg"], "min_width": 3, "has": ["txt"]}, "for both write two filters"),
        (
            {"fields": ["jpg"], "min_widht": 3},
            "unknown parameter 'min_widht'.*did you mean 'min_width'",
        ),
        ({"fields": ["jpg"], "min_width": "3"}, "min_width: found '3'; expected a number"),
        (
            {"fields": ["jpg"], "min_width": 3, "max_width": 2},
            "min_width: found 3; expected at most max_w",
        ),
        ({"fields": ["txt"], "min_width": 3}, "fields: found 'txt'; expected fields of pictures"),
        ({"has": "txt"}, "has: found 'txt'; expected a list"),
        ({"where": "jpg.width >"}, "where: the query 'jpg.width >' cannot be read"),
        ({"where": "jpg.widht > 3"}, "did you mean 'jpg.width'"),
        ({"where": 'jpg.problem == "x"'}, "problem is of reports"),
        ({"where": 'jpg.width == "x"'}, "where: found .*expected values of the columns' types"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Filter(**parameters)


def test_another_name_than_the_content_is_measured_all_the_same() -> None:
    assert Filter(["jpg"], max_width=96)(sample(jpg=png(96, 64))) is not None
