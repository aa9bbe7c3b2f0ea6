"""A transform of a user's, as webdataset's documentation has it: a picture with noise, as PNG."""

from __future__ import annotations

import io

import numpy as np
import xxhash
from PIL import Image

from wds_pipeline.transforms import Sample


def noisy(sample: Sample, amount: float) -> Sample:
    """Noise of a spread of `amount`, of 0 to 1, seeded by the sample's key."""
    picture = Image.open(io.BytesIO(sample.pop("jpg"))).convert("RGB")
    random = np.random.default_rng(xxhash.xxh3_64_intdigest(sample["__key__"].encode()))
    pixels = np.asarray(picture, np.float32) + random.normal(
        0, 255 * amount, (*picture.size[::-1], 3)
    )
    return {**sample, "png": Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))}
