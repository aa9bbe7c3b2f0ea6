"""Images to the pixels that an encoder is given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wds_pipeline.tokens.parameters import ImageParameters
from wds_pipeline.transforms.api import Rejected

Pixels = NDArray[np.uint8]


def decode_all(contents: Sequence[Any], rules: ImageParameters) -> list[Pixels | Rejected]:
    """Each image as [resolution, resolution, 3], or why there is none."""

    def one(content: Any) -> Pixels | Rejected:
        try:
            return decode(content, rules)
        except Rejected as reason:
            return reason

    if rules.threads == 1 or len(contents) < 2:
        return list(map(one, contents))
    with ThreadPoolExecutor(rules.threads) as threads:
        return list(threads.map(one, contents))


def decode(content: Any, rules: ImageParameters) -> Pixels:
    """An image as RGB [resolution, resolution, 3], upright by its EXIF orientation.

    Raises Rejected for one that is broken, or has another size than `exact` wants.
    """
    try:
        if isinstance(content, Image.Image):
            image = content
        else:
            image = Image.open(io.BytesIO(content))
        image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # whatever Pillow raises for a broken file
        raise Rejected(f"the image cannot be decoded: {type(error).__name__}: {error}") from error
    size = (rules.resolution, rules.resolution)
    if image.size != size:
        if rules.fit == "exact":
            raise Rejected(
                f"the image has {image.width} × {image.height} pixels; expected {size[0]} × {size[1]}"
            )
        if rules.fit == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        else:
            image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def normalised(pixels: Sequence[Pixels], rules: ImageParameters) -> NDArray[np.float32]:
    """A batch as an encoder takes it: float32 [B, 3, resolution, resolution], (x / 255 − mean) / std."""
    batch = np.stack(pixels).transpose(0, 3, 1, 2)
    mean, std = (np.array(each, np.float32).reshape(1, 3, 1, 1) for each in (rules.mean, rules.std))
    found: NDArray[np.float32] = (
        np.ascontiguousarray(batch, np.float32) / np.float32(255) - mean
    ) / std
    return found
