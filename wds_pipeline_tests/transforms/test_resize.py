"""`resize` and `thumbnail`: sizes, what the pixels are, and what is written beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.resize import MODES, Resize, Scale
from wds_pipeline.transforms.thumbnail import Thumbnail
from wds_pipeline_tests.transforms.media import encoded, huge_png, jpeg, opened, png, sample, scene

SIDES = st.integers(1, 5_000)


def resized(data: bytes, field: str = "jpg", **parameters: Any) -> Image.Image:
    return opened(Resize([field], **parameters)({"__key__": "a/1", field: data})[field])


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        ({"size": 48}, (48, 32)),
        ({"size": [30, 30]}, (30, 20)),
        ({"size": 48, "mode": "fill"}, (48, 48)),
        ({"size": [10, 60], "mode": "fill"}, (10, 60)),
        ({"size": 48, "mode": "stretch"}, (48, 48)),
        ({"size": 48, "mode": "shortest"}, (72, 48)),
        ({"size": 48, "mode": "longest"}, (48, 32)),
        ({"width": 24}, (24, 16)),
        ({"height": 16}, (24, 16)),
        ({"width": 24, "height": 50}, (24, 16)),
        ({"size": 192}, (192, 128)),
        ({"size": 192, "only_shrink": True}, (96, 64)),
        ({"size": [48, 192], "mode": "fill", "only_shrink": True}, (48, 64)),
        ({"size": [48, 192], "mode": "stretch", "only_shrink": True}, (48, 64)),
        ({"size": 100, "mode": "shortest", "only_shrink": True}, (96, 64)),
    ],
)
@pytest.mark.parametrize("draft", [True, False])
def test_sizes(parameters: dict[str, Any], size: tuple[int, int], draft: bool) -> None:
    assert resized(jpeg(96, 64), draft=draft, **parameters).size == size


@given(width=SIDES, height=SIDES, box=st.tuples(SIDES, SIDES), shrink=st.booleans())
def test_fit_stays_in_the_box_and_keeps_the_aspect(
    width: int, height: int, box: tuple[int, int], shrink: bool
) -> None:
    scaled, kept = Scale(list(box), None, None, "fit", shrink).of(width, height)
    assert scaled == kept
    assert 1 <= scaled[0] <= box[0] and 1 <= scaled[1] <= box[1]
    ratio = min(box[0] / width, box[1] / height)
    ratio = min(ratio, 1) if shrink else ratio
    assert all(
        abs(found - max(side * ratio, 1)) <= 0.5 + 1e-9
        for found, side in zip(scaled, (width, height), strict=True)
    )
    if not shrink:
        assert scaled[0] == box[0] or scaled[1] == box[1]


@given(width=SIDES, height=SIDES, box=st.tuples(SIDES, SIDES))
def test_fill_gives_the_box_out_of_what_covers_it(
    width: int, height: int, box: tuple[int, int]
) -> None:
    scaled, kept = Scale(list(box), None, None, "fill", False).of(width, height)
    assert kept == box
    assert scaled[0] >= box[0] and scaled[1] >= box[1]
    assert scaled[0] == box[0] or scaled[1] == box[1]


@given(width=SIDES, height=SIDES, mode=st.sampled_from(MODES), size=SIDES)
def test_only_shrink_never_enlarges(width: int, height: int, mode: str, size: int) -> None:
    for each in Scale(size, None, None, mode, True).of(width, height):
        assert each[0] <= width and each[1] <= height


@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("mode", ["fit", "fill", "stretch"])
def test_pixels_are_those_of_the_picture_in_that_size(mode: str, draft: bool) -> None:
    found = np.asarray(resized(jpeg(800, 600), size=100, mode=mode, draft=draft), np.int16)
    whole = scene(800, 600)
    if mode == "fill":
        whole = whole.crop((100, 0, 700, 600))
    expected = np.asarray(whole.resize((found.shape[1], found.shape[0])), np.int16)
    assert np.abs(found - expected).max() < 16
    assert np.abs(found - expected).mean() < 1.5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("draft", [True, False])
def test_a_picture_is_turned_upright_and_the_tag_is_gone(orientation: int, draft: bool) -> None:
    shown = np.asarray(scene(400, 200), np.int16)
    # The stored pixels that a viewer turns into `shown`.
    undo = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown, 1),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo).astype(np.uint8))
    found = resized(encoded(stored, "JPEG", quality=95, exif=exif), size=[50, 40], draft=draft)
    assert found.size == (50, 25)
    expected = np.asarray(scene(400, 200).resize((50, 25)), np.int16)
    assert np.abs(np.asarray(found, np.int16) - expected).max() < 32
    assert not found.getexif()


def test_nothing_but_pixels_is_written() -> None:
    exif = Image.Exif()
    exif[271] = "a camera"
    found = resized(jpeg(exif=exif, comment=b"a remark", dpi=(300, 300)), size=32)
    assert not found.getexif()
    assert not {"comment", "exif", "icc_profile"} & found.info.keys()


def test_a_mask_keeps_its_classes_with_nearest() -> None:
    mask = Image.new("P", (40, 40), 3)
    mask.putpalette(bytes(range(256)) * 3)
    mask.paste(7, (0, 0, 20, 40))
    found = resized(encoded(mask, "PNG"), "png", size=10, filter="nearest")
    assert found.mode == "P"
    assert set(np.unique(np.asarray(found))) == {3, 7}


def test_a_palette_is_averaged_as_colours() -> None:
    striped = Image.new("P", (64, 64), 0)
    striped.putpalette([0, 0, 0, 254, 254, 254])
    for column in range(0, 64, 2):
        striped.paste(1, (column, 0, column + 1, 64))
    found = resized(encoded(striped, "PNG"), "png", size=8)
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found, np.int16) - 127).max() < 20


def test_a_transparent_edge_has_no_dark_fringe() -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (31, 0, 64, 64))
    found = resized(encoded(picture, "PNG"), "png", size=16)
    pixels = np.asarray(found)
    assert pixels[pixels[..., 3] > 0][:, 0].min() > 250


@pytest.mark.parametrize("draft", [True, False])
def test_sixteen_bits_stay_in_a_png(draft: bool) -> None:
    depth = Image.fromarray(np.linspace(0, 65_535, 64 * 64).reshape(64, 64).astype(np.uint16))
    found = resized(encoded(depth, "PNG"), "png", size=8, draft=draft)
    assert found.mode == "I;16"
    assert np.asarray(found).max() > 60_000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no picture"),
        (b"GIF what", "no picture"),
        (jpeg(640, 480)[:3_000], "truncated"),
        (png()[:-20], "truncated"),
        (huge_png(20_000, 20_000), "400,000,000 pixels; at most 178,956,970"),
    ],
)
def test_what_is_no_picture_is_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(Rejected, match=reason) as caught:
        resized(data, size=10)
    assert str(caught.value).startswith("jpg: ")


def test_a_switch_of_other_code_lets_no_truncated_picture_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(Rejected, match="truncated"):
        resized(jpeg(640, 480)[:3_000], size=600)


def test_a_result_of_too_many_pixels_is_rejected() -> None:
    with pytest.raises(Rejected, match="would become 1,000 x 64,000 pixels"):
        resized(jpeg(1, 64), size=1_000, mode="shortest", max_pixels=1_000_000)


def test_other_fields_and_samples_pass_untouched() -> None:
    resize = Resize(["jpg"], size=8)
    assert resize(sample(txt=b"x")) == sample(txt=b"x")
    found = resize(sample(jpg=jpeg(), png=b"no picture", txt=b"x"))
    assert (found["png"], found["txt"]) == (b"no picture", b"x")


def test_a_field_gets_the_format_of_its_name() -> None:
    found = resized(png(), "jpg", size=8)
    assert found.format == "JPEG"


def test_frames_of_an_animation() -> None:
    some = [scene(32, 32, seed) for seed in range(3)]
    data = encoded(some[0], "WEBP", save_all=True, append_images=some[1:], lossless=True)
    first = np.asarray(resized(data, "webp", size=32, lossless=True))
    assert (first == np.asarray(some[0])).all()
    with pytest.raises(Rejected, match="3 frames; expected one"):
        resized(data, "webp", size=32, animated="reject")


def test_a_thumbnail_is_added_and_the_picture_stays() -> None:
    data = jpeg(400, 200, orientation=6)
    found = Thumbnail(["png", "jpg"], size=50)(sample(jpg=data, txt=b"x"))
    assert found["jpg"] == data
    assert opened(found["thumb.jpg"]).size == (25, 50)
    assert Thumbnail(["jpg"], size=500, to="t.png")(sample(jpg=data))["t.png"][:4] == b"\x89PNG"
    assert opened(Thumbnail(["jpg"], size=900)(sample(jpg=data))["thumb.jpg"]).size == (200, 400)
    assert Thumbnail(["png"])(sample(txt=b"x")) == sample(txt=b"x")


def test_a_thumbnail_replaces_nothing() -> None:
    with pytest.raises(Rejected, match=r"there is a field thumb\.jpg already"):
        Thumbnail(["jpg"])({**sample(jpg=jpeg()), "thumb.jpg": b""})
