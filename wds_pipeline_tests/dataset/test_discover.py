"""What `init` makes of folders as people have them: each gives a configuration that plans."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline import demo
from wds_pipeline.config_file import load_config
from wds_pipeline.dataset.discover import Discovery, discover, shard_megabytes
from wds_pipeline.dataset.discover_yaml import render
from wds_pipeline.dataset.preview import preview
from wds_pipeline.errors import DataError, SourceError
from wds_pipeline.storage import open_storage


def found(folder: Path, paths: Iterable[str]) -> Discovery:
    """Writes files, discovers them, and holds what every discovery promises."""
    for path in paths:
        target = folder / "raw" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"content of {path}")
    return checked(folder, folder / "raw")


def checked(folder: Path, source: Path) -> Discovery:
    values: dict[str, Any] = {
        "name": "small",
        "source": {"url": str(source)},
        "destination": {"url": str(folder / "out")},
    }
    discovery = discover(open_storage(str(source)), values)
    file = folder / "small.yaml"
    file.write_text(render(discovery))
    config = load_config(file)
    assert config.model_dump() == discovery.config.model_dump()
    planned = preview(config)
    assert planned.problems == []
    assert planned.samples == discovery.plan.ledger.num_rows
    assert all(len(line) <= 140 for line in file.read_text().splitlines())
    return discovery


def test_pictures_with_captions(tmp_path: Path) -> None:
    discovery = found(tmp_path, [f"{i:03}.{ext}" for i in range(50) for ext in ("jpg", "txt")])
    assert discovery.values["samples"] == {
        "fields": {"jpg": ["jpg", "jpeg"], "txt": ["txt"]},
        "required": ["jpg", "txt"],
    }
    assert discovery.values["split"] == {"train": 0.95, "val": 0.05}
    assert discovery.samples == 50
    assert not discovery.quarantined


def test_formats_that_are_mixed_are_one_field(tmp_path: Path) -> None:
    extensions = ("jpg", "JPEG", "png", "webp")
    paths = [f"{i:03}.{extensions[i % 4]}" for i in range(40)] + [f"{i:03}.txt" for i in range(40)]
    discovery = found(tmp_path, paths)
    assert set(discovery.values["samples"]["fields"]["jpg"]) == {"jpg", "jpeg", "png", "webp"}
    assert discovery.fields[0].mixed
    assert "decoders look at the content" in render(discovery)


def test_a_picture_and_its_mask_are_two_fields(tmp_path: Path) -> None:
    discovery = found(tmp_path, [f"{i:03}.{ext}" for i in range(20) for ext in ("jpg", "png")])
    assert [each.name for each in discovery.fields] == ["jpg", "png"]


def test_extensions_with_a_dot(tmp_path: Path) -> None:
    paths = [f"{i:03}.{ext}" for i in range(20) for ext in ("jpg", "seg.png", "json.gz")]
    discovery = found(tmp_path, paths)
    assert {each.name for each in discovery.fields} == {"jpg", "seg.png", "json.gz"}
    assert "naming" not in discovery.values["samples"]


@pytest.mark.parametrize(
    ("paths", "rule"),
    [
        ([f"img_{i}.v{i % 7}.{ext}" for i in range(40) for ext in ("jpg", "txt")], "last_dot"),
        ([f"{i}.{i + 1}.jpg" for i in range(40)], "last_dot"),
        ([f"a{sep}{i}.jpg" for i in range(40) for sep in "._"], "escape"),
        ([f"{i}.jpg" for i in range(300)] + ["one.v2.jpg"], None),
    ],
)
def test_stems_with_a_dot(tmp_path: Path, paths: list[str], rule: str | None) -> None:
    discovery = found(tmp_path, paths)
    assert discovery.values["samples"].get("naming") == rule
    assert "with a dot in the stem" in render(discovery)
    if rule is not None:
        assert not discovery.quarantined


@pytest.mark.parametrize(
    ("paths", "key"),
    [
        ("images/{i}.jpg captions/{i}.txt", "7"),
        ("train/images/{i}.jpg train/labels/{i}.txt", "train/7"),
        ("images/train/{i}.jpg labels/train/{i}.txt", "train/7"),
        ("a/b/rgb/{i}.png a/b/text/{i}.txt a/b/meta/{i}.json", "a/b/7"),
    ],
)
def test_parallel_folders_are_joined(tmp_path: Path, paths: str, key: str) -> None:
    discovery = found(tmp_path, [p.format(i=i) for i in range(30) for p in paths.split()])
    assert discovery.samples == 30
    assert key in discovery.plan.ledger["key"].to_pylist()
    assert len(discovery.values["samples"]["required"]) == len(paths.split())
    assert not discovery.quarantined


def test_folders_of_unlike_depth_are_joined(tmp_path: Path) -> None:
    paths = [
        f"{top}{kind}"
        for top in ("a/", "b/c/", "d/e/f/")
        for kind in ("img/{i}.jpg", "cap/{i}.txt")
    ]
    discovery = found(tmp_path, [p.format(i=i) for i in range(30) for p in paths])
    assert discovery.samples == 90
    assert "a/7" in discovery.plan.ledger["key"].to_pylist()


@pytest.mark.parametrize(
    "paths",
    [
        "cats/{i}.jpg dogs/{i}.jpg",  # classes, not roles
        "rgb/{i}.png depth/{i}.png",  # joined, they would be one field
        "a/{i}.jpg a/{i}.txt b/{i}.jpg b/{i}.txt",
        "images/{i}.jpg texts/other-{i}.txt",
    ],
)
def test_other_folders_are_left_alone(tmp_path: Path, paths: str) -> None:
    discovery = found(tmp_path, [p.format(i=i) for i in range(30) for p in paths.split()])
    assert discovery.folders is None


def test_folders_that_are_splits(tmp_path: Path) -> None:
    paths = [f"{top}/{i}.jpg" for top in ("train", "validation") for i in range(20)]
    assert found(tmp_path, paths).values["split"] == {"by": "directory"}


def test_folders_that_are_no_splits(tmp_path: Path) -> None:
    discovery = found(tmp_path, [f"{top}/{i}.jpg" for top in ("train", "bus") for i in range(20)])
    assert "by" not in discovery.values["split"]
    assert "group_by: '^([^/]+)/'" in render(discovery)


def test_what_stands_alone_is_left_out_and_named(tmp_path: Path) -> None:
    discovery = found(
        tmp_path, [f"{i}.jpg" for i in range(100)] + ["README.md", "meta.csv", "LICENSE"]
    )
    assert discovery.ignored == {"md": 1, "csv": 1}
    assert "md (1), csv (1)" in render(discovery)


def test_a_field_that_half_of_the_samples_have_is_not_required(tmp_path: Path) -> None:
    discovery = found(
        tmp_path, [f"{i}.jpg" for i in range(40)] + [f"{i}.txt" for i in range(0, 40, 2)]
    )
    assert discovery.values["samples"]["required"] == ["jpg"]
    assert [each.samples for each in discovery.fields] == [40, 20]


def test_the_budget_covers_what_is_already_unusable(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(10):
        (tmp_path / "raw" / f"empty-{number}.txt").touch()
    discovery = found(tmp_path, [f"{i}.txt" for i in range(90)])
    assert discovery.values["samples"]["max_quarantined"] == "20%"
    assert "10 empty_file" in render(discovery)


def test_the_demo(tmp_path: Path) -> None:
    demo.generate(tmp_path / "raw", 300)
    discovery = checked(tmp_path, tmp_path / "raw")
    assert [each.name for each in discovery.fields] == ["jpg", "json", "txt"]
    assert discovery.values["samples"]["required"] == ["jpg", "json", "txt"]


def test_what_cannot_be_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        checked(tmp_path, tmp_path / "nowhere")
    (tmp_path / "raw").mkdir()
    with pytest.raises(SourceError, match="no file to take"):
        checked(tmp_path, tmp_path / "raw")
    with pytest.raises(DataError, match="no file there has an extension"):
        found(tmp_path, ["README"])
    (tmp_path / "raw" / "x.txt").touch()
    with pytest.raises(DataError, match="all 1 samples are unusable"):
        checked(tmp_path, tmp_path / "raw")


@pytest.mark.parametrize(
    ("total", "largest", "megabytes"),
    [
        (10e6, 1e5, 16),  # no tiny shards
        (1e9, 1e5, 16),
        (1.1e9, 1e5, 32),
        (10e9, 1e5, 256),
        (100e9, 1e6, 256),
        (100e12, 1e6, 256),
        (100e9, 60e6, 256),
        (100e9, 100e6, 512),
        (100e9, 5e9, 1024),  # such a sample has a shard of its own
    ],
)
def test_shard_sizes(total: float, largest: float, megabytes: int) -> None:
    assert shard_megabytes(int(total), int(largest)) == megabytes
