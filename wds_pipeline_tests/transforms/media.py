"""Small pictures, videos and sounds, made anew for each run."""

from __future__ import annotations

import io
import subprocess
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wds_pipeline.transforms import ffmpeg
from wds_pipeline.transforms.api import Sample


def sample(key: str = "a/1", **fields: bytes) -> Sample:
    """A sample; `seg_png` stands for seg.png."""
    return {"__key__": key, **{name.replace("_", "."): data for name, data in fields.items()}}


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture without symmetry: each corner has its own colour."""
    rows, columns = np.mgrid[0:height, 0:width]
    across, down = columns / max(width - 1, 1), rows / max(height - 1, 1)
    shades = np.stack([255 * across, 255 * down, 255 * (1 - across) * (1 - down)], axis=2)
    return Image.fromarray(((shades + 37 * seed) % 256).astype(np.uint8))


def encoded(picture: Image.Image, format_: str, **options: Any) -> bytes:
    """A picture as a file."""
    sink = io.BytesIO()
    picture.save(sink, format_, **options)
    return sink.getvalue()


def jpeg(width: int = 96, height: int = 64, seed: int = 0, **options: Any) -> bytes:
    """A JPEG of the scene; `orientation` is the EXIF tag's value."""
    orientation = options.pop("orientation", None)
    if orientation is not None:
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    return encoded(scene(width, height, seed), "JPEG", **{"quality": 95, **options})


def png(width: int = 96, height: int = 64, mode: str = "RGB", **options: Any) -> bytes:
    """A PNG of the scene."""
    return encoded(scene(width, height).convert(mode), "PNG", **options)


def opened(data: bytes) -> Image.Image:
    """A file as a decoded picture."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels; a few kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress(bytes(1000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def video(seconds: float = 3.4, sound: bool = True, only: str = "1") -> bytes:
    """An MP4 of 25 pictures a second, 64 x 48, a key frame each second; with a tone of 440 Hz.

    `only` is of which of its pictures, as ffmpeg's filter `select` has it.
    """
    inputs = ["-f", "lavfi", "-i", f"testsrc=size=64x48:rate=25:duration={seconds}"]
    if sound:
        inputs += ["-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}", "-c:a", "aac"]
    shown = ["-vf", f"select='{only}'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p"]
    return _made([*inputs, "-c:v", "libx264", "-g", "25", *shown], "mp4")


@cache
def tone(seconds: float = 1.0, rate: int = 44_100) -> bytes:
    """A WAV of 440 Hz, two channels."""
    source = f"sine=frequency=440:duration={seconds}:sample_rate={rate}"
    return _made(["-f", "lavfi", "-i", source, "-ac", "2"], "wav")


def _made(options: list[str], ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, f"made.{ending}")
        command = [ffmpeg.find(), "-nostdin", "-loglevel", "error", *options, str(target)]
        subprocess.run(command, check=True, timeout=60)
        return target.read_bytes()


def frames(data: bytes) -> int:
    """How many pictures a video has, by PyAV, which is not the program that made it."""
    import av

    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))
