"""Each kind of content: what decodes passes, what does not has its problem, nothing raises."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from wds_pipeline.dataset import content
from wds_pipeline.dataset.content import Facts, check, kind
from wds_pipeline.dataset.content_image import THUMBNAIL_SIDE, check_image, formats_of

PIXELS = 1_000_000
# pytest resets the filter that the module sets
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def image(
    form: str = "JPEG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **kw: Any
) -> bytes:
    noise = random.Random(5).randbytes(size[0] * size[1] * len(Image.new(mode, (1, 1)).tobytes()))
    out = io.BytesIO()
    Image.frombytes(mode, size, noise).save(out, form, **kw)
    return out.getvalue()


def array(value: object) -> bytes:
    out = io.BytesIO()
    np.save(out, value, allow_pickle=True)  # type: ignore[arg-type]
    return out.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its few bytes can hold."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_images_decode_with_their_facts() -> None:
    for form, extension in (("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tif")):
        facts = check("jpg", [extension], image(form), PIXELS)
        assert (facts.problem, facts.width, facts.height, facts.format) == (None, 64, 48, form)
        assert facts.decoded


def test_the_config_says_which_formats_a_field_may_hold() -> None:
    png = image("PNG")
    assert check("jpg", ["jpg", "jpeg", "png", "webp"], png, PIXELS).problem is None
    lying = check("jpg", ["jpg", "jpeg"], png, PIXELS)
    assert (lying.problem, lying.format) == ("wrong_format", "PNG")
    assert "PNG" in lying.detail and "JPEG" in lying.detail
    assert check("seg.png", [], png, PIXELS).problem is None


def test_a_jpeg_of_several_pictures_is_a_jpeg() -> None:
    frame = Image.new("RGB", (20, 20), "red")
    out = io.BytesIO()
    frame.save(out, "MPO", save_all=True, append_images=[frame])
    facts = check("jpg", ["jpg"], out.getvalue(), PIXELS)
    assert facts.problem is None and "first of 2 frames" in facts.detail


def test_only_the_first_frame_of_an_animation_and_it_says_so() -> None:
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 100, 200)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    facts = check("gif", ["gif"], out.getvalue(), PIXELS)
    assert facts.problem is None and facts.detail == "first of 3 frames decoded"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_images_are_broken(form: str, share: float) -> None:
    data = image(form)
    facts = check("x", [form.lower()], data[: int(len(data) * share)], PIXELS)
    assert facts.problem == "broken_image", facts


def test_what_is_no_image_is_broken_and_its_start_is_shown() -> None:
    facts = check("jpg", ["jpg"], b"<!DOCTYPE html><title>404</title>", PIXELS)
    assert facts.problem == "broken_image" and "DOCTYPE" in facts.detail


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_flip_in_a_png_is_found(data: st.DataObject) -> None:
    png = bytearray(image("PNG", (16, 16)))
    at = data.draw(st.integers(0, len(png) - 1))
    png[at] ^= 1 << data.draw(st.integers(0, 7))
    assert check("png", ["png"], bytes(png), PIXELS).problem is not None


@pytest.mark.parametrize("progressive", [False, True])
def test_scaled_jpeg_decoding_fails_where_the_full_one_does(progressive: bool) -> None:
    good, choice, broken = image("JPEG", (160, 120), progressive=progressive), random.Random(3), 0
    for number in range(150):
        data = bytearray(good)
        if number % 2:
            del data[choice.randrange(len(data)) :]
        else:
            data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        try:
            opened = Image.open(io.BytesIO(data))
            opened.load()
            full = opened.format in ("JPEG", "MPO")
        except Exception:
            full = False
        broken += not full
        assert (check_image(bytes(data), {"JPEG", "MPO"}, 10**10).problem is None) == full
    assert broken > 50


def test_too_many_pixels_is_known_from_the_header() -> None:
    facts = check("png", ["png"], bomb_png(60_000, 60_000), PIXELS)
    assert (facts.problem, facts.width, facts.decoded) == ("too_many_pixels", 60_000, False)
    assert "3,600,000,000" in facts.detail


def test_what_does_not_fit_in_a_worker_is_not_decoded_and_counted() -> None:
    facts = check("png", ["png"], bomb_png(9_000, 9_000), 10**9)
    assert facts.problem is None and not facts.decoded
    assert facts.detail.startswith(content.TOO_LARGE)


def test_lenient_switches_of_other_code_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = image()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check("jpg", ["jpg"], data, PIXELS).problem is None
    assert check("jpg", ["jpg"], data[:-300], PIXELS).problem == "broken_image"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16", "CMYK", "1", "LA"])
def test_thumbnails_are_small_jpegs(mode: str) -> None:
    form = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    out = io.BytesIO()
    Image.new(mode, (700, 300)).save(out, form)
    facts = check("x", [form.lower()], out.getvalue(), PIXELS, thumbnail=True)
    assert facts.problem is None and facts.thumbnail is not None
    small = Image.open(io.BytesIO(facts.thumbnail))
    assert (
        small.format == "JPEG"
        and max(small.size) == THUMBNAIL_SIDE
        and len(facts.thumbnail) < 10_000
    )


def test_thumbnails_are_turned_as_their_exif_says_and_sizes_are_not() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    facts = check("jpg", ["jpg"], image(size=(256, 128), exif=exif), PIXELS, thumbnail=True)
    assert (facts.width, facts.height) == (256, 128)
    assert Image.open(io.BytesIO(facts.thumbnail or b"")).size == (48, 96)


def test_nothing_that_starts_programs_or_cannot_decode_counts_as_image() -> None:
    for extension in ("eps", "ps", "mpg", "wmf", "hdf", "txt", "", "nothing"):
        assert not formats_of(extension)
    assert check("ps", ["ps"], b"%!PS-Adobe-3.0 EPSF-3.0", PIXELS) == Facts()


def test_text() -> None:
    facts = check("txt", ["txt"], "äö 🎈".encode() * 400_000, PIXELS)  # cut within characters
    assert (facts.problem, facts.chars, facts.format) == (None, 1_600_000, "text")
    bad = check("txt", ["txt"], b"abc \xff def", PIXELS)
    assert bad.problem == "bad_text" and "0xff at offset 4" in bad.detail
    assert check("txt", ["txt"], b"abc \xc3", PIXELS).problem == "bad_text"


@given(st.binary(min_size=1, max_size=200))
def test_text_agrees_with_python(data: bytes) -> None:
    facts = check("txt", [], data, PIXELS)
    try:
        assert facts.chars == len(data.decode())
    except UnicodeDecodeError as error:
        assert facts.problem == "bad_text" and f"offset {error.start}" in facts.detail


@pytest.mark.parametrize(
    ("field", "data", "problem"),
    [
        ("json", b'{"a": [1, null, "\xc3\xa4"]}', None),
        ("json", b"\xef\xbb\xbf{}", None),
        ("json", b"{'a': 1}", "bad_json"),
        ("json", b'"\xff"', "bad_json"),
        ("json", b"[" * 200_000, "bad_json"),
        ("jsn", b"1 2", "bad_json"),
        ("jsonl", b'{"a": 1}\n\n{"a": 2}\n', None),
        ("jsonl", b'{"a": 1}\n{"a": \n', "bad_json"),
        ("cls", b"12\n", None),
        ("cls", b"-3", None),
        ("index", b"1.5", "bad_number"),
        ("count", b"many", "bad_number"),
        ("id", b"9" * 10_000, "bad_number"),
        ("bin", b"\x00\xff", None),
        ("pyd", b"cos\nsystem\n(S'false'\ntR.", None),
        ("mp4", b"whatever", None),
    ],
)
def test_json_numbers_and_what_nobody_decodes(field: str, data: bytes, problem: str | None) -> None:
    facts = check(field, [], data, PIXELS)
    assert facts.problem == problem, facts
    assert (facts.format is None) == (field in ("bin", "pyd", "mp4") or problem == "bad_number")


def test_the_line_of_a_bad_json_line_is_named() -> None:
    assert check("jsonl", [], b"1\n2\n{\n", PIXELS).detail.startswith("line 3:")


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((3, 4)),
        np.zeros((), "<i2"),
        np.zeros(2, [("a", "<f4"), ("b", "<i2")]),
        np.zeros((0, 7)),
    ],
)
def test_arrays_pass(value: np.ndarray) -> None:
    assert check("npy", [], array(value), PIXELS).problem is None


def test_arrays_that_lie_are_bad_and_nothing_is_allocated() -> None:
    good = array(np.arange(100.0))
    huge = good.replace(b"(100,)", b"(10000000000,)")
    cases = [good[:-8], good[:20], huge, b"NUMPY", array(np.array([{}, None], dtype=object))]
    for data in cases:
        assert check("npy", [], data, PIXELS).problem == "bad_array", data[:80]


def test_archives_of_arrays() -> None:
    out = io.BytesIO()
    np.savez_compressed(out, a=np.arange(1000), b=np.eye(3))
    good = out.getvalue()
    assert check("npz", [], good, PIXELS).problem is None
    flipped = bytearray(good)
    flipped[60] ^= 4
    for data in (good[:-30], b"PK nothing", bytes(flipped)):
        assert check("npz", [], data, PIXELS).problem == "bad_array"
    out = io.BytesIO()
    np.savez_compressed(out, a=np.zeros(2 * content.MAX_IN_MEMORY, dtype=np.uint8))
    assert "unpacks to" in check("npz", [], out.getvalue(), PIXELS).detail


def test_compressed_content_is_checked_inside() -> None:
    packed = gzip.compress(json.dumps({"a": 1}).encode())
    facts = check("json.gz", [], packed, PIXELS)
    assert (facts.problem, facts.format) == (None, "json gzip")
    assert check("json.gz", [], gzip.compress(b"{"), PIXELS).problem == "bad_json"
    assert check("png.gz", [], gzip.compress(image("PNG")), PIXELS).width == 64
    assert check("json", ["json", "json.gz"], packed, PIXELS).problem is None
    assert check("json", ["json", "json.gz"], b"[]", PIXELS).problem is None
    for data in (packed[:-4], b"no gzip", packed[:15] + b"\xff" + packed[16:]):
        assert check("json.gz", [], data, PIXELS).problem == "bad_compression"


def test_a_compression_bomb_is_stopped_and_a_large_file_is_not_one() -> None:
    bomb = gzip.compress(bytes(content.MAX_IN_MEMORY + 2**21), 9)
    assert check("txt.gz", [], bomb, PIXELS).problem == "bad_compression"
    line = np.random.default_rng(0).integers(32, 48, 2**20, dtype=np.uint8).tobytes()
    large = gzip.compress(line, 1) * (content.MAX_IN_MEMORY // 2**20 + 1)
    facts = check("txt.gz", [], large, PIXELS)
    assert facts.problem is None and facts.detail.startswith(content.TOO_LARGE)


def test_above_the_limits_nothing_is_decoded_and_that_is_said() -> None:
    for field, size in (("txt", content.MAX_IN_MEMORY), ("json", content.MAX_JSON)):
        facts = check(field, [], memoryview(bytes(size + 1)), PIXELS)
        assert facts == Facts(detail=f"{content.TOO_LARGE} ({size + 1:,} bytes)")


@pytest.mark.parametrize("field", ["jpg", "txt", "json", "npy", "json.gz", "mp4", "anything"])
def test_zero_bytes_are_a_problem_for_every_field(field: str) -> None:
    assert check(field, [], b"", PIXELS).problem == "empty_file"


@given(
    st.sampled_from(["jpg", "png", "tif", "tga", "pcx", "json", "npy", "npz", "json.gz", "cls"]),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"\x93NUMPY\1\0",
                     b"PK\3\4", b"\x1f\x8b\x08"]),
    st.binary(max_size=300),
)  # fmt: skip
@settings(deadline=None)
def test_nothing_raises_and_the_same_bytes_give_the_same_facts(
    field: str, magic: bytes, data: bytes
) -> None:
    assert check(field, [], magic + data, PIXELS) == check(field, [], magic + data, PIXELS)


def test_kinds() -> None:
    fields = {"jpg": "image", "seg.png": "image", "txt": "text", "npy": "array", "wav": "media"}
    for field, expected in {**fields, "json.gz": "json", "cls": "number", "zzz": "other"}.items():
        assert kind((field,)) == expected
