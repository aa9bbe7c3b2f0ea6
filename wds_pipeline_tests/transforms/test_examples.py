"""What webdataset's documentation does by scripts, as YAML datasets: clips of videos, augmented pictures,
sequences in archives. Each is built twice, and read by webdataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from wds_pipeline.config_file import load_config
from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import BuildResult, build
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.transforms.media import frames, jpeg, opened, video
from wds_pipeline_tests.transforms.test_expand import targz, zipped

# webdataset leaves its shards open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

HEAD = """
name: {name}
source: {{url: {folder}/raw}}
destination: {{url: {folder}/{published}}}
compute: {{kind: threads, workers: 1}}
"""
VIDEOS = """
samples: {max_quarantined: 50%, fields: {mp4: [mp4], info.json: [info.json], txt: [txt]}, required: [mp4]}
transforms:
  - clips: {fields: [mp4], seconds: 1, width: 64, height: 32, info: clip.json}
"""
AUGMENTED = """
samples: {max_quarantined: 50%, fields: {jpg: [jpg], json: [json]}, required: [jpg, json]}
transforms:
  - filter: {fields: [jpg], min_width: 64, max_aspect: 3}
  - resize: {fields: [jpg], size: 48, mode: shortest, quality: 95}
  - repeat: {copies: 2}
  - crop: {fields: [jpg], size: 48, at: random, quality: 95}
  - wds_pipeline_tests.transforms.augment:noisy: {amount: 0.02}
  - extract: {paths: {cls: label}}
  - select: {fields: [png, cls]}
"""
SEQUENCES = """
samples: {max_quarantined: 50%, fields: {zip: [zip], tar.gz: [tar.gz], json: [json]}, required: [json]}
transforms:
  - expand: {fields: [zip, tar.gz]}
  - resize: {fields: [jpg], size: 16}
"""


def raw(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def built(folder: Path, text: str, published: str = "published") -> BuildResult:
    """Builds a YAML file."""
    head = HEAD.format(name="example", folder=folder, published=published)
    path = folder / "example.yaml"
    path.write_text(head + text)
    return build(load_config(path))


def read(folder: Path, result: BuildResult) -> dict[str, dict[str, Any]]:
    """The samples, by webdataset; and that another build elsewhere gives the same bytes."""
    text = (folder / "example.yaml").read_text().partition("workers: 1}")[2]
    again = built(folder, text, "again")
    shards = [(each.name, each.digest) for each in result.manifest.shards]
    assert shards == [(each.name, each.digest) for each in again.manifest.shards]
    urls = [str(folder / "published" / each.path) for each in result.manifest.shards]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        found[sample["__key__"]] = {
            name: data for name, data in sample.items() if not name.startswith("__")
        }
    return found


def quarantined(folder: Path, result: BuildResult) -> dict[str, str]:
    storage = open_storage(str(folder / "published"))
    table = version.read_table(storage, result.manifest, version.QUARANTINE)
    return {row["key"]: row["detail"] for row in table.to_pylist()}


def test_videos_are_split_into_clips(tmp_path: Path) -> None:
    names = [f"videos/v{number}" for number in range(3)]
    for name in names:
        raw(tmp_path, {f"{name}.mp4": video(), f"{name}.info.json": b'{"title": "a test"}'})
        raw(tmp_path, {f"{name}.txt": f"about {name}".encode()})
    raw(tmp_path, {"videos/broken.mp4": video()[:2_000]})
    result = built(tmp_path, VIDEOS)
    found = read(tmp_path, result)
    assert found.keys() == {f"{name}-{number:03d}" for name in names for number in range(4)}
    for key, fields in found.items():
        number = int(key[-3:])
        assert frames(fields["mp4"]) == (25 if number < 3 else 10)
        assert json.loads(fields["clip.json"]) == {
            "number": number,
            "of": 4,
            "start": float(number),
        }
        assert fields["info.json"] == b'{"title": "a test"}'
        assert fields["txt"] == f"about {key[:-4]}".encode()
    (reason,) = quarantined(tmp_path, result).values()
    assert reason.startswith("clips: mp4: ffmpeg: ")
    assert result.manifest.splits["train"].inputs == 3


def test_pictures_are_augmented(tmp_path: Path) -> None:
    for number in range(8):
        data = jpeg(40 if number == 7 else 96 + number, 64, number)
        facts = json.dumps({"label": number % 3} if number != 6 else {}).encode()
        raw(tmp_path, {f"a/{number}.jpg": data, f"a/{number}.json": facts})
    result = built(tmp_path, AUGMENTED)
    found = read(tmp_path, result)
    assert found.keys() == {f"a/{number}-{copy}" for number in range(6) for copy in range(2)}
    for key, fields in found.items():
        assert fields.keys() == {"png", "cls"}
        assert int(fields["cls"]) == int(key[2]) % 3
        picture = opened(fields["png"])
        assert (picture.format, picture.size) == ("PNG", (48, 48))
    pictures = {fields["png"] for fields in found.values()}
    assert len(pictures) == len(found), "each copy is another picture"
    assert result.manifest.left_out == {"filter": 1}
    assert quarantined(tmp_path, result) == {
        "a/6": "extract: json: nothing at label; there is nothing (missing: ignore goes without)"
    }


def test_sequences_in_archives(tmp_path: Path) -> None:
    def sequence(seed: int) -> dict[str, bytes]:
        made = {f"{number:03d}.jpg": jpeg(32, 24, seed + number) for number in range(4)}
        return {**made, **{f"{number:03d}.txt": f"{number}".encode() for number in range(4)}}

    for number in range(3):
        kind, pack = ("zip", zipped) if number else ("tar.gz", targz)
        raw(tmp_path, {f"s{number}.{kind}": pack(sequence(number)), f"s{number}.json": b"{}"})
    raw(tmp_path, {"evil.zip": zipped({"../001.jpg": b"x"}), "evil.json": b"{}"})
    result = built(tmp_path, SEQUENCES)
    found = read(tmp_path, result)
    assert found.keys() == {f"s{number}/{frame:03d}" for number in range(3) for frame in range(4)}
    keys = list(found)
    for number in range(3):  # a sequence stays together, in its order
        at = keys.index(f"s{number}/000")
        assert keys[at : at + 4] == [f"s{number}/{frame:03d}" for frame in range(4)]
    for key, fields in found.items():
        assert fields.keys() == {"jpg", "txt", "json"}
        assert int(fields["txt"]) == int(key[-3:])
        assert np.asarray(opened(fields["jpg"])).shape == (12, 16, 3)
    (reason,) = quarantined(tmp_path, result).values()
    assert "the member '../001.jpg' leads out of the archive" in reason


@pytest.mark.parametrize("text", [VIDEOS, AUGMENTED, SEQUENCES])
def test_nothing_changed(text: str, tmp_path: Path) -> None:
    raw(tmp_path, {"a.jpg": jpeg(), "a.json": b'{"label": 1}', "a.mp4": video()})
    raw(tmp_path, {"a.zip": zipped({"1.jpg": jpeg(32, 24)})})
    assert built(tmp_path, text).status == "published"
    assert built(tmp_path, text).status == "unchanged"
