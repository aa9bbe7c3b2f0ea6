"""`hash` and `phash`."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import imagehash
import numpy as np
import pytest
import xxhash
from PIL import Image

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected
from wds_pipeline.transforms.hashes import Hash, PerceptualHash
from wds_pipeline_tests.transforms.media import encoded, jpeg, opened, png, sample


@pytest.mark.parametrize(
    ("algorithm", "digest"),
    [
        ("sha256", hashlib.sha256(b"abc").hexdigest()),
        ("md5", hashlib.md5(b"abc").hexdigest()),
        ("xxh3-128", xxhash.xxh3_128_hexdigest(b"abc")),
    ],
)
def test_hash(algorithm: str, digest: str) -> None:
    found = Hash(["txt", "bin", "png"], algorithm)(sample(txt=b"abc", bin=b"x"))
    assert found[f"txt.{algorithm}"] == digest.encode()
    assert list(found) == ["__key__", "txt", "bin", f"txt.{algorithm}", f"bin.{algorithm}"]
    assert Hash(["txt"], algorithm, to="id")(sample(txt=b"abc"))["id"] == digest.encode()


def picture(seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8)))


@pytest.mark.parametrize("algorithm", ["phash", "dhash", "ahash", "whash"])
@pytest.mark.parametrize("size", [8, 16])
def test_perceptual_hash(algorithm: str, size: int) -> None:
    def look(data: bytes, field: str) -> str:
        made = PerceptualHash([field], algorithm, size)({"__key__": "a/1", field: data})
        return str(made[f"{field}.{algorithm}"], "ascii")

    def distance(one: str, other: str) -> int:
        return imagehash.hex_to_hash(one) - imagehash.hex_to_hash(other)

    first = look(encoded(picture(), "PNG"), "png")
    assert re.fullmatch(rf"[0-9a-f]{{{size * size // 4}}}", first)
    stock = getattr(imagehash, {"ahash": "average_hash"}.get(algorithm, algorithm))
    assert first == str(stock(picture(), hash_size=size))
    small = encoded(picture().resize((90, 90)), "JPEG", quality=70)
    assert distance(first, look(small, "jpg")) < size * size / 8
    assert distance(first, look(encoded(picture(1), "PNG"), "png")) > size * size / 4


def test_perceptual_hash_of_a_turned_picture() -> None:
    turned = jpeg(96, 64, orientation=6, quality=100)
    upright = encoded(opened(turned).transpose(Image.Transpose.ROTATE_270), "PNG")
    look = PerceptualHash(["jpg", "png"], size=4)
    found = look(sample(jpg=turned, png=upright))
    assert found["jpg.phash"] == found["png.phash"]


def test_sixteen_bits_are_not_all_white() -> None:
    grey = np.asarray(picture().convert("L"))
    deep = encoded(Image.fromarray(grey.astype(np.uint16) * 256), "PNG")
    found = PerceptualHash(["png", "a.png"])(
        {**sample(png=deep), "a.png": encoded(Image.fromarray(grey), "PNG")}
    )
    assert found["png.phash"] == found["a.png.phash"]


def test_what_is_no_picture_is_rejected() -> None:
    with pytest.raises(Rejected, match="png: no picture"):
        PerceptualHash(["png"])(sample(png=b"x"))


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (
            Hash,
            {"algorithm": "sha1"},
            "algorithm: found 'sha1'; expected one of sha256, md5, xxh3-128",
        ),
        (
            Hash,
            {"fields": ["a", "b"], "to": "id"},
            "to: found 'id'; expected it with a single field",
        ),
        (PerceptualHash, {"algorithm": "phas"}, "did you mean 'phash'"),
        (PerceptualHash, {"size": 1}, "size: found 1; expected a whole number, 2 to 64"),
        (PerceptualHash, {"size": 12, "algorithm": "whash"}, "a power of 2 for whash"),
        (PerceptualHash, {"fields": ["txt"]}, "fields: found 'txt'; expected fields of pictures"),
    ],
)
def test_wrong_parameters(kind: type, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        kind(**{"fields": ["png"], **parameters})


def test_imagehash_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"pip install 'wds-pipeline\[transforms\]'"):
        PerceptualHash(["png"])


def test_a_picture_and_its_copy_in_another_format() -> None:
    found = PerceptualHash(["png"])(sample(png=png()))
    assert (
        found["png.phash"]
        == PerceptualHash(["png"])(sample(png=png(compress_level=1)))["png.phash"]
    )
