"""Video and audio: bytes unless asked for; then arrays, and an error for what is cut short."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from wds_pipeline.errors import DecodeError
from wds_pipeline.training import decode_media
from wds_pipeline.training.decode import make_decoder
from wds_pipeline.training.decode_media import Audio, Video

FRAMES, SIDE, RATE = 12, 32, 8000


def film(format: str = "mp4") -> bytes:
    """Twelve grey frames, each lighter than the one before."""
    data = io.BytesIO()
    with av.open(data, "w", format=format) as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            values = np.full((SIDE, SIDE, 3), number * 20, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return data.getvalue()


def sound(format: str) -> bytes:
    """A quarter of a second in two channels, an octave apart."""
    times = np.arange(RATE // 4) / RATE
    waves = np.stack([np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 880 * times)], axis=1)
    data = io.BytesIO()
    soundfile.write(data, waves * 0.5, RATE, format=format)
    return data.getvalue()


def decode(field: str, data: bytes, spec: Any) -> Any:
    decoder = make_decoder(spec, "clips", [field])
    assert decoder is not None
    return decoder({"__key__": "a", "__url__": "x.tar", field: data})[field]


@pytest.mark.parametrize("spec", ["pil", "auto", {"*": "auto"}])
def test_they_are_bytes_by_default(spec: Any) -> None:
    assert decode("mp4", film(), spec) == film()
    assert decode("wav", sound("WAV"), spec) == sound("WAV")


@pytest.mark.parametrize("format", ["mp4", "avi", "matroska"])
def test_a_video(format: str) -> None:
    found = decode("mp4", film(format), {"mp4": "video"})
    assert isinstance(found, Video)
    assert found.frames.shape == (FRAMES, SIDE, SIDE, 3) and found.frames.dtype == np.uint8
    assert np.abs(found.frames.mean(axis=(1, 2, 3)) - np.arange(FRAMES) * 20).max() < 6
    assert found.times == pytest.approx(np.arange(FRAMES) / 24, abs=0.002)
    assert found.rate == pytest.approx(24)


@pytest.mark.parametrize("kind", ["mp4", "faststart", "avi"])
def test_a_video_that_is_cut_short_is_whole_or_an_error(kind: str, tmp_path: Path) -> None:
    data = film("avi") if kind == "avi" else film()
    if kind == "faststart":  # its index comes before the frames: it can be played while it comes
        data = with_index_first(data, tmp_path)
    whole, errors = decode("mp4", data, {"mp4": "video"}), 0
    for end in range(0, len(data), 50):
        try:
            found = decode("mp4", data[:end], {"mp4": "video"})
        except DecodeError as error:
            assert "clips: x.tar: sample 'a', field mp4: " in str(error)
            assert "expected a video" in str(error)
            errors += 1
        else:
            assert np.array_equal(found.frames, whole.frames)
    assert errors > 10


def with_index_first(data: bytes, folder: Path) -> bytes:
    """The same video as `-movflags faststart` writes it."""
    path = folder / "fast.mp4"
    with (
        av.open(io.BytesIO(data)) as given,
        av.open(str(path), "w", options={"movflags": "faststart"}) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    found = path.read_bytes()
    assert found.index(b"moov") < found.index(b"mdat")
    return found


def test_a_video_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_media, "MAX_UNPACKED", SIDE * SIDE * 3 * 4)
    with pytest.raises(DecodeError, match="its first 5 frames take more than"):
        decode("mp4", film(), {"mp4": "video"})


def test_a_sound_is_no_video() -> None:
    with pytest.raises(DecodeError, match="it has no video stream"):
        decode("mp4", sound("WAV"), {"mp4": "video"})


@pytest.mark.parametrize(("format", "near"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1)])
def test_a_sound(format: str, near: float) -> None:
    found = decode("wav", sound(format), {"wav": "audio"})
    assert isinstance(found, Audio)
    assert found.rate == RATE and found.samples.dtype == np.float32
    assert found.samples.shape == (2, RATE // 4)
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE // 4) / RATE) * 0.5
    assert np.abs(found.samples[0] - expected).max() < near


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_a_sound_that_is_cut_short(format: str) -> None:
    data = sound(format)
    for end in (0, 20, len(data) // 2, len(data) - 10):
        with pytest.raises(DecodeError, match="expected a sound that soundfile reads"):
            decode("wav", data[:end], {"wav": "audio"})


def test_a_sound_that_takes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_media, "MAX_UNPACKED", 1000)
    with pytest.raises(DecodeError, match="too many at once"):
        decode("wav", sound("WAV"), {"wav": "audio"})
