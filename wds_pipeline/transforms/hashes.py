"""`hash` and `phash`: digests of what a field holds, and of what a picture looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import xxhash

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Sample
from wds_pipeline.transforms.colours import held_mode
from wds_pipeline.transforms.parameters import field_name, field_names, one_of, whole, wrong
from wds_pipeline.transforms.picture import MAX_PIXELS, Picture
from wds_pipeline.transforms.picture_options import extension_of

_ALGORITHMS: dict[str, Callable[[bytes], str]] = {
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "md5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "xxh3-128": lambda data: xxhash.xxh3_128_hexdigest(data),
}
# Names of the package `imagehash`, each by the papers and posts that it cites.
_LOOKS = {"phash": "phash", "dhash": "dhash", "ahash": "average_hash", "whash": "whash"}


class Hash:
    """Adds `<field>.<algorithm>` for each of `fields`, or the field `to` for a single one: the digest of its
    bytes as hex text. `algorithm` is sha256, md5 or xxh3-128."""

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(self, fields: list[str], algorithm: str = "sha256", to: str | None = None) -> None:
        """Raises ValueError or ConfigError for what is not possible."""
        self._digest = _ALGORITHMS[one_of("algorithm", algorithm, _ALGORITHMS)]
        self._names = _names(fields, algorithm, to)

    def __call__(self, sample: Sample) -> Sample:
        found = {
            to: self._digest(sample[each]) for each, to in self._names.items() if each in sample
        }
        return {**sample, **{to: digest.encode() for to, digest in found.items()}}


class PerceptualHash:
    """Adds `<field>.<algorithm>` for each of `fields`, or the field `to` for a single one: size² bits as hex
    text, most of which are the same for pictures that look alike.

    `algorithm` is phash, dhash, ahash or whash of the package imagehash, of the picture as people see it:
    upright, in grey, transparent parts white. `size` is 8 for 64 bits, 16 hex digits; that of whash
    is a power of 2.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        algorithm: str = "phash",
        size: int = 8,
        to: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Raises ValueError for what is not possible, ConfigError also if imagehash is missing."""
        self._names = _names(fields, one_of("algorithm", algorithm, _LOOKS), to)
        for each in self._names:
            extension_of(each)
        self._size = whole("size", size, 2, 64)
        if algorithm == "whash" and size & (size - 1):
            raise wrong("size", size, "a power of 2 for whash")
        self._max_pixels = whole("max_pixels", max_pixels, 1)
        try:
            import imagehash
        except ImportError:
            raise ConfigError(
                "the package imagehash is not installed; pip install 'wds-pipeline[transforms]'"
            ) from None
        self._look: Callable[..., Any] = getattr(imagehash, _LOOKS[algorithm])

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what is no picture."""
        found = dict(sample)
        for field, to in self._names.items():
            if field in sample:
                pixels = Picture(sample[field], field, self._max_pixels).pixels()
                picture = held_mode(pixels, "JPEG", "L", "white")
                found[to] = str(self._look(picture, hash_size=self._size)).encode()
        return found


def _names(fields: list[str], algorithm: str, to: str | None) -> dict[str, str]:
    names = field_names("fields", fields)
    if to is None:
        return {each: f"{each}.{algorithm}" for each in names}
    if len(names) > 1:
        raise wrong("to", to, "it with a single field; several get names such as jpg.sha256")
    return {names[0]: field_name("to", to)}
