"""`resize`: pictures to another size."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.colours import averageable
from wds_pipeline.transforms.parameters import (
    MOST_SIDE,
    field_names,
    one_of,
    pair,
    switch,
    whole,
    wrong,
)
from wds_pipeline.transforms.picture import Picture
from wds_pipeline.transforms.picture_options import PictureOptions, extension_of

MODES = ("fit", "fill", "stretch", "shortest", "longest")
_FILTERS = {each.name.lower(): each for each in Image.Resampling}
_GAP = 2.0  # how many times larger than the result a draft is at least


class Resize:
    """Pictures to `size` (pixels; one number, or width and height), or to `width` and `height`.

    `mode`: fit (within the box, whole), fill (covers the box, and what juts out is cut off evenly),
    stretch (to the box, without the aspect), shortest, longest (that side is so long). With `width` or
    `height` alone the other side follows. `only_shrink` leaves alone what is small enough; `filter` is
    Pillow's name. A `draft` decodes a JPEG at 1/2, 1/4 or 1/8 of its size, twice the result at least, and
    averages in two steps: faster, and hardly another picture. `options` are those of `PictureOptions`.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        size: int | list[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        mode: str = "fit",
        only_shrink: bool = False,
        filter: str = "bicubic",
        draft: bool = True,
        **options: Any,
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._fields = field_names("fields", fields)
        self._options = PictureOptions.of(
            options, [extension_of(each) for each in self._fields], type(self)
        )
        self._scale = Scale(size, width, height, mode, switch("only_shrink", only_shrink))
        self._filter = _FILTERS[one_of("filter", filter, _FILTERS)]
        self._draft = switch("draft", draft)

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no picture."""
        for field in self._fields:
            if field in sample:
                picture = self._options.open(sample[field], field)
                small, profile = resized(picture, self._scale, self._filter, self._draft)
                sample[field] = self._options.write(small, profile, field)
        return sample


class Scale:
    """From a picture's size to the result's. Raises ValueError or ConfigError."""

    def __init__(
        self,
        size: int | list[int] | None,
        width: int | None,
        height: int | None,
        mode: str,
        only_shrink: bool,
    ) -> None:
        self.mode = one_of("mode", mode, MODES)
        self._only_shrink = only_shrink
        if (size is None) == (width is None and height is None):
            raise wrong("size", size, "size, or width and height, or one of these two; in pixels")
        box: list[float] = [math.inf, math.inf]
        if size is not None:
            box = [*pair("size", size)]
        for place, (name, side) in enumerate((("width", width), ("height", height))):
            if side is not None:
                box[place] = whole(name, side, 1, MOST_SIDE)
        if mode in ("shortest", "longest") and (size is None or box[0] != box[1]):
            raise wrong("size", size, f"one number of pixels with mode: {mode}")
        if mode in ("fill", "stretch") and math.inf in box:
            raise wrong(
                "height" if width else "width", None, f"a number of pixels with mode: {mode}"
            )
        self._box = (box[0], box[1])

    def of(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What a picture is scaled to, and what is cut out of the middle of that."""
        box_width, box_height = self._box
        if self.mode == "stretch":
            across, down = box_width / width, box_height / height
            if self._only_shrink:
                across, down = min(across, 1), min(down, 1)
            scaled = _pixels(width * across), _pixels(height * down)
            return scaled, scaled
        ratios = box_width / width, box_height / height
        widest = self.mode == "fill" or self.mode == "shortest"
        ratio = max(ratios) if widest else min(ratios)
        if self._only_shrink:
            ratio = min(ratio, 1)
        scaled = _pixels(width * ratio), _pixels(height * ratio)
        if self.mode != "fill":
            return scaled, scaled
        return scaled, (min(scaled[0], int(box_width)), min(scaled[1], int(box_height)))


def _pixels(side: float) -> int:
    return max(1, math.floor(side + 0.5))


def resized(
    picture: Picture, scale: Scale, filter: Image.Resampling, draft: bool
) -> tuple[Image.Image, bytes | None]:
    """The picture in its new size, and its colour profile. Raises Rejected."""
    (width, height), (kept_width, kept_height) = scale.of(*picture.size)
    if kept_width * kept_height > picture.max_pixels:
        raise Rejected(
            f"{picture.field}: it would become {kept_width:,} x {kept_height:,} pixels; at most "
            f"{picture.max_pixels:,}: max_pixels allows more"
        )
    if draft and filter != Image.Resampling.NEAREST:
        picture.draft((math.ceil(width * _GAP), math.ceil(height * _GAP)))
    found = picture.pixels()
    if (width, height) == picture.size == found.size == (kept_width, kept_height):
        return found, picture.profile
    if filter != Image.Resampling.NEAREST:
        found = averageable(found)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    across, down = found.width / width, found.height / height
    box = (left * across, top * down, (left + kept_width) * across, (top + kept_height) * down)
    gap = _GAP if draft and not found.mode.startswith("I;16") else None
    return found.resize((kept_width, kept_height), filter, box, gap), picture.profile
