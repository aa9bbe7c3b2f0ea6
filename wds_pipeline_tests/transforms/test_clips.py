"""`clips` and `resample`: by ffmpeg; what came out is looked at by PyAV and soundfile."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms import ffmpeg
from wds_pipeline.transforms.api import Rejected, Sample
from wds_pipeline.transforms.clips import Clips
from wds_pipeline.transforms.resample import Resample
from wds_pipeline_tests.transforms.media import frames, jpeg, sample, tone, video


def clips(data: bytes | None = None, **parameters: Any) -> list[Sample]:
    given = sample("v/1", mp4=video() if data is None else data, json=b"{}", txt=b"x")
    return list(Clips(["mp4"], **{"seconds": 1, **parameters})(given))


@pytest.mark.parametrize("codec", ["h264", "copy"])
@pytest.mark.parametrize("to", ["mp4", "mkv"])
def test_clips_are_the_whole_in_parts(codec: str, to: str) -> None:
    found = clips(codec=codec, to=to, info="clip.json")
    assert [each["__key__"] for each in found] == [f"v/1-{number:03d}" for number in range(4)]
    assert [frames(each[to]) for each in found] == [25, 25, 25, 10]
    facts = [json.loads(each["clip.json"]) for each in found]
    assert facts == [{"number": number, "of": 4, "start": float(number)} for number in range(4)]
    assert all((each["json"], each["txt"]) == (b"{}", b"x") for each in found)


def test_new_pictures_are_cut_anywhere_and_copied_ones_at_key_frames() -> None:
    assert [frames(each["mp4"]) for each in clips(seconds=0.6)] == [15, 15, 15, 15, 15, 10]
    assert [frames(each["mp4"]) for each in clips(seconds=1.4, codec="copy")] == [50, 25, 10]
    assert [frames(each["mp4"]) for each in clips(seconds=60)] == [85]


@pytest.mark.parametrize("codec", ["h264", "copy"])
def test_no_picture_is_lost_or_made_twice_where_their_distances_differ(codec: str) -> None:
    data = video(3.4, sound=False, only="lt(n,20)+not(mod(n,7))")
    assert sum(frames(each["mp4"]) for each in clips(data, codec=codec)) == frames(data) == 30


def test_sound_and_size() -> None:
    import av

    def streams(**parameters: Any) -> list[str]:
        with av.open(io.BytesIO(clips(**parameters)[0]["mp4"])) as container:
            found = container.streams
            sizes = [f"{each.width} x {each.height}" for each in found.video]
            return sizes + [each.type for each in found.audio]

    assert streams() == ["64 x 48", "audio"]
    assert streams(audio=False, width=32) == ["32 x 24"]
    assert streams(data=video(sound=False), height=96) == ["128 x 96"]
    assert streams(audio=False, width=64, height=24) == ["64 x 24"]


def test_a_box_keeps_the_aspect_with_black_beside_it() -> None:
    import av

    with av.open(io.BytesIO(clips(width=128, height=48)[0]["mp4"])) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (48, 128, 3)
    assert picture[:, :28].max() < 40 and picture[:, 100:].max() < 40
    assert picture[:, 36:92].max() > 200


def test_which_fields_go_along() -> None:
    assert list(clips(keep="none")[0]) == ["__key__", "mp4"]
    assert list(clips(keep=["json", "png"], to="clip.mp4")[0]) == ["__key__", "json", "clip.mp4"]
    assert list(Clips(["mp4"], 1)(sample(txt=b"x"))) == [sample(txt=b"x")]


def test_no_time_and_no_name_is_written() -> None:
    for codec in ("h264", "copy"):
        made = clips(codec=codec)[0]["mp4"]
        assert b"Lavf" not in made
        at = made.index(b"mvhd")
        assert made[at + 8 : at + 16] == bytes(8)  # created and changed: never


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "mp4: ffmpeg: "),
        (b"no video at all", "mp4: ffmpeg: "),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n", "mp4: ffmpeg: "),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "mp4: ffmpeg: "),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "copy"])
def test_what_is_no_video_is_rejected(data: bytes, reason: str, codec: str) -> None:
    with pytest.raises(Rejected, match=reason):
        clips(data, codec=codec)


def test_a_playlist_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "real.mp4").write_bytes(video())
    listed = f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{tmp_path}/real.mp4\n#EXT-X-ENDLIST\n"
    with pytest.raises(Rejected):
        clips(listed.encode())


def test_a_video_that_takes_too_long_is_rejected() -> None:
    with pytest.raises(Rejected, match=r"mp4: ffmpeg was not done after 0\.001 seconds"):
        clips(timeout=0.001)


def sound(data: bytes) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(data))  # type: ignore[no-any-return]


@pytest.mark.parametrize("format_", ["wav", "flac", "opus"])
def test_resample(format_: str) -> None:
    found = Resample(["wav"], 16_000, channels=1, format=format_)(sample(wav=tone(), txt=b"x"))
    assert list(found) == ["__key__", format_, "txt"]
    samples, rate = sound(found[format_])
    assert rate == 16_000
    assert samples.ndim == 1
    assert abs(len(samples) / rate - 1) < 0.03
    spectrum = np.abs(np.fft.rfft(samples[:rate]))
    assert abs(int(spectrum.argmax()) - 440) <= 15


def test_resample_of_a_video_and_of_none() -> None:
    found = Resample(["mp4"], 8_000, format="wav")(sample(mp4=video()))
    assert sound(found["wav"])[1] == 8_000
    with pytest.raises(Rejected, match="mp4: ffmpeg: "):
        Resample(["mp4"], 8_000)(sample(mp4=video(sound=False)))
    with pytest.raises(Rejected, match="wav: ffmpeg: "):
        Resample(["wav"], 8_000)(sample(wav=jpeg()))
    with pytest.raises(Rejected, match="wav would become flac, which the sample has already"):
        Resample(["wav"], 8_000)(sample(wav=tone(), flac=b""))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"seconds": 0}, "seconds: found 0; expected a number above 0"),
        ({"to": "avi"}, "to: found 'avi'; expected a field whose name ends with mp4 or mkv"),
        ({"codec": "x264"}, "codec: found 'x264'; expected one of h264, copy; did you mean 'h264'"),
        ({"codec": "copy", "width": 10}, "h264 with width or height"),
        ({"height": 11}, "height: found 11; expected an even number"),
        ({"crf": 52}, "crf: found 52"),
        ({"keep": "txt"}, "keep: found 'txt'; expected all, none, or a list"),
        ({"info": "txt"}, "info: found 'txt'; expected a json field"),
        ({"timeout": 0}, "timeout: found 0"),
    ],
)
def test_wrong_parameters_of_clips(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Clips(**{"fields": ["mp4"], "seconds": 1, **parameters})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rate": 10}, "rate: found 10; expected a whole number, 1,000 to 384,000"),
        ({"rate": 44_100, "format": "opus"}, "rate: found 44100; expected for opus one of 8000"),
        ({"format": "mp3"}, "format: found 'mp3'; expected one of wav, flac, opus"),
        ({"channels": 0}, "channels: found 0"),
    ],
)
def test_wrong_parameters_of_resample(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=message):
        Resample(**{"fields": ["wav"], "rate": 16_000, **parameters})


def test_ffmpeg_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"ffmpeg is not there; install it, or pip install 'wds-"):
        Clips(["mp4"], 1)
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert ffmpeg.find() == str(program)
