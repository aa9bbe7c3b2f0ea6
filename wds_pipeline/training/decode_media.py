"""Video and audio to arrays, where it is asked for: by PyAV and soundfile, which are installed for it."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from wds_pipeline.training.decode_fields import MAX_UNPACKED, Kind


class Video(NamedTuple):
    """`frames` are uint8, by time, row, column and RGB; `times` are seconds, one a frame; `rate` is the
    average of frames a second, 0 where the file does not say."""

    frames: np.ndarray
    times: np.ndarray
    rate: float


class Audio(NamedTuple):
    """`samples` are float32 from -1 to 1, by channel and time; `rate` is how many a second."""

    samples: np.ndarray
    rate: int


def video(data: bytes) -> Video:
    """All frames of the first video stream. Raises ValueError or what PyAV raises."""
    import av

    with av.open(io.BytesIO(data)) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        stream = container.streams.video[0]
        frames: list[np.ndarray] = []
        times: list[float] = []
        packets = size = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"it is damaged or cut short after {len(frames):,} frames")
            packets += packet.size > 0
            for frame in packet.decode():
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.time if frame.time is not None else np.nan)
                size += frames[-1].nbytes
                if size > MAX_UNPACKED:
                    raise ValueError(
                        f"its first {len(frames):,} frames take more than {MAX_UNPACKED:,} bytes; a "
                        "function of your own may take some of them"
                    )
        if packets < stream.frames:  # 0 where the file does not say
            raise ValueError(f"it has {packets:,} of {stream.frames:,} frames: it is cut short")
        if not frames:
            raise ValueError("it has no frame")
        return Video(np.stack(frames), np.array(times), float(stream.average_rate or 0))


def audio(data: bytes) -> Audio:
    """All of a sound. Raises ValueError or what soundfile raises."""
    import soundfile  # type: ignore[import-untyped]

    if data[:4] == b"RIFF" and data[4:8] != b"\xff\xff\xff\xff":  # libsndfile reads what there is
        expected = 8 + int.from_bytes(data[4:8], "little")
        if len(data) < expected:
            raise ValueError(f"{len(data):,} bytes; its header says {expected:,}: it is cut short")
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        frames, rate = file.frames, file.samplerate
        if frames * file.channels * 4 > MAX_UNPACKED:
            raise ValueError(f"{frames:,} samples of {file.channels} channels are too many at once")
        samples = file.read(dtype="float32", always_2d=True)
    if len(samples) < frames:
        raise ValueError(f"it has {len(samples):,} of {frames:,} samples: it is cut short")
    return Audio(np.ascontiguousarray(samples.T), rate)


MEDIA: dict[str, Kind] = {
    "video": Kind(video, "a video", ("av", "av")),
    "audio": Kind(audio, "a sound that soundfile reads", ("soundfile", "soundfile")),
}
