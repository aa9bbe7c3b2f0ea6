"""`resample`: sound at another rate, in another format."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wds_pipeline.transforms import ffmpeg
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.parameters import field_names, number, one_of, whole, wrong

# ffmpeg's options for each format. All but opus are without loss; it is of 48,000 values a second.
_FORMATS = {
    "wav": ("-c:a", "pcm_s16le", "-f", "wav"),
    "flac": ("-c:a", "flac", "-sample_fmt", "s16", "-f", "flac"),
    "opus": ("-c:a", "libopus", "-f", "ogg", "-page_duration", "20000", "-serial_offset", "0"),
}
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


class Resample:
    """The sound of `fields` at `rate` (values a second and channel) with so many `channels` (None: as it
    is), as `format` wav, flac (both of 16 bits) or opus; the field's last extension becomes that."""

    VERSION = "1"
    NARROWED_BY = "fields"

    def __init__(
        self,
        fields: list[str],
        rate: int,
        channels: int | None = None,
        format: str = "flac",
        timeout: float = 3600,
    ) -> None:
        """Raises ValueError for what is not possible, ConfigError also if ffmpeg is missing."""
        one_of("format", format, _FORMATS)
        self._names = {
            each: f"{each.rpartition('.')[0]}.{format}".lstrip(".")
            for each in field_names("fields", fields)
        }
        whole("rate", rate, 1_000, 384_000)
        if format == "opus" and rate not in _OPUS_RATES:
            raise wrong("rate", rate, f"for opus one of {', '.join(map(str, _OPUS_RATES))}")
        channels_ = () if channels is None else ("-ac", str(whole("channels", channels, 1, 8)))
        self._options = ("-map", "0:a:0", "-vn", "-ar", str(rate), *channels_, *_FORMATS[format])
        self._timeout = number("timeout", timeout)
        self._program = ffmpeg.find()

    def __call__(self, sample: Sample) -> Sample:
        """Raises Rejected for what has no sound, and where the new name is another field's."""
        found: Sample = {}
        for name, value in sample.items():
            new = self._names.get(name, name)
            if new in found or (new != name and new in sample):
                raise Rejected(
                    f"{name} would become {new}, which the sample has already; drop one first"
                )
            found[new] = self._resampled(value, name) if name in self._names else value
        return found

    def _resampled(self, data: bytes, field: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="wds_pipeline-sound-") as folder:
            source, target = Path(folder, "source"), Path(folder, "target")
            source.write_bytes(data)
            ffmpeg.run(self._program, source, self._options, str(target), field, self._timeout)
            return target.read_bytes()
