"""Exports are part of a version: there when it is, whole, and gone with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from wds_pipeline.dataset import export, version
from wds_pipeline.dataset import publish as publishing
from wds_pipeline.dataset.export.base import Export
from wds_pipeline.errors import ConfigError, DataError, DestinationError
from wds_pipeline_tests.conftest import Project

LOCAL = [name for name in export.names() if name != "streaming_wds"]


def exported(project: Project, number: int = 1) -> set[str]:
    """Every file of a version's exports."""
    folder = project.destination / export.folder(number)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", export.names())
def test_every_name_has_its_module(name: str) -> None:
    assert callable(export._module(name).write)


def test_unknown_names(project: Project) -> None:
    with pytest.raises(ValidationError, match="did you mean 'energon'"):
        project.config(exports=["energo"])
    with pytest.raises(ConfigError, match=r"'wid': no such export; did you mean 'wids'\?"):
        export.check(["wid"], project.storage, "small")


def test_a_build_publishes_them_all(project: Project) -> None:
    project.add(0, 20)
    manifest = project.build(exports=LOCAL).manifest
    found = exported(project)
    assert {f"{name}/export.json" for name in LOCAL} <= found
    done = json.loads((project.destination / export.folder(1, "wids") / "export.json").read_text())
    assert (done["digest"], done["samples"]) == (manifest.digest, 20)
    assert not list((project.destination / "versions/00000001").glob("build-*"))
    assert not project.stray()
    assert project.raw() == project.published()


def test_adding_one_makes_no_new_version(project: Project) -> None:
    project.add(0, 12)
    project.build()
    assert not exported(project)
    shards = project.shard_files()
    assert project.build(exports=["wids", "urls"]).status == "unchanged"
    assert {"wids/train.json", "urls/train.txt"} <= exported(project)
    assert project.shard_files() == shards
    inode = (project.destination / export.folder(1, "wids") / "train.json").stat().st_ino
    project.build(exports=["wids", "urls"])
    assert (project.destination / export.folder(1, "wids") / "train.json").stat().st_ino == inode


def test_killed_between_the_commit_and_its_tidying_up(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 12)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "finish", lambda *_: None)
        project.build(exports=["energon", "wids"])
    assert not exported(project)
    assert project.build(exports=["energon", "wids"]).status == "unchanged"
    assert {"wids/train.json", "energon/.nv-meta/.info.json"} <= exported(project)
    assert not list((project.destination / "versions/00000001").glob("build-*"))


def test_the_files_of_the_build_that_was_second_are_removed(project: Project) -> None:
    project.add(0, 12)
    project.build()
    more = {**publishing.stamp(), "config": {"exports": ["wids", "energon"]}}
    manifest = project.latest().model_copy(update=more)
    files = {version.LEDGER: version.read_file(project.storage, project.latest(), version.LEDGER)}
    assert not publishing.commit(project.storage, manifest, files)
    assert not list((project.destination / "versions/00000001").glob("build-*"))
    assert not exported(project)


def test_an_export_that_cannot_be_right_refuses_the_version(project: Project) -> None:
    project.add(0, 3)
    folder = "f" * 60
    project.add(3, 3, folder=f"{folder}/{folder}")
    with pytest.raises(
        DataError, match="reads up to 100; mend the tar or its names, or leave wids out"
    ):
        project.build(exports=["wids"])
    assert version.latest(project.storage) is None
    assert project.build(exports=["energon"]).status == "published"


def test_a_restored_version_has_those_of_the_old_one(project: Project) -> None:
    project.add(0, 6)
    project.build(exports=["wids"])
    project.add(6, 6)
    project.build(exports=["wids"])
    publishing.restore(project.storage, 1, "small")
    one, three = (
        json.loads((project.destination / export.folder(n, "wids") / "train.json").read_text())
        for n in (1, 3)
    )
    assert one == three


def test_one_edit_writes_the_side_files_of_one_shard(project: Project) -> None:
    keys = project.add(0, 20)
    project.build(exports=["dali", "energon"])
    before = project.shard_files()
    project.write(f"{keys[3]}.txt", "another caption")
    project.build(exports=["dali", "energon"])
    after = project.shard_files()
    new = {name.partition(".")[0] for name in after.keys() - before.keys()}
    assert len(new) == 1
    assert {f"{new.copy().pop()}{end}" for end in (".idx", ".tar.idx")} <= after.keys()
    assert {name: after[name] for name in before} == before


def test_what_a_tool_wants_among_the_shards_is_linked_there(project: Project) -> None:
    project.add(0, 12)
    project.build(exports=["open_clip", "huggingface"])
    view = project.destination / "views/00000001"
    for name, file in (("open_clip", "sizes.json"), ("huggingface", "README.md")):
        assert (view / file).samefile(project.destination / export.folder(1, name) / file)


def test_a_destination_that_cannot_be_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 6)

    def full(*_: object) -> None:
        raise DestinationError("the disk is full")

    monkeypatch.setattr(Export, "put", full)
    with pytest.raises(DestinationError, match="the disk is full"):
        project.build(exports=["urls"])
    assert version.latest(project.storage) is None
    monkeypatch.undo()
    assert project.build(exports=["urls"]).packed == 0


def test_streaming_wds_wants_a_bucket(project: Project) -> None:
    project.add(0, 3)
    with pytest.raises(ConfigError, match=r"export streaming_wds: .*s3:// only"):
        project.build(exports=["streaming_wds"])


def test_urls_and_braces(publish: Callable[..., Path], project: Project) -> None:
    folder = publish("urls")
    for split in ("train", "val"):
        urls = (folder / f"{split}.txt").read_text().split()
        assert urls == [
            str(project.destination / each.path) for each in project.latest().of_split(split)
        ]
        (braces,) = (folder / f"{split}.braces.txt").read_text().split()
        head, last = braces.removesuffix("}.tar").split("{000000..")
        names = [Path(f"{head}{number:06d}.tar") for number in range(int(last) + 1)]
        assert all(one.samefile(other) for one, other in zip(names, urls, strict=True))
