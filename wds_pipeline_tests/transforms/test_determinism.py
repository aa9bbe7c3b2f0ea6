"""Every built-in: the same bytes twice, and in a fresh process; what is wrong with its parameters is told."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.errors import ConfigError
from wds_pipeline.transforms.api import Sample
from wds_pipeline.transforms.chain import Chain
from wds_pipeline.transforms.registry import BUILT_IN, load
from wds_pipeline_tests.transforms.media import jpeg, png, tone, video
from wds_pipeline_tests.transforms.test_expand import FILES, zipped

# One or more for each built-in; each concerns at least one sample.
CASES: dict[str, list[dict[str, Any]]] = {
    "resize": [
        {"fields": ["jpg", "mask.png"], "size": 24},
        {"fields": ["jpg"], "size": 24, "mode": "fill", "progressive": True, "draft": False},
    ],
    "crop": [{"fields": ["jpg"], "size": 24}, {"fields": ["mask.png"], "size": 9, "at": "random"}],
    "convert": [
        {"fields": ["jpg"], "format": each} for each in ("png", "webp", "tif", "bmp", "ppm", "avif")
    ]
    + [{"fields": ["mask.png"], "format": "jpg", "mode": "L"}],
    "thumbnail": [{"fields": ["jpg"]}],
    "filter": [{"fields": ["jpg"], "min_width": 80}, {"where": 'has("txt")'}],
    "rename": [{"fields": {"txt": "caption.txt"}}],
    "select": [{"fields": ["jpg", "txt"]}],
    "drop": [{"fields": ["txt"]}],
    "repeat": [{"copies": 3}],
    "set": [{"fields": {"info.json": {"z": "{key}", "a": "{json:a}"}}}],
    "extract": [{"paths": {"x.txt": "a"}}],
    "to_json": [{"fields": ["txt", "cls"]}],
    "hash": [{"fields": ["jpg", "txt"], "algorithm": "xxh3-128"}],
    "phash": [{"fields": ["jpg"], "algorithm": each} for each in ("phash", "whash")],
    "clips": [
        {"fields": ["mp4"], "seconds": 1, "info": "clip.json"},
        {"fields": ["mp4"], "seconds": 1, "codec": "copy", "to": "mkv"},
    ],
    "resample": [
        {"fields": ["wav"], "rate": 16_000, "format": each} for each in ("wav", "flac", "opus")
    ],
    "expand": [{"fields": ["zip"], "keep": ["json"]}],
}
NAMED = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]


def samples() -> list[Sample]:
    """Samples of all kinds of fields."""
    made: list[Sample] = []
    for number in range(3):
        data = jpeg(90 + number, 64, number, orientation=number + 5)
        made.append(
            {"__key__": f"a/{number}", "jpg": data, "mask.png": png(40, 30), "txt": b"a text"}
        )
        made[-1] |= {"json": b'{"a": [1, "b"]}', "cls": b"3"}
    media: dict[str, Any] = {"mp4": video(), "wav": tone(), "zip": zipped(FILES)}
    return [
        *made,
        {"__key__": "b/media", **media, "jpg": jpeg(90, 64), "txt": b"t", "json": b'{"a": 1}'},
    ]


def digest(name: str, parameters: dict[str, Any], given: list[Sample]) -> str:
    """Of all that comes out, in order."""
    steps = load([TransformConfig.model_validate({name: parameters})], "small")
    chain = Chain(steps, "train-000000")
    found = hashlib.sha256()
    for sample in chain.run([dict(each) for each in given]):
        for field, data in sample.items():
            found.update(f"{field} {len(data)} ".encode())
            found.update(data.encode() if isinstance(data, str) else data)
    assert not chain.rejected
    assert sum(chain.left_out.values()) < len(given)
    return found.hexdigest()


def digests(given: list[Sample]) -> dict[tuple[str, int], str]:
    return {(name, number): digest(name, CASES[name][number], given) for name, number in NAMED}


@pytest.fixture(scope="module")
def first() -> tuple[list[Sample], dict[tuple[str, int], str]]:
    given = samples()
    return given, digests(given)


def test_all_built_ins_are_here() -> None:
    ours = {
        name for name, target in BUILT_IN.items() if not target.startswith("wds_pipeline.tokens")
    }
    assert ours == CASES.keys()


def test_the_same_again(first: tuple[list[Sample], dict[tuple[str, int], str]]) -> None:
    given, found = first
    assert digests(given) == found
    # None does nothing at all.
    untouched = digest("filter", {"lacks": ["gif"]}, given)
    changed = {name for (name, _), each in found.items() if each != untouched}
    assert changed == CASES.keys() - {"filter"}


def test_the_same_in_a_fresh_process(
    first: tuple[list[Sample], dict[tuple[str, int], str]], tmp_path: Path
) -> None:
    given, found = first
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    code = (
        "import pickle, sys; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "from wds_pipeline_tests.transforms.test_determinism import digests\n"
        "found = digests(pickle.loads((folder / 'given').read_bytes()))\n"
        "(folder / 'found').write_bytes(pickle.dumps(found))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=120)
    assert pickle.loads((tmp_path / "found").read_bytes()) == found


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("resize", {"fields": ["jpg"]}, "size: found None; expected size, or width and height"),
        ("resize", {"size": 3}, "the parameter 'fields' is required"),
        ("resize", {"fields": ["jpg"], "size": 3, "width": 3}, "size: found 3; expected size, or"),
        (
            "resize",
            {"fields": ["jpg"], "size": 0},
            "size: found 0; expected a whole number, 1 to 65,535",
        ),
        ("resize", {"fields": ["jpg"], "size": 3, "filter": "cubic"}, "did you mean 'bicubic'"),
        (
            "resize",
            {"fields": ["jpg"], "size": 3, "mode": "cover"},
            "mode: found 'cover'; expected one of fit",
        ),
        ("resize", {"fields": ["jpg"], "width": 3, "mode": "fill"}, "height: found None"),
        (
            "resize",
            {"fields": ["jpg"], "width": 3, "mode": "shortest"},
            "size: found None; expected one num",
        ),
        ("resize", {"fields": ["jpg"], "size": 3, "only_shrink": "yes"}, "expected true or false"),
        ("resize", {"fields": ["jpg"], "size": 3, "qualit": 1}, "did you mean 'quality'"),
        ("resize", {"fields": ["jpg"], "sise": 3}, "'sise'; expected one of fields, size, "),
        ("resize", {"fields": ["jpg"], "sise": 3}, "max_pixels; did you mean 'size'?"),
        ("thumbnail", {"fields": ["jpg"], "to": "jpg"}, "to: found 'jpg'; expected another field"),
        ("thumbnail", {"fields": ["jpg"], "to": "thumb.txt"}, "expected fields of pictures"),
        ("clips", {"fields": ["mp4"], "second": 3}, "did you mean 'seconds'"),
        ("expnd", {}, "did you mean 'expand'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    config = TransformConfig.model_validate({name: parameters})
    with pytest.raises(ConfigError) as caught:
        load([config], "small.yaml")
    assert str(caught.value).startswith(f"small.yaml: transforms[0]: {name}: ")
    assert message in str(caught.value)
