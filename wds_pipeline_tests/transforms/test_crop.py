"""`crop`: which part, and that fields of one sample are cut alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.crop import Crop
from wds_pipeline_tests.transforms.media import jpeg, opened, png, sample, scene

PIXELS = np.asarray(scene(96, 64))


def cropped(key: str = "a/1", data: bytes | None = None, **parameters: Any) -> np.ndarray:
    found = Crop(["png"], **parameters)(sample(key, png=png() if data is None else data))
    return np.asarray(opened(found["png"]))


def test_the_center() -> None:
    assert (cropped(size=[20, 10]) == PIXELS[27:37, 38:58]).all()
    assert (cropped(size=[96, 64]) == PIXELS).all()


def test_a_box() -> None:
    assert (cropped(box=[10, 20, 40, 60]) == PIXELS[20:60, 10:40]).all()


def test_a_random_place_is_by_key_and_seed() -> None:
    first = cropped("a/1", size=16, at="random")
    assert first.shape == (16, 16, 3)
    assert (first == cropped("a/1", size=16, at="random")).all()
    others = [cropped(f"a/{number}", size=16, at="random") for number in range(20)]
    assert len({each.tobytes() for each in others}) > 15
    assert cropped("a/1", size=16, at="random", seed=1).tobytes() != first.tobytes()


def test_random_places_are_everywhere() -> None:
    lefts = {int(cropped(f"{number}", size=[94, 64], at="random")[0, 0, 0]) for number in range(60)}
    assert lefts == {int(PIXELS[0, left, 0]) for left in range(3)}


def test_fields_of_one_sample_are_cut_at_the_same_place() -> None:
    crop = Crop(["png", "seg.png"], size=16, at="random")
    found = crop({"__key__": "k", "png": png(), "seg.png": png()})
    assert found["png"] == found["seg.png"]


@given(size=st.tuples(st.integers(1, 80), st.integers(1, 80)), key=st.text(max_size=5))
def test_a_part_lies_within(size: tuple[int, int], key: str) -> None:
    crop = Crop(["jpg"], size=list(size), at="random", smaller="keep")
    left, top, right, bottom = crop._part((50, 40), "jpg", key)
    assert 0 <= left < right <= 50 and 0 <= top < bottom <= 40
    assert (right - left, bottom - top) == (min(size[0], 50), min(size[1], 40))


def test_too_small_a_picture() -> None:
    with pytest.raises(Rejected, match="png: 96 x 64 pixels; expected 100 x 10 or more"):
        cropped(size=[100, 10])
    assert (cropped(size=[100, 10], smaller="keep") == PIXELS[27:37]).all()
    with pytest.raises(Rejected, match=r"expected the box \[90, 60, 100, 70\] in it"):
        cropped(box=[90, 60, 100, 70])
    assert (cropped(box=[90, 60, 100, 70], smaller="keep") == PIXELS[60:, 90:]).all()
    with pytest.raises(Rejected, match="expected the box"):
        cropped(box=[96, 0, 100, 10], smaller="keep")


def test_the_box_is_of_the_picture_as_people_see_it() -> None:
    found = Crop(["jpg"], box=[0, 0, 64, 8])(sample(jpg=jpeg(96, 64, orientation=6)))
    assert opened(found["jpg"]).size == (64, 8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "size: found None; expected size or box"),
        ({"size": 3, "box": [0, 0, 1, 1]}, "size: found 3; expected size or box"),
        ({"size": [3]}, "size: found .*expected pixels: one number, or"),
        ({"size": "3"}, "size: found '3'; expected pixels"),
        ({"size": 3, "at": "top"}, "at: found 'top'; expected one of center, random"),
        ({"size": 3, "seed": -1}, "seed: found -1"),
        ({"box": [0, 0, 0, 1]}, r"box: found \[0, 0, 0, 1\]; expected \[left"),
        ({"box": [0, 0, 1]}, "box: found"),
        ({"size": 3, "smaller": "pad"}, "smaller: found 'pad'; expected one of reject, keep"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Crop(["jpg"], **parameters)
