"""`thumbnail`: a small picture as a new field."""

from __future__ import annotations

from typing import Any

from PIL import Image

from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_name, field_names, wrong
from wds_pipeline.transforms.picture_options import PictureOptions, extension_of
from wds_pipeline.transforms.resize import Scale, resized

_QUALITY = 80


class Thumbnail:
    """Adds the field `to`: the first of `fields` that a sample has, made to fit `size` pixels (one number, or
    width and height), never larger than it is.

    `options` are those of `PictureOptions`; the quality is 80 unless told.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self, fields: list[str], size: int | list[int] = 128, to: str = "thumb.jpg", **options: Any
    ) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._fields = field_names("fields", fields)
        for each in self._fields:
            extension_of(each)
        self._to = field_name("to", to)
        if to in fields:
            raise wrong("to", to, "another field than those of fields; resize changes a field")
        extension = extension_of(to)
        options = {"quality": _QUALITY, **options} if extension in ("jpg", "webp") else options
        self._options = PictureOptions.of(options, [extension], type(self))
        self._scale = Scale(size, None, None, "fit", only_shrink=True)

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no picture, and if the sample has a field `to`."""
        field = next((each for each in self._fields if each in sample), None)
        if field is None:
            return sample
        if self._to in sample:
            raise Rejected(f"there is a field {self._to} already; name another one (to)")
        picture = self._options.open(sample[field], field)
        small, profile = resized(picture, self._scale, Image.Resampling.BICUBIC, draft=True)
        sample[self._to] = self._options.write(small, profile, self._to)
        return sample
