"""Images to Pillow, NumPy or torch, as webdataset's specs name them.

Where a picture would silently be a wrong one, this differs from webdataset: 16 bits are scaled, not
clipped to white; 32-bit values, which have no agreed white, are an error; so are a PNG whose checksums
are wrong and a picture that is cut short. Only what Pillow decodes by itself is tried: never EPS, for
which it starts Ghostscript.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from wds_pipeline.config_values import did_you_mean
from wds_pipeline.dataset.content_image import BY_MAGIC, check_png
from wds_pipeline.errors import ConfigError

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses: 0.5 GB of RGB."""

# Formats that Pillow only names, or decodes by starting another program.
_REFUSED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_NEEDS_TORCH = "torch"


class Form(NamedTuple):
    """What a spec asks for: `kind` is pil, numpy or torch; `mode` is Pillow's, None: as it is stored;
    `real` is whether values are floats from 0 to 1."""

    kind: str
    mode: str | None
    real: bool


def _forms() -> dict[str, Form]:
    forms = {"pil": Form("pil", "RGB", False), "torch": Form("torch", "RGB", True)}
    for mode in ("l", "rgb", "rgba"):
        for prefix, kind in (("", "numpy"), ("torch", "torch")):
            forms[f"{prefix}{mode}8"] = Form(kind, mode.upper(), False)
            forms[f"{prefix}{mode}"] = Form(kind, mode.upper(), True)
        forms[f"pil{mode}"] = Form("pil", mode.upper(), False)
    for prefix, kind in (("", "numpy"), ("torch", "torch"), ("pil", "pil")):
        forms[f"{prefix}stored"] = Form(kind, None, False)
    return forms


IMAGE_SPECS = _forms()


@dataclass(frozen=True)
class ImageSpec:
    """How to decode a picture. Raises ConfigError for what is not possible.

    `spec` is one of webdataset's (`pil`, `rgb8`, `torchrgb`, …), or `stored`, `torchstored`,
    `pilstored`: the file's own numbers, such as a palette's indices or 16 bits of depth.
    `short_side` makes larger pictures so many pixels at their shorter side; a JPEG is then decoded
    at less than its full size, which is faster. `upright` turns it as its EXIF orientation says;
    else it is as stored, as boxes and masks beside it are. Of a picture of more than `max_pixels`
    nothing is decoded. `lenient` lets truncated pictures pass where
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is on.
    """

    spec: str = "pil"
    short_side: int | None = None
    upright: bool = False
    max_pixels: int = MAX_PIXELS
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.spec not in IMAGE_SPECS:
            raise ConfigError(
                f"decode: found the image spec {self.spec!r}; expected one of "
                f"{', '.join(IMAGE_SPECS)}{did_you_mean(str(self.spec), IMAGE_SPECS)}"
            )
        if self.short_side is not None:
            if self.short_side < 1:
                raise ConfigError(f"decode: short_side={self.short_side}; expected 1 pixel or more")
            if self.form.mode is None:
                raise ConfigError(
                    f"decode: short_side with {self.spec!r}: indices and depths cannot be averaged; "
                    "expected a spec with a mode, such as 'rgb8'"
                )

    @property
    def form(self) -> Form:
        """What it asks for."""
        return IMAGE_SPECS[self.spec]


@functools.cache
def candidates(extension: str) -> tuple[str, ...]:
    """The formats to try for an extension, the likeliest first; none: not a picture that Pillow decodes.

    A file of another format than it is called is still recognised, by its first bytes.
    """
    name = Image.registered_extensions().get(f".{extension.lower()}")
    if name not in Image.OPEN or name in _REFUSED:
        return ()
    return (name, *sorted(BY_MAGIC - {name, "MPO"} & Image.OPEN.keys()))


class ImageDecoder:
    """Decodes files of one extension, or of any. For threads; goes to other processes."""

    def __init__(self, spec: ImageSpec, extension: str) -> None:
        self.spec = spec
        self._formats = candidates(extension) or candidates("jpg")
        self._mode = spec.form.mode
        self._finish = _FINISH[spec.form.kind, spec.form.real]

    def __call__(self, data: bytes) -> Any:
        """The picture. Raises ValueError, OSError or what else Pillow raises; ConfigError for its
        process-wide switch."""
        spec = self.spec
        if ImageFile.LOAD_TRUNCATED_IMAGES and not spec.lenient:
            raise ConfigError(
                "decode: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: pictures that are cut short would "
                "pass as whole; switch it off, or allow them: ImageSpec(..., lenient=True)"
            )
        image: Image.Image = Image.open(BytesIO(data), formats=self._formats)
        pixels = image.width * image.height
        if pixels > spec.max_pixels:
            raise ValueError(
                f"{image.width} x {image.height} = {pixels:,} pixels; at most {spec.max_pixels:,}: "
                "ImageSpec(..., max_pixels=…) allows more"
            )
        if image.format == "PNG":
            check_png(memoryview(data))
        if spec.short_side is not None:
            _draft(image, spec.short_side)
        image.load()
        if spec.upright:
            image = ImageOps.exif_transpose(image)
        if self._mode is not None:
            depth = _sixteen_bits(image)
            if depth is not None and spec.form.real and spec.short_side is None:
                return self._finish(_real_depth(depth, self._mode))
            image = _to_mode(image, self._mode, depth)
        if spec.short_side is not None:
            image = _smaller(image, spec.short_side)
        return self._finish(image)


def _draft(image: Image.Image, short_side: int) -> None:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8, if twice what is wanted is left."""
    scale = 2 * short_side / min(image.size)
    if scale < 1:
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))


def _smaller(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = (max(round(side * scale), short_side) for side in image.size)
    width, height = size
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _sixteen_bits(image: Image.Image) -> np.ndarray | None:
    """The values of a grey picture of 16 bits, from 0 to 65535; None for any other."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))
        if bits != (16,):  # 12 bits of a TIFF are not scaled to 16
            raise ValueError(f"a TIFF of {bits} bits a value; {_NUMBERS}")
        return np.asarray(image).astype(np.uint16, copy=False)
    if image.mode == "I" and image.format == "PPM":  # which Pillow scales to 16 bits
        return np.asarray(image).astype(np.uint16)
    return None


_NUMBERS = "nothing says what white is; the spec 'stored' gives its numbers"
_WITHOUT_WHITE = {"I": "32-bit integers", "F": "32-bit floats"}


def _to_mode(image: Image.Image, mode: str, depth: np.ndarray | None) -> Image.Image:
    if image.mode == mode:
        return image
    if depth is not None:
        # The upper 8 bits, as Pillow takes them of 16-bit colours. Its convert() clips: all is white.
        return Image.fromarray((depth >> 8).astype(np.uint8)).convert(mode)
    if image.mode in _WITHOUT_WHITE:
        raise ValueError(f"its pixels are {_WITHOUT_WHITE[image.mode]}; {_NUMBERS}")
    return image.convert(mode)


def _real_depth(depth: np.ndarray, mode: str) -> np.ndarray:
    """16 bits of grey as floats of a mode, without passing through 8."""
    grey = np.divide(depth, np.float32(65535), dtype=np.float32)
    if mode == "L":
        return grey
    channels = [grey] * 3 + [np.ones_like(grey)] * (mode == "RGBA")
    return np.stack(channels, axis=2)


def _pil(image: Image.Image) -> Image.Image:
    # An opened file keeps its bytes for further frames; only a JPEG's has let go of them.
    kept = isinstance(image, ImageFile.ImageFile) and getattr(image, "fp", None) is not None
    return image.copy() if kept else image


def _array(image: Image.Image) -> np.ndarray:
    return np.array(image)  # a copy: what Pillow hands out is not to be written to


def _real_array(image: Image.Image | np.ndarray) -> np.ndarray:
    values = np.asarray(image)
    if values.dtype == np.float32:
        return values
    return np.divide(values, np.float32(255), dtype=np.float32)


def _tensor(image: Image.Image) -> Any:
    import torch

    return torch.from_numpy(_planes(np.asarray(image)))


def _real_tensor(image: Image.Image | np.ndarray) -> Any:
    import torch

    # Turned before it is four times as large.
    return torch.from_numpy(_real_array(_planes(np.asarray(image))))


def _planes(values: np.ndarray) -> np.ndarray:
    """A copy with the channels first, in the machine's byte order."""
    turned = values.transpose(2, 0, 1) if values.ndim == 3 else values
    return turned.astype(values.dtype.newbyteorder("="), order="C")


_FINISH: dict[tuple[str, bool], Any] = {
    ("pil", False): _pil,
    ("numpy", False): _array,
    ("numpy", True): _real_array,
    ("torch", False): _tensor,
    ("torch", True): _real_tensor,
}
