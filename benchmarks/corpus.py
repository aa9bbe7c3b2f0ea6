"""Deterministic raw files: the same bytes for the same corpus, on every machine."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import log

_PER_FOLDER = 1_000
_PICTURES = 16
_LARGEST_SEGMENT = 65_533
_CAPTION = (
    "a photo of a small red boat on a quiet lake, seen from the shore at noon in summer, number "
)


@dataclass(frozen=True)
class Corpus:
    """`samples` samples of an image of about `image` bytes, a caption of 100 and a json of 200."""

    name: str
    samples: int
    image: int
    pixels: int
    shard_bytes: int

    @property
    def bytes(self) -> int:
        """How much room it takes, with a filesystem's blocks."""
        return self.samples * (self.image + 3 * 4096)


CORPORA = {
    "typical": Corpus("typical", 20_000, 100_000, 512, 250_000_000),
    "small": Corpus("small", 50_000, 10_000, 144, 64_000_000),
}


def quick(corpus: Corpus) -> Corpus:
    """A tenth of a corpus, in as many shards."""
    return Corpus(
        corpus.name, corpus.samples // 10, corpus.image, corpus.pixels, corpus.shard_bytes // 10
    )


def make(corpus: Corpus, folder: Path) -> Path:
    """The corpus's folder of raw files; made once, found again."""
    root = folder / f"{corpus.name}-{corpus.samples}"
    done = folder / f"{root.name}.made"
    if done.exists():
        return root
    log(f"making {corpus.samples * 3:,} raw files of the corpus {corpus.name}")
    add(corpus, root, 0, corpus.samples)
    done.touch()
    return root


def add(corpus: Corpus, root: Path, start: int, stop: int) -> int:
    """Writes the samples `start` to `stop`; returns how many bytes that were."""
    random = np.random.default_rng(corpus.image)
    pictures = [_picture(random, corpus) for _ in range(_PICTURES)]
    noise = random.bytes(4 * corpus.image)
    written = 0
    for number in range(start, stop):
        folder = root / f"{number // _PER_FOLDER:05d}"
        if number % _PER_FOLDER == 0 or number == start:
            folder.mkdir(parents=True, exist_ok=True)
        stem = f"{folder}/{number:08d}"
        size = corpus.image * (80 + number * 7919 % 41) // 100  # 0.8 to 1.2 of it
        caption = f"{_CAPTION}{number}".ljust(100)
        facts = f'{{"id": {number}, "caption": "{caption}", "source": "benchmark"}}'.ljust(200)
        image = _padded(pictures[number % _PICTURES], size, number, noise)
        for ending, data in (
            (".jpg", image),
            (".txt", caption.encode()),
            (".json", facts.encode()),
        ):
            written += _write(stem + ending, data)
    return written


def _write(path: str, data: bytes) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def _picture(random: np.random.Generator, corpus: Corpus) -> bytes:
    """A JPEG that decodes, of a little less than the wanted size."""
    blocks = random.integers(0, 255, (corpus.pixels // 8, corpus.pixels // 8, 3), np.uint8)
    pixels = np.kron(blocks, np.ones((8, 8, 1), np.uint8)) // 2
    pixels += random.integers(0, 30, pixels.shape, np.uint8)
    image = Image.fromarray(pixels)
    for quality in range(90, 5, -5):
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality)
        if sink.tell() < 0.75 * corpus.image:
            break
    return sink.getvalue()


def _padded(picture: bytes, size: int, number: int, noise: bytes) -> bytes:
    """The picture with comments behind its first two bytes: unique, and of the wanted size."""
    parts = [picture[:2]]
    left = size - len(picture)
    while left > 12:
        segment = min(left, _LARGEST_SEGMENT + 4) - 4
        start = number * 131 % (len(noise) - segment)
        text = number.to_bytes(8, "big") + noise[start + 8 : start + segment]
        parts.append(b"\xff\xfe" + (segment + 2).to_bytes(2, "big") + text)
        left -= segment + 4
    return b"".join([*parts, picture[2:]])


def make_tree(files: int, folder: Path) -> Path:
    """Many files of a few bytes, three a sample, in folders of 1,000; made once, found again.

    Their bytes are holes, so that they take hardly any room.
    """
    root = folder / f"tree-{files}"
    done = folder / f"{root.name}.made"
    if done.exists():
        return root
    log(f"making a tree of {files:,} files")
    for number in range(-(-files // 3)):
        parent = root / f"{number // _PER_FOLDER:05d}"
        if number % _PER_FOLDER == 0:
            parent.mkdir(parents=True)
        for ending, size in ((".jpg", 3_000), (".txt", 100), (".json", 200)):
            fd = os.open(f"{parent}/{number:08d}{ending}", os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(fd, size + number % 100)
            os.close(fd)
    done.touch()
    return root
