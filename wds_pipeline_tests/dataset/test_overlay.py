"""Overlays: built beside their base, aligned with its shards, refused where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import load_config, load_configs
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.build import Build, build
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.errors import ConfigError, DataError, SourceError, VerificationError
from wds_pipeline_tests.conftest import Project, group_members, png, read_tar
from wds_pipeline_tests.overlays import Overlay, overlay_of, write_fields


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """30 samples in two splits of several shards. Not to be changed."""
    folder = tmp_path_factory.mktemp("base")
    project = Project(folder, {"split": {"train": 0.7, "val": 0.3}})
    project.add(0, 30)
    assert project.build().status == "published"
    return project


@pytest.fixture
def base(built: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    shutil.copytree(built.folder, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path, built.options)


def keys_by_shard(project: Project) -> dict[str, list[str]]:
    """The keys of each shard of the newest version, by tarfile."""
    return {
        shard.partition: list(group_members(read_tar(project.destination / shard.path)))
        for shard in project.latest().shards
    }


def check_aligned(base: Project, overlay: Project) -> None:
    """Each shard's samples are a part of the base's, in its order."""
    there = keys_by_shard(base)
    for partition, keys in keys_by_shard(overlay).items():
        assert [key for key in there[partition] if key in set(keys)] == keys, partition


def everything(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path.relative_to(folder)): (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for path in folder.rglob("*")
        for stat in [path.stat()]
    }


def test_new_captions_rewrite_no_picture(base: Project, tmp_path: Path) -> None:
    before = everything(base.destination)
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw()))
    result = over.build()
    assert result.status == "published"
    assert over.published() == {
        key: {"txt": f"new caption of {key}".encode()} for key in base.raw()
    }
    check_aligned(base, over)
    assert [each.samples for each in over.latest().shards] == [
        each.samples for each in base.latest().shards
    ]
    assert over.build().status == "unchanged"
    assert everything(base.destination) == before


def test_one_new_caption_rebuilds_one_shard(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw()))
    over.build()
    write_fields(over, ["a/0007"], {"txt": "another "})
    result = over.build()
    where = next(name for name, keys in keys_by_shard(base).items() if "a/0007" in keys)
    assert result.causes == {where: "1 edited"} and result.packed == 1
    assert over.published()["a/0007"] == {"txt": b"another a/0007"}
    check_aligned(base, over)


def test_what_changes_in_the_base(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw())[:20])
    assert over.build().manifest.overlay == {
        "dataset": "small",
        "version": 1,
        "digest": base.latest().digest,
        "samples": 30,
        "url": str(base.destination),
        "missing": 10,
    }
    base.write("a/0003.png", png(1000))
    base.build()
    edited = over.build()
    assert (edited.status, edited.packed) == ("published", 0)
    assert edited.manifest.overlay["version"] == 2 and edited.manifest.version == 2
    assert edited.manifest.shards == over.latest().shards
    base.add(30, 3)
    base.build()
    added = over.build()
    assert (added.packed, added.manifest.overlay["missing"]) == (0, 13)
    for name in ("png", "txt", "json"):
        (base.source / f"a/0004.{name}").unlink()
    where = next(name for name, keys in keys_by_shard(base).items() if "a/0004" in keys)
    base.build()
    deleted = over.build()
    assert deleted.manifest.quarantined == {"not_in_base": 1}
    assert set(deleted.causes) <= {where} and "a/0004" not in over.published()
    check_aligned(base, over)
    base.build(repack=True, shards={"max_bytes": 40_000})
    over.build()
    assert set(keys_by_shard(over)) <= set(keys_by_shard(base))
    check_aligned(base, over)
    assert len(over.published()) == 19
    assert over.build().status == "unchanged"


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "edit", "delete", "caption", "uncaption", "repack"]),
        st.integers(0, 19),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=6)
@given(steps=_STEPS, captioned=st.sets(st.integers(0, 19), min_size=1))
def test_it_is_aligned_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], captioned: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("law")
    options = {"split": {"train": 0.6, "val": 0.4}, "shards": {"max_samples": 3}}
    base = Project(folder, {**options, "verify": {"level": "samples"}})
    base.add(0, 12)
    base.build()
    over = overlay_of(base, folder / "over", samples={"max_quarantined": 1})
    write_fields(over, [f"a/{number:04d}" for number in sorted(captioned | {0})])
    over.build()
    for step, number in steps:
        key = f"a/{number:04d}"
        if step in ("add", "edit"):
            base.add(number, 1)
            base.write(f"{key}.txt", f"{step} {number} again")
        elif step == "delete" and number:  # one sample stays
            for name in ("png", "txt", "json"):
                (base.source / f"{key}.{name}").unlink(missing_ok=True)
        elif step == "caption":
            write_fields(over, [key], {"txt": f"{len(steps)} "})
        elif step == "uncaption" and number:
            (over.source / f"{key}.txt").unlink(missing_ok=True)
    base.build(repack=("repack", 1) in steps)
    over.build()
    check_aligned(base, over)
    expected = {key: fields for key, fields in over.raw().items() if key in base.published()}
    assert over.published() == expected
    manifest = over.latest()
    assert manifest.overlay["missing"] == base.latest().total_samples - len(expected)
    assert manifest.overlay["digest"] == base.latest().digest


def test_samples_that_the_base_lacks(base: Project, tmp_path: Path) -> None:
    base.write("a/0005.png", b"broken")
    base.build()
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, [*sorted(base.raw()), "b/0001"])
    manifest = over.build().manifest
    assert manifest.quarantined == {"not_in_base": 2}
    table = version.read_table(over.storage, manifest, version.QUARANTINE).to_pylist()
    details = {row["key"]: row["detail"] for row in table}
    assert details["a/0005"] == (
        "a/0005.txt: it is in the quarantine of small version 2: broken_image"
    )
    assert "the overlay's base has no sample of this key" in details["b/0001"]
    assert all(row["split"] is None and row["slot"] is None for row in table)
    with pytest.raises(DataError, match=r"2 of 31 samples .*max_quarantined allows 1.0%") as caught:
        over.build(samples={"required": [], "max_quarantined": 0.01})
    assert "not_in_base: 2" in str(caught.value)


def test_too_many_samples_without_an_overlay(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over", overlay={"max_missing": "10%"})
    write_fields(over, sorted(base.raw())[:26])
    with pytest.raises(
        VerificationError,
        match=r"missing_overlay: 4 of the 30 samples of small version 1 \(13.3%\) have nothing here, such as "
        r"a/00.*; overlay.max_missing allows 10.0%",
    ):
        over.build()
    assert version.latest(over.storage) is None
    write_fields(over, sorted(base.raw())[:27])
    assert over.build().manifest.overlay["missing"] == 3


def derived(base: Project, folder: Path, *transforms: str, **options: Any) -> Overlay:
    """An overlay that transforms make of the base's own pictures."""
    names = [f"wds_pipeline_tests.overlays:{name}" for name in transforms]
    source = {"dataset": {"url": str(base.destination), "fields": ["png"]}}
    return overlay_of(base, folder, "derived", source=source, transforms=names, **options)


def test_made_of_the_base_itself(base: Project, tmp_path: Path) -> None:
    over = derived(base, tmp_path / "over", "describe")
    assert over.build().manifest.overlay["missing"] == 0
    pictures = {key: each["png"] for key, each in base.published().items()}
    assert over.published() == {
        key: {"txt": f"{len(data)} bytes".encode()} for key, data in pictures.items()
    }
    check_aligned(base, over)
    base.write("a/0003.png", png(1000))
    base.build()
    where = next(name for name, keys in keys_by_shard(base).items() if "a/0003" in keys)
    assert over.build().causes == {where: "1 edited"}


def test_transforms_may_leave_out_samples(base: Project, tmp_path: Path) -> None:
    over = derived(base, tmp_path / "over", "only_even")
    assert over.build().manifest.overlay["missing"] == 15
    assert set(over.published()) == {key for key in base.raw() if int(key[-1]) % 2 == 0}
    check_aligned(base, over)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            "twice",
            r"misaligned: (train|val)-000000-\w+: a/00..-0: small version 1 has no sample of this key: a "
            r"transform of an overlay keeps the key of each sample, and makes at most one of one \(and",
        ),
        (
            "Backwards",
            "misaligned: .* in small version 1 it comes earlier: the samples of an overlay",
        ),
    ],
)
def test_what_is_misaligned_is_not_published(
    base: Project, tmp_path: Path, transform: str, message: str
) -> None:
    over = derived(base, tmp_path / "over", transform)
    with pytest.raises(VerificationError, match=message) as caught:
        over.build()
    assert str(caught.value).endswith("Nothing was published")
    assert version.latest(over.storage) is None


def test_a_base_whose_transforms_made_other_keys(base: Project, tmp_path: Path) -> None:
    doubled = Project(tmp_path / "doubled", {"name": "doubled", "samples": {"required": []}})
    doubled.options["transforms"] = ["wds_pipeline_tests.overlays:twice"]
    doubled.add(0, 6)
    doubled.build()
    over = overlay_of(doubled, tmp_path / "over")
    keys = sorted(doubled.published())
    assert keys[:2] == ["a/0000-0", "a/0000-1"]
    write_fields(over, keys[::2])
    assert over.build().manifest.overlay["missing"] == 6
    check_aligned(doubled, over)


def test_a_look_is_what_a_scan_is(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw())[:5])
    first = open_source(over.config()).look(60).digest
    assert first == open_source(over.config()).scan().digest
    base.write("a/0003.txt", "another caption")
    base.build()
    second = open_source(over.config()).look(60).digest
    assert second != first and second == open_source(over.config()).scan().digest
    pinned = over.config(overlay={"base": {"url": str(base.destination), "version": 1}})
    assert open_source(pinned).scan().digest == first


def test_a_base_that_is_not_there(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw())[:5])
    url = str(base.destination)
    with pytest.raises(
        SourceError, match=r"captions2: overlay.base: .*: version 7 is not published; there are 1"
    ):
        over.build(overlay={"base": {"url": url, "version": 7}})
    with pytest.raises(SourceError, match=r"captions2: overlay.base: .*no version is published"):
        over.build(overlay={"base": {"url": str(tmp_path / "nowhere")}})


def test_the_report_says_what_it_is_of(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw())[:5])
    work = Build(over.config())
    work.open_destination()
    draft = work.plan(work.scan())
    assert {each.partition for each in draft.plan.shards} <= set(keys_by_shard(base))
    over.build()
    page = version.read_file(over.storage, over.latest(), version.REPORT_HTML).decode()
    assert "an overlay of small version 1, 25 of whose 30 samples it lacks" in page


def test_a_damaged_shard_is_repaired(base: Project, tmp_path: Path) -> None:
    over = overlay_of(base, tmp_path / "over")
    write_fields(over, sorted(base.raw()))
    over.build()
    shard = over.latest().shards[0]
    path = over.destination / seal.path(shard.name, seal.TAR)
    data = path.read_bytes()
    path.unlink()
    assert over.build().status == "repaired"
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"split": {"train": 0.5, "val": 0.5}}, "split: with an overlay the splits are the base's"),
        ({"shards": {"max_bytes": "1MB"}}, "shards.max_bytes: with an overlay the shards are laid"),
        (
            {"shards": {"layout": "source"}, "source": {"dataset": "a"}},
            "shards.layout: with an overlay the shards are laid out",
        ),
        (
            {"overlay": {"base": {"name": "a", "fields": ["txt"]}}},
            "fields: an overlay's base is the",
        ),
        ({"overlay": {"base": {"name": "a", "where": "txt.size > 1"}}}, "where: an overlay's base"),
        ({"overlay": {}}, "base"),
    ],
)
def test_what_does_not_go_with_an_overlay(more: dict[str, Any], message: str) -> None:
    values = {
        "name": "over", "source": {"url": "raw"}, "destination": {"url": "out"}, "overlay": {"base": "a"},
    }  # fmt: skip
    DatasetConfig.model_validate({**values, "shards": {"digest": "sha256"}})
    with pytest.raises(ValidationError, match=message):
        DatasetConfig.model_validate({**values, **more})


def test_a_base_by_its_name(base: Project, tmp_path: Path) -> None:
    folder = tmp_path / "datasets"
    folder.mkdir()
    (tmp_path / "new").mkdir()
    for key in sorted(base.raw())[:5]:
        path = tmp_path / "new" / f"{key}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("new")

    def write(name: str, *lines: str) -> None:
        head = [f"name: {name}", f"destination: {{url: ../{name}}}", "compute: {kind: threads}"]
        (folder / f"{name}.yaml").write_text("\n".join([*head, *lines]))

    write("small", "source: {url: ../raw}")
    (tmp_path / "small").symlink_to(base.destination)
    write("over", "source: {url: ../new}", "overlay: {base: small}")
    configs = load_configs(folder)
    assert [each.name for each in configs["over"].upstream] == ["small"]
    result = build(configs["over"])
    assert result.manifest is not None and result.manifest.overlay["dataset"] == "small"
    assert "url" not in result.manifest.overlay
    write("over", "source: {url: ../new}", "overlay: {base: smal}")
    with pytest.raises(
        ConfigError, match=r"overlay.base: 'smal': no such dataset; did you mean 'small'"
    ):
        load_configs(folder)
    with pytest.raises(ConfigError, match=r"overlay.base: 'smal': no such dataset") as caught:
        build(load_config(folder / "over.yaml"))
    assert str(caught.value).count(str(folder / "over.yaml")) == 1
    write("over", "source: {dataset: smal}")
    with pytest.raises(ConfigError, match=r"source.dataset: 'smal': no such dataset") as caught:
        build(load_config(folder / "over.yaml"))
    assert str(caught.value).count(str(folder / "over.yaml")) == 1
    write("over", "source: {url: ../new}", "overlay: {base: over}")
    with pytest.raises(ConfigError, match="made of each other: over → over"):
        load_configs(folder)
