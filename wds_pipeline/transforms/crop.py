"""`crop`: a part of each picture."""

from __future__ import annotations

from typing import Any

import xxhash

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_names, one_of, pair, whole, wrong
from wds_pipeline.transforms.picture_options import PictureOptions, extension_of

_PLACES = ("center", "random")


class Crop:
    """A part of pictures: of `size` (pixels; one number, or width and height) `at` the center or at a random
    place, or the `box` [left, top, right, bottom] of the picture as people see it.

    The random place is by `seed` and the sample's key, so fields of the same size are cut at the same place.
    Of a picture that is smaller, `smaller` says whether the sample is rejected, or what is there is kept.
    `options` are those of `PictureOptions`.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        size: int | list[int] | None = None,
        at: str = "center",
        seed: int = 0,
        box: list[int] | None = None,
        smaller: str = "reject",
        **options: Any,
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._fields = field_names("fields", fields)
        self._options = PictureOptions.of(
            options, [extension_of(each) for each in self._fields], type(self)
        )
        if (size is None) == (box is None):
            raise wrong("size", size, "size or box, in pixels")
        self._size = None if size is None else pair("size", size)
        self._box = None if box is None else _box(box)
        self._at = one_of("at", at, _PLACES)
        self._seed = whole("seed", seed, 0)
        self._reject = one_of("smaller", smaller, ("reject", "keep")) == "reject"

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no picture, or one that is too small."""
        for field in self._fields:
            if field in sample:
                picture = self._options.open(sample[field], field)
                box = self._part(picture.size, field, sample["__key__"])
                sample[field] = self._options.write(
                    picture.pixels().crop(box), picture.profile, field
                )
        return sample

    def _part(self, size: tuple[int, int], field: str, key: str) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is kept."""
        width, height = size
        if self._box is not None:
            left, top, right, bottom = self._box
            juts_out = right > width or bottom > height
            if left >= width or top >= height or (juts_out and self._reject):
                raise Rejected(
                    f"{field}: {width} x {height} pixels; expected the box {list(self._box)} in it"
                )
            return left, top, min(right, width), min(bottom, height)
        assert self._size is not None
        if self._reject and (width < self._size[0] or height < self._size[1]):
            raise Rejected(
                f"{field}: {width} x {height} pixels; expected {self._size[0]} x {self._size[1]} or more "
                "(smaller: keep takes what is there)"
            )
        kept = min(width, self._size[0]), min(height, self._size[1])
        free = width - kept[0], height - kept[1]
        left, top = free[0] // 2, free[1] // 2
        if self._at == "random":
            number = xxhash.xxh3_128_intdigest(f"{self._seed} {key}".encode())
            left = (number >> 64) * (free[0] + 1) >> 64
            top = (number & 2**64 - 1) * (free[1] + 1) >> 64
        return left, top, left + kept[0], top + kept[1]


def _box(found: Any) -> tuple[int, int, int, int]:
    expected = "[left, top, right, bottom] in pixels, with left < right and top < bottom"
    if not isinstance(found, list | tuple) or len(found) != 4:
        raise wrong("box", found, expected)
    left, top, right, bottom = (whole("box", each, 0) for each in found)
    if left >= right or top >= bottom:
        raise wrong("box", found, expected)
    return left, top, right, bottom
