"""Pictures of every kind, for the tests of decoding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

SIZE = (23, 17)  # pixels, width and height


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """A picture's file."""
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def colours(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture in which no two rows and columns are the same."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    channels = [(x * 11) % 256, (y * 13) % 256, (x * y * 3) % 256, (x * 5 + y * 7) % 256]
    values = np.stack(channels, axis=2).astype(np.uint8)
    if mode == "RGBA":
        return Image.fromarray(values)
    return Image.fromarray(values[:, :, :3]).convert(mode)


def depths() -> np.ndarray:
    """16 bits of grey."""
    return (np.arange(SIZE[0] * SIZE[1], dtype=np.uint16) * 160).reshape(SIZE[1], SIZE[0])


def files() -> dict[str, bytes]:
    """A file of each extension that webdataset's table has for pictures, and of each mode."""
    rgb, palette = colours(), colours().quantize(16)
    made = {
        "jpg": encoded(rgb, "JPEG"),
        "jpeg": encoded(colours("L"), "JPEG"),
        "cmyk.jpg": encoded(colours("CMYK"), "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "png": encoded(rgb, "PNG"),
        "grey.png": encoded(colours("L"), "PNG"),
        "alpha.png": encoded(colours("RGBA"), "PNG"),
        "greyalpha.png": encoded(colours("RGBA").convert("LA"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "transparent.png": encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "keyed.png": encoded(rgb, "PNG", transparency=(0, 0, 0)),
        "one.png": encoded(colours("1"), "PNG"),
        "pbm": encoded(colours("1"), "PPM"),
        "pgm": encoded(colours("L"), "PPM"),
        "ppm": encoded(rgb, "PPM"),
        "tif": encoded(rgb, "TIFF"),
        "tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "gif": encoded(rgb, "GIF"),
        "bmp": encoded(rgb, "BMP"),
        "webp": encoded(rgb, "WEBP", lossless=True),
        "tga": encoded(rgb, "TGA"),
        # Of another format than it is called.
        "seg.jpg": encoded(rgb, "PNG"),
    }
    return made


def damaged_at(data: bytes, count: int = 60) -> list[bytes]:
    """The file cut short at so many places, and just before its end."""
    cuts = {len(data) * part // count for part in range(count)} | {len(data) - 1, len(data) - 2}
    return [data[:cut] for cut in sorted(cuts)]
