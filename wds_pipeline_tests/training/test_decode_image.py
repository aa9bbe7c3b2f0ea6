"""Pictures: the same as webdataset's where that is right, and never silently a wrong one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from webdataset.autodecode import Decoder as WebDatasetDecoder
from webdataset.autodecode import imagehandler, imagespecs

from wds_pipeline.errors import ConfigError, DecodeError
from wds_pipeline.training.decode import make_decoder
from wds_pipeline.training.decode_image import IMAGE_SPECS, ImageSpec, candidates
from wds_pipeline_tests.training.pictures import SIZE, colours, damaged_at, depths, encoded, files

FILES = files()
# Of palettes with transparency, and of what is no picture.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def decode(spec: Any, field: str, data: bytes) -> Any:
    decoder = make_decoder(spec)
    assert decoder is not None
    return decoder({"__key__": "a", "__url__": "x.tar", field: data})[field]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Image.Image):
        return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))
    return one.dtype == other.dtype and np.array_equal(one, other)


def test_all_of_webdatasets_specs_are_there() -> None:
    assert imagespecs.keys() <= IMAGE_SPECS.keys()


@pytest.mark.parametrize("field", FILES)
@pytest.mark.parametrize("spec", imagespecs)
def test_as_webdataset(spec: str, field: str) -> None:
    expected = WebDatasetDecoder([imagehandler(spec)]).decode({field: FILES[field]})[field]
    assert same(decode(spec, field, FILES[field]), expected)
    assert same(decode({field.rpartition(".")[2]: spec}, field, FILES[field]), expected)


@pytest.mark.parametrize("spec", ["rgb8", "l8", "rgb", "stored"])
def test_arrays_may_be_written_to(spec: str) -> None:
    decode(spec, "png", FILES["png"])[0] = 0


@pytest.mark.parametrize("spec", ["pil", "rgb8", "torchrgb"])
@pytest.mark.parametrize("field", FILES)
def test_what_is_decoded_goes_to_other_processes(spec: str, field: str) -> None:
    found = decode(spec, field, FILES[field])
    assert same(pickle.loads(pickle.dumps(found)), found)


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF"])
def test_16_bits_of_grey_are_scaled(format: str) -> None:
    field = {"PNG": "png", "PPM": "pgm", "TIFF": "tif"}[format]
    data = encoded(Image.fromarray(depths()), format)
    upper = (depths() >> 8).astype(np.uint8)
    assert np.array_equal(decode("l8", field, data), upper)
    assert np.array_equal(decode("rgb8", field, data), np.stack([upper] * 3, axis=2))
    assert np.array_equal(np.asarray(decode("pill", field, data)), upper)
    exact = depths().astype(np.float32) / np.float32(65535)
    assert np.array_equal(decode("l", field, data), exact)
    rgba = decode("torchrgba", field, data)
    assert rgba.shape == (4, *exact.shape) and rgba.dtype == torch.float32
    assert np.array_equal(rgba[2].numpy(), exact) and bool((rgba[3] == 1).all())
    small = decode(ImageSpec("l", short_side=9), field, data)
    assert small.shape == (9, 12) and 0 < small.max() <= 1


def test_the_stored_numbers() -> None:
    assert np.array_equal(
        decode("stored", "png", encoded(Image.fromarray(depths()), "PNG")), depths()
    )
    palette = colours().quantize(16)
    found = decode({"seg.png": "stored"}, "seg.png", encoded(palette, "PNG"))
    assert np.array_equal(found, np.asarray(palette)) and found.max() < 16
    real = Image.fromarray(np.linspace(-3, 9, 12, dtype=np.float32).reshape(3, 4))
    data = encoded(real, "TIFF")
    assert np.array_equal(decode("stored", "tif", data), np.asarray(real))
    assert np.array_equal(decode("torchstored", "tif", data).numpy(), np.asarray(real))
    assert decode("pilstored", "tif", data).mode == "F"
    big_endian = Image.frombytes("I;16B", (2, 2), bytes(range(8)))
    data = encoded(big_endian, "TIFF")
    assert decode("torchstored", "tif", data).tolist() == [[1, 0x0203], [0x0405, 0x0607]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_white_are_no_picture(dtype: Any) -> None:
    data = encoded(Image.fromarray(np.arange(12, dtype=dtype).reshape(3, 4)), "TIFF")
    with pytest.raises(
        DecodeError, match=r"32-bit .* nothing says what white is; the spec 'stored'"
    ):
        decode("pil", "tif", data)


# Damage.


@pytest.mark.parametrize("field", FILES)
def test_cut_short_it_is_whole_or_an_error(field: str) -> None:
    whole = decode("rgba8", field, FILES[field])
    errors = 0
    for part in damaged_at(FILES[field]):
        try:
            found = decode("rgba8", field, part)
        except DecodeError as error:
            assert f"found {len(part):,} bytes" in str(error) or not part
            errors += 1
        else:
            assert np.array_equal(found, whole)  # what is missing was not of the picture
    assert errors > 10


def test_every_cut_of_a_jpeg_is_an_error() -> None:
    data = FILES["jpg"]
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            decode("pil", "jpg", data[:end])


def test_what_is_said_of_a_truncated_one() -> None:
    data = FILES["jpg"][:-40]
    sample = {"__key__": "cats/1", "__url__": "s3://b/train-0.tar", "jpg": data}
    decoder = make_decoder("pil", "captions: version 7, split train")
    assert decoder is not None
    with pytest.raises(DecodeError) as caught:
        decoder(sample)
    error = caught.value
    for part in (
        "captions: version 7, split train: s3://b/train-0.tar: sample 'cats/1', field jpg: ",
        "image file is truncated",
        f"found {len(data):,} bytes that start with b'\\xff\\xd8\\xff",
        "expected a whole picture",
        'on_error="skip"',
    ):
        assert part in str(error)
    assert (error.key, error.url, error.field) == ("cats/1", "s3://b/train-0.tar", "jpg")
    assert isinstance(error.__cause__, OSError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.key, again.field) == (str(error), "cats/1", "jpg")


def test_a_changed_byte_of_a_png() -> None:
    for at in range(8, len(FILES["png"])):
        data = bytearray(FILES["png"])
        data[at] ^= 0x40
        try:
            found = decode("rgb8", "png", bytes(data))
        except DecodeError:
            continue
        assert np.array_equal(found, decode("rgb8", "png", FILES["png"]))


@pytest.fixture
def lenient() -> Iterator[None]:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def test_pillows_switch_for_truncated_ones_must_be_meant(lenient: None) -> None:
    with pytest.raises(ConfigError, match="LOAD_TRUNCATED_IMAGES is on"):
        decode("pil", "jpg", FILES["jpg"])
    found = decode(ImageSpec("rgb8", lenient=True), "jpg", FILES["jpg"][:-40])
    assert found.shape == (SIZE[1], SIZE[0], 3)


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match=r"23 x 17 = 391 pixels; at most 390.*max_pixels"):
        decode(ImageSpec(max_pixels=390), "png", FILES["png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        decode("pil", "png", FILES["png"])


def test_postscript_is_never_run() -> None:
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert candidates("eps") == ()
    assert decode("pil", "eps", data) == data
    for spec in ("pil", {"*": "pil"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(DecodeError, match=r"cannot identify image file; found"):
                decode(spec, "jpg", data)


@pytest.mark.parametrize("field", ["mp4", "mpg", "wav", "h5", "pdf", "html", "count", "class"])
def test_what_is_no_picture_stays_bytes(field: str) -> None:
    assert decode("pil", field, b"whatever") == b"whatever"


# Size and orientation.


def test_a_short_side() -> None:
    for mode, width, height in (("JPEG", 400, 300), ("PNG", 90, 200)):
        data = encoded(colours(size=(width, height)), mode)
        found = decode(ImageSpec("pil", short_side=50), "jpg", data)
        assert min(found.size) == 50
        assert found.size[0] / found.size[1] == pytest.approx(width / height, rel=0.02)
    smaller = decode(ImageSpec("rgb8", short_side=50), "png", FILES["png"])
    assert np.array_equal(smaller, decode("rgb8", "png", FILES["png"]))  # not made larger


def test_a_smaller_one_is_the_same_picture() -> None:
    x, y = np.meshgrid(np.arange(640), np.arange(480))
    values = np.stack([x * 255 // 640, y * 255 // 480, (x + y) * 255 // 1120], axis=2)
    image = Image.fromarray(values.astype(np.uint8))
    found = decode(ImageSpec("rgb8", short_side=60), "jpg", encoded(image, "JPEG", quality=95))
    expected = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC))
    assert np.abs(found.astype(int) - expected).max() < 12


def test_orientation_by_choice() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = encoded(colours(), "JPEG", exif=exif.tobytes())
    stored = decode("rgb8", "jpg", data)
    assert stored.shape[:2] == (SIZE[1], SIZE[0])
    turned = decode(ImageSpec("rgb8", upright=True), "jpg", data)
    assert np.array_equal(turned, np.rot90(stored, -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageSpec("rbg8"), "found the image spec 'rbg8'.*did you mean"),
        (lambda: ImageSpec("rgb8", short_side=0), "expected 1 pixel or more"),
        (lambda: ImageSpec("stored", short_side=5), "cannot be averaged"),
    ],
)
def test_specs_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_threads_at_once() -> None:
    decoder = make_decoder("rgb8")
    assert decoder is not None
    expected = decoder(FILES)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(decoder, [FILES] * 64):
            for field in FILES:
                assert np.array_equal(found[field], expected[field])
