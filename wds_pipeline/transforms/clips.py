"""`clips`: a video into many short ones."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wds_pipeline.transforms import ffmpeg
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.kept_fields import check_keep, kept
from wds_pipeline.transforms.parameters import (
    field_name,
    field_names,
    number,
    one_of,
    switch,
    whole,
    wrong,
)
from wds_pipeline.transforms.values import is_json

_CODECS = ("h264", "copy")


class Clips:
    """Splits the first of `fields` that a sample has into clips of `seconds`; the last one has the rest. The
    clips are samples `<key>-000`, `<key>-001`, … with the field `to`.

    `codec` h264 encodes anew, with `crf` as quality (x264's, 0 to 51) and exact cuts; copy takes the
    streams as they are, which is fast, and cuts at the first key frame that comes when `seconds` are over: so
    clips may be longer. `audio` is whether the first sound track stays. `width` and `height` are those of
    new pictures, in pixels: both are a box with black beside the picture, one alone keeps the aspect.
    `keep` says which other fields each clip gets: all, none, or a list. `info`, the name of a json field,
    gets number, of, and start in seconds. ffmpeg may take `timeout` seconds.
    """

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        seconds: float,
        codec: str = "h264",
        to: str = "mp4",
        audio: bool = True,
        crf: int = 23,
        width: int | None = None,
        height: int | None = None,
        keep: str | list[str] = "all",
        info: str | None = None,
        timeout: float = 3600,
    ) -> None:
        """Raises ValueError for what is not possible, ConfigError also if ffmpeg is missing."""
        self._fields = field_names("fields", fields)
        self._seconds = number("seconds", seconds)
        self._to = field_name("to", to)
        self._ending = self._to.rpartition(".")[2]
        if self._ending not in ("mp4", "mkv"):
            raise wrong("to", to, "a field whose name ends with mp4 or mkv")
        self._copy = one_of("codec", codec, _CODECS) == "copy"
        self._audio = switch("audio", audio)
        self._crf = whole("crf", crf, 0, 51)
        self._scale = _scale(width, height)
        if self._copy and self._scale:
            raise wrong("codec", codec, "h264 with width or height: another size is another stream")
        self._keep = check_keep(keep)
        self._info = None if info is None else field_name("info", info)
        if self._info is not None and not is_json(self._info):
            raise wrong("info", info, "a json field, such as clip.json")
        self._timeout = number("timeout", timeout)
        self._program = ffmpeg.find()

    def __call__(self, sample: Sample) -> Iterator[Sample]:
        """Raises Rejected for what is no video."""
        field = next((each for each in self._fields if each in sample), None)
        if field is None:
            yield sample
            return
        with tempfile.TemporaryDirectory(prefix="wds_pipeline-clips-") as folder:
            clips = self._split(sample[field], field, Path(folder))
            shared = kept(sample, self._keep, without=self._fields)
            for number, (start, path) in enumerate(clips):
                made: Sample = {"__key__": f"{sample['__key__']}-{number:03d}", **shared}
                made[self._to] = path.read_bytes()
                if self._info is not None:
                    facts = {"number": number, "of": len(clips), "start": start}
                    made[self._info] = json.dumps(facts).encode()
                yield made

    def _split(self, data: bytes, field: str, folder: Path) -> list[tuple[float, Path]]:
        """The clips in order, with their starts in seconds."""
        source = folder / f"source.{field.rpartition('.')[2]}"
        source.write_bytes(data)
        starts = folder / "clips.csv"
        options = [
            *("-map", "0:v:0", *(("-map", "0:a:0?") if self._audio else ()), *self._coding()),
            *("-f", "segment", "-segment_time", f"{self._seconds:.6f}", "-reset_timestamps", "1"),
            *("-avoid_negative_ts", "disabled"),  # else the starts in the list are moved
            *("-segment_list", str(starts), "-segment_list_type", "csv"),
            *("-segment_format", "matroska" if self._ending == "mkv" else "mp4"),
            *("-segment_format_options", self._muxing()),
        ]
        target = str(folder / f"clip-%06d.{self._ending}")
        ffmpeg.run(self._program, source, options, target, field, self._timeout)
        found = []
        for line in starts.read_text().splitlines() if starts.exists() else ():
            name, start, _ = line.rsplit(",", 2)
            found.append((round(float(start), 3), folder / Path(name).name))
        if not found:
            raise Rejected(f"{field}: ffmpeg found no pictures in it")
        return found

    def _muxing(self) -> str:
        # An index at the front lets a player begin before it has all.
        return "fflags=+bitexact" + (":movflags=+faststart" if self._ending == "mp4" else "")

    def _coding(self) -> list[str]:
        if self._copy:
            return ["-c", "copy"]
        at_cuts = f"expr:gte(t,n_forced*{self._seconds:.6f})"
        filters = [*self._scale, "format=yuv420p"]
        return [
            *(
                "-vf",
                ",".join(filters),
                "-c:v",
                "libx264",
                "-preset",
                "medium",
                "-crf",
                str(self._crf),
            ),
            *("-fps_mode", "vfr"),  # no picture is made twice where others are far apart
            *("-x264-params", "threads=1:lookahead_threads=1", "-force_key_frames", at_cuts),
            *("-c:a", "aac", "-b:a", "128k"),
        ]


def _scale(width: int | None, height: int | None) -> list[str]:
    """The filters for another size; its sides are even, as the usual codecs want them."""
    for name, side in (("width", width), ("height", height)):
        if side is not None and whole(name, side, 2, 16_384) % 2:
            raise wrong(name, side, "an even number of pixels")
    if width is None and height is None:
        return []
    how = "flags=bicubic+bitexact+accurate_rnd"
    if width is None or height is None:
        return [f"scale={width or -2}:{height or -2}:{how}", "setsar=1"]
    within = "force_original_aspect_ratio=decrease:force_divisible_by=2"
    pad = f"pad={width}:{height}:(ow-iw)/2:(oh-ih)/2"
    return [f"scale={width}:{height}:{within}:{how}", pad, "setsar=1"]
