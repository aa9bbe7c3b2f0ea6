"""The program ffmpeg: where it is, and running it so that the same bytes give the same bytes.

One thread, bit-exact codecs and containers, no metadata: without the date and the encoder's name. Another
version of ffmpeg may give other bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Rejected

# Containers that hold the data themselves: no playlist that names other files or addresses.
_CONTAINERS = (
    "aac,ac3,aiff,asf,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,mpegvideo,nut,ogg,w64,wav"
)
_QUIET = ("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
_READ = ("-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-threads", "1")
_WRITE = (
    *("-map_metadata", "-1", "-map_chapters", "-1", "-threads", "1", "-filter_threads", "1"),
    *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-flags:a", "+bitexact"),
)


def find() -> str:
    """The program: of the PATH, else of the package imageio-ffmpeg. Raises ConfigError."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        import imageio_ffmpeg  # type: ignore[import-untyped]

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        raise ConfigError(
            "the program ffmpeg is not there; install it, or pip install 'wds-pipeline[transforms]', which "
            "brings it"
        ) from None


def run(
    program: str, source: Path, options: Sequence[str], target: str, field: str, seconds: float
) -> None:
    """Makes `target` of `source`. Raises Rejected for what cannot be read, or takes more than `seconds`."""
    command = [program, *_QUIET, *_READ, "-i", str(source), *_WRITE, *options, target]
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    environment.pop("FFREPORT", None)  # it would write a log beside
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=seconds,
            env=environment,
            cwd=source.parent,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Rejected(
            f"{field}: ffmpeg was not done after {seconds:g} seconds (timeout)"
        ) from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").replace(f"{source.parent}/", "").splitlines()
        what = "; ".join(line.strip() for line in lines[-3:]) or f"exit code {done.returncode}"
        raise Rejected(f"{field}: ffmpeg: {what}")
