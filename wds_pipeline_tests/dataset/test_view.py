"""Brace-able names: every split from 000000 on, without gaps, leading to the present files."""

from __future__ import annotations

import os
import shutil

import pytest

from wds_pipeline.dataset import view
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.conftest import Project


@pytest.fixture
def built(project: Project) -> Project:
    project.add(0, 40)
    project.build(split={"train": 0.6, "val": 0.4})
    return project


def check(project: Project, manifest: Manifest) -> None:
    for split in manifest.splits:
        shards = manifest.of_split(split)
        for number, shard in enumerate(shards):
            name = project.destination / f"views/{manifest.version:08d}/{split}-{number:06d}.tar"
            assert os.path.samefile(name, project.destination / shard.path)
    folder = project.destination / f"views/{manifest.version:08d}"
    assert len(list(folder.iterdir())) == len(manifest.shards)


def test_every_shard_has_a_name(built: Project) -> None:
    manifest = built.latest()
    assert len(manifest.splits) == 2
    check(built, manifest)
    assert view.has_view(built.storage, manifest)
    assert not view.outdated(built.storage, manifest)
    found = view.patterns(built.storage, manifest)
    last = len(manifest.of_split("val")) - 1
    assert found["val"] == f"{built.destination}/views/00000001/val-{{000000..{last:06d}}}.tar"


def test_slots_with_gaps_are_numbered_without(project: Project) -> None:
    project.add(0, 12)
    project.build()
    gone = project.latest().shards[1]
    for key in project.published(project.latest().model_copy(update={"shards": [gone]})):
        for path in project.source.glob(f"{key}.*"):
            path.unlink()
    project.build()
    manifest = project.latest()
    assert 1 not in {shard.slot for shard in manifest.shards}
    check(project, manifest)
    check_old = project.destination / "views/00000001/train-000001.tar"
    assert check_old.exists()


def test_a_view_that_is_gone_comes_back_with_the_next_build(built: Project) -> None:
    shutil.rmtree(built.destination / "views")
    assert not view.has_view(built.storage, built.latest())
    assert built.build(split={"train": 0.6, "val": 0.4}).status == "unchanged"
    check(built, built.latest())


def test_names_that_lead_to_damage_are_mended_after_a_kill(built: Project) -> None:
    """As if a build had been killed between a repair and its new links."""
    manifest = built.latest()
    name, shard = view.view_names(manifest)[0]
    data = (built.destination / name).read_bytes()
    (built.destination / name).unlink()
    (built.destination / name).write_bytes(b"damaged")
    assert view.outdated(built.storage, manifest) == {shard.name}
    built.build(split={"train": 0.6, "val": 0.4})
    assert (built.destination / name).read_bytes() == data
    check(built, manifest)


def test_without_hard_links_a_version_is_published_all_the_same(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wds_pipeline.errors import DestinationError

    def link(self: LocalStorage, path: str, target: str) -> None:
        raise DestinationError("no hard links here")

    monkeypatch.setattr(LocalStorage, "link", link)
    project.add(0, 10)
    assert project.build().status == "published"
    assert project.published() == project.raw()
    assert project.build().status == "unchanged"
    project.add(10, 3)
    assert project.build().status == "published"
    assert project.published() == project.raw()
