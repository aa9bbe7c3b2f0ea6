"""What all transforms of pictures take as parameters, and how a picture becomes bytes again."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageColor

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.content_image import formats_of
from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.colours import HELD, held_mode, in_srgb
from wds_pipeline.transforms.parameters import one_of, switch, whole, wrong
from wds_pipeline.transforms.picture import MAX_PIXELS, Picture, told

# The formats that are written, Pillow's, by the extension that a converted field gets.
# fmt: off
FORMATS = {
    "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "avif": "AVIF", "bmp": "BMP", "ppm": "PPM",
}
# fmt: on
_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}
_QUALITY = {"JPEG": 90, "WEBP": 90, "AVIF": 75}
_HAVE = {
    "quality": {"jpg", "webp", "avif"},
    "subsampling": {"jpg"},
    "progressive": {"jpg"},
    "lossless": {"webp"},
}


@functools.cache
def extension_of(field: str) -> str:
    """The key of `FORMATS` for a field's name: jpeg and seg.jpg are jpg.

    Raises ValueError for one of no picture, ConfigError for a format that this Pillow does not write.
    """
    names = formats_of(field.rpartition(".")[2])
    for extension, name in FORMATS.items():
        if name in names:
            Image.init()
            if name not in Image.SAVE:
                raise ConfigError(
                    f"{field}: this Pillow does not write {name}; install a newer one"
                )
            return extension
    raise wrong(
        "fields", field, f"fields of pictures that can be written, such as {', '.join(FORMATS)}"
    )


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read and written. Raises ValueError or ConfigError for what is not possible.

    `quality` is Pillow's, 1 to 100, of jpg, webp and avif (None: 90, 90, 75); `subsampling` of the colours
    of a JPEG, 4:4:4, 4:2:2 or 4:2:0 (None: that). `profile` says what becomes of a colour profile: the
    colours are converted to sRGB and it is left out, or it is kept, or dropped as if it were not there.
    `background` is what transparent parts become where a format has no transparency. `animated` is
    whether of several frames the first is taken, or the sample is rejected. Pictures of more than
    `max_pixels` are rejected before they are decoded.
    """

    quality: int | None = None
    subsampling: str | None = None
    progressive: bool = False
    lossless: bool = False
    profile: str = "srgb"
    background: str = "white"
    animated: str = "first"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.quality is not None:
            whole("quality", self.quality, 1, 100)
        if self.subsampling is not None:
            one_of("subsampling", self.subsampling, _SUBSAMPLING)
        switch("progressive", self.progressive)
        switch("lossless", self.lossless)
        one_of("profile", self.profile, ("srgb", "keep", "drop"))
        one_of("animated", self.animated, ("first", "reject"))
        whole("max_pixels", self.max_pixels, 1)
        try:
            ImageColor.getrgb(self.background)
        except (ValueError, AttributeError, TypeError):
            raise wrong(
                "background", self.background, "a colour, such as white or '#ff8800'"
            ) from None

    @classmethod
    def of(
        cls, given: Mapping[str, Any], extensions: Collection[str], transform: type
    ) -> PictureOptions:
        """From the parameters of a transform beside its own, for pictures that are written as `extensions`.
        Raises ConfigError."""
        options = [each.name for each in dataclasses.fields(cls)]
        for name in given:
            if name not in options:
                own = [
                    each for each in inspect.signature(transform).parameters if each != "options"
                ]
                known = [*own, *options]
                raise ConfigError(
                    f"unknown parameter {name!r}; expected one of {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )
        for name, having in _HAVE.items():
            if given.get(name) and not having & set(extensions):
                written = ", ".join(sorted(set(extensions)))
                raise wrong(name, given[name], f"no such option of {written}")
        return cls(**given)

    def open(self, data: bytes, field: str) -> Picture:
        """A picture, not decoded yet. Raises Rejected."""
        return Picture(data, field, self.max_pixels, self.animated)

    def write(
        self, picture: Image.Image, profile: bytes | None, field: str, mode: str | None = None
    ) -> bytes:
        """A picture whose colours are by `profile` as a file of the format that `field` says, in Pillow's
        `mode` (None: its own, or the nearest that the format holds).

        Only pixels are written, and the profile if it is kept. Raises Rejected for pixels that the format
        cannot hold.
        """
        format_ = FORMATS[extension_of(field)]
        try:
            if profile and self.profile == "srgb":
                picture = in_srgb(picture, profile)
            written = held_mode(picture, format_, mode, self.background)
            keep = self.profile == "keep" and _space(written.mode) == _space(picture.mode)
            transparency = written.info.get("transparency") if written.mode == "P" else None
            if written.info:
                written.info = {} if transparency is None else {"transparency": transparency}
            sink = io.BytesIO()
            written.save(
                sink,
                format_,
                **({"icc_profile": profile} if keep else {}),
                **self._options(format_),
            )
        except Rejected as error:
            raise Rejected(f"{field}: {error}") from error
        except Exception as error:
            raise Rejected(f"{field}: cannot be written as {format_}: {told(error)}") from error
        return sink.getvalue()

    def _options(self, format_: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if format_ in _QUALITY:
            found["quality"] = _QUALITY[format_] if self.quality is None else self.quality
        if format_ == "JPEG":
            found["subsampling"] = _SUBSAMPLING.get(self.subsampling or "4:2:0")
            found["progressive"] = self.progressive
        elif format_ == "WEBP":
            found["lossless"] = self.lossless
        elif format_ == "AVIF":
            found["max_threads"] = 1  # the same bytes on every machine
        elif format_ == "TIFF":
            found["compression"] = "tiff_adobe_deflate"
        return found


def _space(mode: str) -> str:
    """What kind of profile goes with a mode."""
    return {"1": "grey", "L": "grey", "LA": "grey", "I;16": "grey", "CMYK": "cmyk"}.get(mode, "rgb")


def check_mode(mode: str, format_: str) -> None:
    """Raises ConfigError if a format does not hold a mode."""
    if mode not in HELD[format_]:
        raise ConfigError(f"mode: found {mode!r}; {format_} holds {', '.join(HELD[format_])}")
