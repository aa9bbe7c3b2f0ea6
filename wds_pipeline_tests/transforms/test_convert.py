"""`convert` and what all transforms of pictures share: colours, transparency, depths, formats."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.convert import Convert
from wds_pipeline_tests.transforms.media import encoded, jpeg, opened, png, sample, scene


def converted(data: bytes, field: str, to: str, **parameters: Any) -> Image.Image:
    found = Convert([field], **parameters)({"__key__": "a/1", field: data})
    assert list(found) == ["__key__", to]
    return opened(found[to])


def profile(name: str, **corrections: float) -> bytes:
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile(name))  # type: ignore[arg-type]
    return made.tobytes()


@pytest.mark.parametrize(
    ("field", "format_", "to", "name"),
    [
        ("png", "jpg", "jpg", "JPEG"),
        ("png", "jpeg", "jpg", "JPEG"),
        ("jpg", "jpeg", "jpg", "JPEG"),
        ("jpeg", "jpg", "jpeg", "JPEG"),
        ("png", "webp", "webp", "WEBP"),
        ("png", "tiff", "tif", "TIFF"),
        ("png", "bmp", "bmp", "BMP"),
        ("png", "ppm", "ppm", "PPM"),
    ],
)
def test_formats(field: str, format_: str, to: str, name: str) -> None:
    assert converted(png(), field, to, format=format_).format == name


def test_only_the_last_extension_changes() -> None:
    found = Convert(["seg.png"], format="webp")({**sample(txt=b"x"), "seg.png": png()})
    assert list(found) == ["__key__", "txt", "seg.webp"]


def test_another_field_is_not_replaced() -> None:
    with pytest.raises(Rejected, match="png would become jpg, which the sample has already"):
        Convert(["png"], format="jpg")(sample(jpg=jpeg(), png=png()))
    with pytest.raises(Rejected, match="webp would become jpg, which the sample has already"):
        Convert(["png", "webp"], format="jpg")(sample(png=png(), webp=png()))
    assert list(Convert(["png", "webp"], format="jpg")(sample(webp=png()))) == ["__key__", "jpg"]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_modes(mode: str) -> None:
    found = converted(png(mode="RGB"), "png", "png", mode=mode)
    assert found.mode == mode
    assert found.convert("RGB").size == (96, 64)


@pytest.mark.parametrize("source", ["RGBA", "LA", "P"])
def test_transparent_parts_become_the_background(source: str) -> None:
    picture = Image.new("RGBA", (16, 16), (10, 10, 10, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 8, 16))
    options: dict[str, Any] = {}
    if source == "P":
        picture = Image.new("P", (16, 16), 1)
        picture.putpalette([0, 0, 0, 10, 10, 10])
        picture.paste(0, (0, 0, 8, 16))
        options["transparency"] = 0
    data = encoded(picture if source == "P" else picture.convert(source), "PNG", **options)
    found = converted(data, "png", "jpg", format="jpg")
    assert found.mode == ("L" if source == "LA" else "RGB")
    found = found.convert("RGB")
    assert min(found.getpixel((2, 8))) > 250  # type: ignore[type-var, arg-type]
    assert max(found.getpixel((13, 8))) < 16  # type: ignore[type-var, arg-type]
    red = converted(data, "png", "jpg", format="jpg", background="#ff0000")
    pixel = red.getpixel((2, 8))
    assert isinstance(pixel, tuple) and pixel[0] > 250 and max(pixel[1:]) < 8


def test_a_colour_that_stands_for_transparency() -> None:
    picture = Image.new("RGB", (8, 8), (1, 2, 3))
    data = encoded(picture, "PNG", transparency=(1, 2, 3))
    pixel = converted(data, "png", "jpg", format="jpg").getpixel((4, 4))
    assert isinstance(pixel, tuple) and min(pixel) > 250
    assert converted(data, "png", "webp", format="webp").getpixel((4, 4))[3] == 0  # type: ignore[index]


def test_sixteen_bits_become_their_upper_eight() -> None:
    depth = np.linspace(0, 65_535, 256).reshape(16, 16).astype(np.uint16)
    data = encoded(Image.fromarray(depth), "PNG")
    found = np.asarray(converted(data, "png", "webp", format="webp", lossless=True))[..., 0]
    assert np.abs(found.astype(int) - (depth >> 8)).max() <= 1
    kept = converted(data, "png", "tif", format="tif")
    assert (np.asarray(kept) == depth).all()
    again = converted(encoded(Image.fromarray(depth), "PPM"), "pgm", "png", format="png")
    assert (np.asarray(again) == depth).all()


def test_floats_are_rejected_unless_they_can_stay() -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(Rejected, match="32-bit floats: nothing says what white is"):
        converted(data, "tif", "jpg", format="jpg")
    assert converted(data, "tif", "tif", profile="drop").mode == "F"


def test_cmyk_becomes_rgb_where_the_format_has_none() -> None:
    data = encoded(scene(32, 32).convert("CMYK"), "JPEG", quality=95)
    found = converted(data, "jpg", "png", format="png")
    difference = np.asarray(found, int) - np.asarray(scene(32, 32), int)
    assert found.mode == "RGB" and np.abs(difference).max() < 24
    assert converted(data, "jpg", "jpg").mode == "CMYK"
    assert converted(data, "jpg", "jpg", mode="RGB").mode == "RGB"


# A profile with the primaries of sRGB turned around: red is green, green is blue, blue is red.
def _turned() -> bytes:
    data = bytearray(profile("sRGB"))
    entries = {}
    for number in range(int.from_bytes(data[128:132], "big")):
        at = 132 + 12 * number
        entries[bytes(data[at : at + 4])] = at
    old = {name: bytes(data[at + 4 : at + 12]) for name, at in entries.items()}
    for name, other in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"bXYZ"), (b"bXYZ", b"rXYZ")):
        data[entries[name] + 4 : entries[name] + 12] = old[other]
    at = int.from_bytes(old[b"desc"][:4], "big")
    text = bytes(data[at : at + int.from_bytes(old[b"desc"][4:], "big")])
    data[at : at + len(text)] = text.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_are_converted_by_the_profile(mode: str) -> None:
    picture = Image.new(mode, (8, 8), (250, 20, 30) if mode == "RGB" else (250, 20, 30, 77))
    data = encoded(picture, "PNG", icc_profile=_turned())
    found = converted(data, "png", "png")
    pixel = found.getpixel((3, 3))
    assert isinstance(pixel, tuple)
    assert np.abs(np.subtract(pixel[:3], (30, 250, 20))).max() <= 2
    assert pixel[3:] == ((77,) if mode == "RGBA" else ())
    assert "icc_profile" not in found.info
    kept = converted(data, "png", "png", profile="keep")
    assert (kept.getpixel((3, 3)), kept.info["icc_profile"]) == (
        picture.getpixel((3, 3)),
        _turned(),
    )
    dropped = converted(data, "png", "png", profile="drop")
    assert dropped.getpixel((3, 3)) == picture.getpixel((3, 3))
    assert "icc_profile" not in dropped.info


def test_a_profile_of_srgb_changes_nothing() -> None:
    data = png(icc_profile=profile("sRGB"))
    found = converted(data, "png", "png")
    assert found.tobytes() == scene(96, 64).tobytes() and "icc_profile" not in found.info


def test_a_profile_of_another_space_says_nothing() -> None:
    data = png(icc_profile=profile("LAB"))
    assert converted(data, "png", "png").tobytes() == scene(96, 64).tobytes()


def test_a_grey_picture_with_a_profile_of_colours_stays_grey() -> None:
    data = png(mode="L", icc_profile=_turned())
    found = converted(data, "png", "png")
    assert found.mode == "L"
    grey = np.asarray(scene(96, 64).convert("L"), int)
    assert np.abs(np.asarray(found, int) - grey).max() <= 2


def test_a_broken_profile_is_rejected_and_can_be_dropped() -> None:
    data = png(icc_profile=b"nonsense" * 20)
    with pytest.raises(Rejected, match="profile of 160 bytes cannot be read; profile: drop"):
        converted(data, "png", "png")
    assert converted(data, "png", "png", profile="drop").size == (96, 64)


def test_options_of_jpeg() -> None:
    data = png(256, 256)
    sizes = [
        len(Convert(["png"], "jpg", **each)(sample(png=data))["jpg"])
        for each in ({"quality": 20}, {"quality": 80}, {"quality": 80, "subsampling": "4:4:4"})
    ]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    found = converted(data, "png", "jpg", format="jpg", progressive=True, subsampling="4:4:4")
    assert found.info["progressive"]
    assert getattr(found, "layer")[0][1:3] == (1, 1)  # noqa: B009


def test_lossless_webp_is_lossless() -> None:
    found = converted(png(), "png", "webp", format="webp", lossless=True)
    assert found.tobytes() == scene(96, 64).tobytes()


def test_avif() -> None:
    pytest.importorskip("PIL._avif")
    found = converted(png(), "png", "avif", format="avif")
    assert np.abs(np.asarray(found, int) - np.asarray(scene(96, 64), int)).mean() < 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fields": ["txt"]}, "fields: found 'txt'; expected fields of pictures"),
        ({"fields": "jpg"}, "fields: found 'jpg'; expected a list of fields"),
        ({"fields": ["jpg"], "format": "heic"}, "format: found 'heic'; expected one of jpg, png"),
        (
            {"fields": ["jpg"], "mode": "RGBA"},
            "mode: found 'RGBA'; expected for jpg one of RGB, L, CMYK",
        ),
        ({"fields": ["jpg"], "qualty": 3}, "unknown parameter 'qualty'.*did you mean 'quality'"),
        (
            {"fields": ["jpg"], "quality": 101},
            "quality: found 101; expected a whole number, 1 to 100",
        ),
        ({"fields": ["png"], "quality": 50}, "quality: found 50; expected no such option of png"),
        (
            {"fields": ["jpg"], "subsampling": "4:1:1"},
            "subsampling: found '4:1:1'; expected one of 4:4:4",
        ),
        (
            {"fields": ["jpg"], "profile": "rgb"},
            "profile: found 'rgb'; expected one of srgb, keep, drop",
        ),
        ({"fields": ["jpg"], "background": "whit"}, "background: found 'whit'; expected a colour"),
        ({"fields": ["jpg"], "max_pixels": 0}, "max_pixels: found 0"),
        (
            {"fields": ["jpg"], "animated": "all"},
            "animated: found 'all'; expected one of first, reject",
        ),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Convert(**parameters)


def test_what_is_called_a_picture_may_be_another_kind_of_it() -> None:
    assert converted(png(), "jpg", "jpg").format == "JPEG"
    assert Image.open(io.BytesIO(jpeg())).format == "JPEG"
