"""Does an image decode? Pillow's answer, with limits, and a small thumbnail on request.

Only formats that Pillow decodes by itself are tried: never EPS, which starts Ghostscript.
"""

from __future__ import annotations

import functools
import io
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from typing import NamedTuple

from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

THUMBNAIL_SIDE = 96  # pixels
# What decoding one image may take, so that a worker stays within 256 MB.
MAX_DECODED_BYTES = 192 * 1024 * 1024

# Recognised by their first bytes alone.
# fmt: off
BY_MAGIC = frozenset({
    "AVIF", "BMP", "DDS", "GIF", "ICNS", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "PSD", "QOI",
    "TIFF", "WEBP",
})
# Their first bytes are weak or none: tried only where the extension says so.
_BY_EXTENSION = frozenset({
    "CUR", "DCX", "DIB", "FLI", "ICO", "IM", "MSP", "PCX", "SGI", "SUN", "TGA", "XBM", "XPM",
})
# fmt: on

# Pillow warns of odd EXIF data and the like; what matters to us it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageFacts(NamedTuple):
    """`problem` is a code or None; `decoded` is whether the pixels were read, or could not be."""

    problem: str | None
    detail: str
    width: int | None = None
    height: int | None = None
    format: str | None = None
    thumbnail: bytes | None = None
    decoded: bool = False


@functools.cache
def formats_of(extension: str) -> frozenset[str]:
    """The formats, in Pillow's names, that files with an extension may hold; none: not an image."""
    name = Image.registered_extensions().get(f".{extension.lower()}")
    if name not in Image.OPEN or name not in BY_MAGIC | _BY_EXTENSION:
        return frozenset()
    # A JPEG of several pictures (many cameras write them) is called .jpg too.
    return frozenset({"JPEG", "MPO"} if name == "JPEG" else {name})


def check_image(
    data: bytes | memoryview, formats: Collection[str], max_pixels: int, thumbnail: bool = False
) -> ImageFacts:
    """Decodes an image that should be of one of `formats`; of an animation, the first frame.

    Problems: broken_image, too_many_pixels (from the header, before decoding), wrong_format.
    """
    _no_global_leniency()
    try:
        image = _open(data, formats)
        if image is None:
            start = bytes(data[:12])
            return _broken(f"no image that Pillow recognises; it starts with {start!r}")
        facts = ImageFacts(None, "", *image.size, image.format)
        pixels = image.width * image.height
        if pixels > max_pixels:
            what = f"{image.width} x {image.height} = {pixels:,} pixels; at most {max_pixels:,}"
            return facts._replace(problem="too_many_pixels", detail=what)
        if facts.format not in formats:
            expected = " or ".join(sorted(set(formats) - {"MPO"}))
            facts = facts._replace(
                problem="wrong_format", detail=f"it holds {facts.format}; expected {expected}"
            )
        if _memory(image, draft=True) > MAX_DECODED_BYTES:
            return facts._replace(
                detail=facts.detail or f"not decoded: too large ({pixels:,} pixels)"
            )
        return _decode(image, data, facts, thumbnail)
    except MemoryError:
        return ImageFacts(None, "not decoded: too large (out of memory)")
    except Exception as error:  # hostile bytes make decoders raise anything
        return _broken(_say(error))


def _broken(detail: str) -> ImageFacts:
    return ImageFacts("broken_image", detail, decoded=True)


def _no_global_leniency() -> None:
    # Process-wide switches of Pillow. Our own limit is stricter than the first; the second, which
    # other code in the process may set, would let truncated images pass.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = None
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _open(data: bytes | memoryview, formats: Collection[str]) -> Image.Image | None:
    known = BY_MAGIC & Image.OPEN.keys()  # Pillow before 11.3 has no AVIF
    for candidates in (set(formats), known - set(formats)):
        try:
            # sorted: the order in which Pillow tries them must not depend on a set's
            return Image.open(io.BytesIO(data), formats=sorted(candidates - {"MPO"}))
        except UnidentifiedImageError:
            continue
    return None


def _decode(
    image: Image.Image, data: bytes | memoryview, facts: ImageFacts, thumbnail: bool
) -> ImageFacts:
    detail = facts.detail
    frames = _frames(image)
    if frames > 1 and not detail:
        detail = f"first of {frames} frames decoded"
    if facts.format == "PNG":
        check_png(memoryview(data))
    # Scaled decoding reads every bit of a JPEG's entropy-coded data, fails exactly where the full
    # one fails (a test holds that), takes two thirds of the time and 1/64 of the memory.
    if thumbnail:
        image.draft(None, (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    else:
        image.draft(None, (1, 1))
    image.load()
    small = _thumbnail(image) if thumbnail else None
    return facts._replace(detail=detail, thumbnail=small, decoded=True)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    finally:
        image.seek(0)


def _memory(image: Image.Image, draft: bool) -> int:
    """About how many bytes decoding takes."""
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        # A progressive one keeps two bytes for each coefficient of the whole picture.
        whole = 2 * len(image.getbands()) if image.info.get("progressive") else 0
        return pixels * whole + pixels // (64 if draft else 1) * 4
    per_pixel = 1 if image.mode in ("1", "L", "P") else 4
    return pixels * per_pixel * (2 if image.format in ("WEBP", "AVIF") else 1)


def check_png(data: memoryview) -> None:
    """Raises ValueError for what libpng refuses and Pillow does not look at.

    That is, checksums of critical chunks and the end (PNG, ISO/IEC 15948, sections 5.3 and 11.2).
    """
    for kind, content, checksum in _png_chunks(data):
        if kind[0] & 0x20 == 0 and zlib.crc32(content, zlib.crc32(kind)) != checksum:
            raise ValueError(f"wrong checksum in the PNG chunk {kind.decode('ascii', 'replace')}")


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, int]]:
    position = 8
    while position + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + size
        if end + 4 > len(data):
            break
        yield kind, data[position + 8 : end], struct.unpack_from(">I", data, end)[0]
        if kind == b"IEND":
            return
        position = end + 4
    raise ValueError("the PNG ends before its IEND chunk: it is truncated")


def _thumbnail(image: Image.Image) -> bytes | None:
    """A JPEG of a few kB, as people expect to see the image: turned by its EXIF orientation."""
    try:
        gap = None if image.mode.startswith("I;16") else 2.0  # Pillow cannot reduce those
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), reducing_gap=gap)
        small = _displayable(ImageOps.exif_transpose(image))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=72, optimize=True)
        return out.getvalue()
    except Exception:  # an odd mode or broken EXIF: the image itself did decode
        return None


def _displayable(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: stretched to what is visible
        values = image.convert("F")
        low, high = values.getextrema()
        assert isinstance(low, float) and isinstance(high, float)
        scale = 255 / (high - low) if high > low else 0.0
        return values.point(lambda value: value * scale + (-low * scale)).convert("L")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (236, 236, 236, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "L" else image.convert("RGB")


def _say(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return (
        text
        if isinstance(error, OSError | ValueError) and text
        else (f"{type(error).__name__}: {text}" if text else type(error).__name__)
    )
