"""A field's bytes to a Pillow picture that stands upright.

Pillow's process-wide switches are not relied on. Only formats that Pillow decodes by itself are tried:
never EPS, which starts Ghostscript.
"""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from wds_pipeline.dataset.content_image import BY_MAGIC, check_png, formats_of
from wds_pipeline.transforms.api import Rejected

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses: 0.5 GB of RGB."""

# What to do for each value of the EXIF tag Orientation (274; EXIF 2.3, 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 274
_BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8

# Pillow warns of odd EXIF data and the like; what matters to us it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


@functools.cache
def _formats(field: str) -> tuple[str, ...]:
    """The formats to try, the likeliest first."""
    first = formats_of(field.rpartition(".")[2]) - {"MPO"}
    others = BY_MAGIC & Image.OPEN.keys() - first - {"MPO"}  # older Pillows have no AVIF
    return (*sorted(first), *sorted(others))


def open_header(data: bytes, field: str, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """A picture of which the header alone is read; of another format than its name says is fine.

    Raises Rejected for what is no picture, or one of more than `max_pixels`.
    """
    Image.MAX_IMAGE_PIXELS = None  # ours counts, and that of other code in the process is not asked
    try:
        picture = Image.open(io.BytesIO(data), formats=_formats(field))
    except UnidentifiedImageError:
        start = bytes(data[:12])
        raise Rejected(
            f"{field}: no picture that Pillow recognises; it starts with {start!r}"
        ) from None
    except Exception as error:  # hostile bytes make decoders raise anything
        raise Rejected(f"{field}: {told(error)}") from error
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise Rejected(
            f"{field}: {picture.width} x {picture.height} = {pixels:,} pixels; at most {max_pixels:,}: "
            "max_pixels allows more"
        )
    assert isinstance(picture, ImageFile.ImageFile)
    return picture


class Picture:
    """A picture whose pixels are not decoded yet, so that a smaller draft can be asked for.

    `size` is its width and height in pixels as people see it, by the EXIF orientation; `profile` its
    colour profile (ICC), if it has one. Raises Rejected for
    what cannot be read, and for several frames if `animated` is reject; else the first is taken.
    """

    def __init__(self, data: bytes, field: str, max_pixels: int, animated: str = "first") -> None:
        self.field, self.max_pixels = field, max_pixels
        self._file = open_header(data, field, max_pixels)
        try:
            if animated == "reject":
                self._only_frame()
            if self._file.format == "PNG":
                check_png(memoryview(data))
        except (OSError, ValueError, SyntaxError) as error:
            raise Rejected(f"{field}: {told(error)}") from error
        self._orientation = _orientation(self._file)
        self.profile: bytes | None = self._file.info.get("icc_profile") or None
        self.size = self._seen(self._file.size)

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        return (size[1], size[0]) if self._orientation in _SIDEWAYS else size

    def _only_frame(self) -> None:
        frames = getattr(self._file, "n_frames", 1)
        if (
            frames > 1 and self._file.format != "MPO"
        ):  # cameras put a second picture behind the first
            raise Rejected(
                f"{self.field}: {frames} frames; expected one (animated: first takes it)"
            )

    def draft(self, size: tuple[int, int]) -> None:
        """Has a JPEG decoded at 1/2, 1/4 or 1/8, as small as both sides stay at least as long as those."""
        self._file.draft(None, self._seen(size))

    def pixels(self) -> Image.Image:
        """Decodes it, upright. Raises Rejected for what is cut short or broken."""
        if ImageFile.LOAD_TRUNCATED_IMAGES:  # which some import has set: halves in grey would pass
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            self._file.load()
            picture = self._sixteen_bits()
            how = _UPRIGHT.get(self._orientation)
            return picture if how is None else picture.transpose(how)
        except Rejected:
            raise
        except Exception as error:
            raise Rejected(f"{self.field}: {told(error)}") from error

    def _sixteen_bits(self) -> Image.Image:
        """16 bits of grey always as I;16, which Pillow has in several modes."""
        picture = self._file
        if picture.mode.startswith("I;16"):
            bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
            if bits != (16,):  # 12 bits of a TIFF are not scaled to 16
                raise Rejected(f"{self.field}: a TIFF of {bits} bits a value; expected 8 or 16")
        if (picture.mode == "I" and picture.format == "PPM") or picture.mode in ("I;16B", "I;16L"):
            return Image.fromarray(np.asarray(picture).astype(np.uint16))
        return picture


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF: the picture is taken as it is stored, as viewers do
        return 1


def told(error: Exception) -> str:
    """An error of Pillow's in one clause."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
