"""Colours of pictures: profiles to sRGB, and modes to those that a format holds."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor

from wds_pipeline.transforms.api import Rejected

# The modes of Pillow that each format holds; the first for what it does not.
HELD = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "L", "1", "P", "LA", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F", "LAB"),
    "BMP": ("RGB", "L", "1", "P"),
    "PPM": ("RGB", "L", "1", "I;16"),
    "AVIF": ("RGB", "RGBA"),
}
_WITHOUT_WHITE = {"I": "32-bit integers", "F": "32-bit floats"}
_SPACES = {"L": "GRAY", "LA": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}  # all others: RGB


def in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture with its colours in sRGB; grey stays grey.

    A profile of another colour space than the pixels are in says nothing of them and is left aside, as
    browsers do. Raises Rejected for one that cannot be used.
    """
    if picture.mode not in ("RGB", "RGBA", "CMYK", "L", "LA", "P", "PA"):
        return picture
    space, grey = _space(profile), picture.mode in ("L", "LA")
    if space == "sRGB" or (
        space != _SPACES.get(picture.mode, "RGB") and not (grey and space == "RGB")
    ):
        return picture
    colours = _many_valued(picture)
    if grey:  # some cameras give grey pictures their RGB profile
        colours = picture.convert("L").convert("RGB" if space == "RGB" else "L")
    try:
        changed = ImageCms.applyTransform(colours, _transform(profile, colours.mode))
    except ImageCms.PyCMSError as error:
        raise Rejected(
            f"its colour profile cannot be used ({error}); profile: drop ignores it"
        ) from error
    assert changed is not None
    if grey:
        changed = changed.convert("L")
        if picture.mode == "LA":
            changed.putalpha(picture.getchannel("A"))
    return changed


@functools.lru_cache(maxsize=64)
def _space(profile: bytes) -> str:
    """RGB, GRAY, CMYK, Lab; sRGB for what is sRGB already."""
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        space, named = found.xcolor_space.strip(), str(found.profile_description or "")
    except Exception as error:
        raise Rejected(
            f"its colour profile of {len(profile):,} bytes cannot be read; profile: drop ignores it"
        ) from error
    return "sRGB" if space == "RGB" and named.lower().startswith("srgb") else space


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGBA" if mode == "RGBA" else "RGB",
        ImageCms.Intent.PERCEPTUAL,
    )


def averageable(picture: Image.Image) -> Image.Image:
    """The picture in a mode in which values between two pixels' mean something: no palette, no colour that
    stands for transparency, no bits."""
    if picture.mode == "1":
        return picture.convert("L")
    return _many_valued(picture)


def _many_valued(picture: Image.Image) -> Image.Image:
    if picture.mode in ("L", "1") and "transparency" in picture.info:
        return picture.convert("LA")
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if picture.mode == "RGB" and "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture


def held_mode(picture: Image.Image, format_: str, mode: str | None, background: str) -> Image.Image:
    """The picture in `mode`; None: its own if the format holds that, else the nearest.

    Transparent parts become `background` where the result has no transparency; of 16 bits the upper 8
    stay where it has 8. Raises Rejected for 32-bit pixels that would have to become 8 bits.
    """
    held = HELD[format_] if mode is None else (mode,)
    if picture.mode in held and (picture.mode == "P" or "transparency" not in picture.info):
        return picture
    picture = _many_valued(picture)
    if picture.mode == "I;16":
        # The upper 8 bits, as Pillow takes them of 16-bit colours. Its convert() clips: all is white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in _WITHOUT_WHITE:
        raise Rejected(
            f"its pixels are {_WITHOUT_WHITE[picture.mode]}: nothing says what white is; keep them as tif, "
            "or scale them by a function of your own"
        )
    if picture.mode in ("LA", "RGBA") and not {"LA", "RGBA"} & set(held):
        picture = _flat(picture, background)
    nearest = {"LA": ("LA", "RGBA"), "1": ("1", "L")}.get(picture.mode, (picture.mode,))
    target = next((each for each in nearest if each in held), held[0])
    return picture if picture.mode == target else picture.convert(target)


def _flat(picture: Image.Image, background: str) -> Image.Image:
    """Laid on a ground; grey stays grey where the ground is."""
    red, green, blue = ImageColor.getrgb(background)[:3]
    ground = Image.new("RGBA", picture.size, (red, green, blue, 255))
    laid = Image.alpha_composite(ground, picture.convert("RGBA"))
    return laid.convert("L" if picture.mode == "LA" and red == green == blue else "RGB")
