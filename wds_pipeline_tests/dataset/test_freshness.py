"""How long changes of the source have been waiting: what counts as one, and since when."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.dataset import freshness, publish
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.freshness import Freshness
from wds_pipeline_tests.conftest import Project, png

CREATED = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def published(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A version of May 2024; its files are from a day before."""
    project.add(0, 10)
    project.write("b/0000.png", png(99))
    project.write("b/0000.txt", "alone in its folder")
    project.write("README", "no sample's file")
    for path in project.source.rglob("*"):
        written(path, CREATED - timedelta(days=1))
    stamp = {**publish.stamp(), "created": CREATED.isoformat()}
    with monkeypatch.context() as patch:
        patch.setattr(publish, "stamp", lambda: stamp)
        project.build()
    return project


def written(path: Path, when: datetime) -> None:
    """Sets a file's time of modification."""
    os.utime(path, (when.timestamp(), when.timestamp()))


def look(project: Project, now: datetime | None = None, **more: Any) -> Freshness:
    work = Build(project.config(**more))
    found = freshness.look(work, work.scan(), now)
    assert found is not None
    return found


def counts(found: Freshness) -> tuple[int, int, int]:
    return found.added, found.edited, found.deleted


def just_now(found: Freshness) -> bool:
    """Whether it has been waiting since this test; the version is years older."""
    return found.since is not None and timedelta() <= found.lag < timedelta(hours=1)


def test_no_version(project: Project) -> None:
    project.add(0, 3)
    work = Build(project.config())
    assert freshness.look(work, work.scan()) is None


def test_nothing_changed(published: Project) -> None:
    found = look(published)
    assert counts(found) == (0, 0, 0)
    assert (found.version, found.since, found.lag) == (1, None, timedelta())
    assert found.examples == {}


def test_the_oldest_change_counts(published: Project) -> None:
    for hours, number in ((5, 20), (30, 21), (2, 22)):
        for key in published.add(number, 1):
            for end in ("png", "txt", "json"):
                path = published.source / f"{key}.{end}"
                written(path, CREATED + timedelta(hours=hours))
    written(published.write("a/0003.txt", "edited"), CREATED + timedelta(hours=9))
    found = look(published, CREATED + timedelta(hours=40))
    assert counts(found) == (9, 1, 0)
    assert found.since == CREATED + timedelta(hours=2)
    assert found.lag == timedelta(hours=38)
    assert len(found.examples["added"]) == 5
    assert found.examples["edited"] == ["a/0003.txt"]


def test_an_edit_alone(published: Project) -> None:
    written(published.write("a/0003.txt", "edited"), CREATED + timedelta(hours=9))
    found = look(published, CREATED + timedelta(hours=10))
    assert counts(found) == (0, 1, 0)
    assert found.lag == timedelta(hours=1)


def test_a_time_to_come_is_now(published: Project) -> None:
    written(published.write("a/0003.txt", "edited"), CREATED + timedelta(days=9))
    assert look(published, CREATED + timedelta(days=1)).lag == timedelta()


def test_a_copy_with_its_old_time(published: Project) -> None:
    """It is older than the version, and came just now all the same."""
    path = published.write("a/0099.txt", "copied")
    written(path, CREATED - timedelta(days=300))
    found = look(published)
    assert counts(found) == (1, 0, 0)
    assert just_now(found)


def test_a_folder_that_was_moved_in(published: Project) -> None:
    """Neither the files nor their folder tell when; the folder above does."""
    elsewhere = published.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0001.txt").write_text("moved")
    shutil.move(elsewhere, published.source / "c")
    written(published.source / "c" / "0001.txt", CREATED - timedelta(days=300))
    found = look(published)
    assert found.examples == {"added": ["c/0001.txt"]}
    assert just_now(found)


@pytest.mark.parametrize("gone", ["a/0003.txt", "b"])
def test_deleted(published: Project, gone: str) -> None:
    path = published.source / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = look(published)
    assert counts(found) == (0, 0, 2 if gone == "b" else 1)
    assert found.examples["deleted"][0].startswith(gone)
    assert just_now(found)


def test_renamed(published: Project) -> None:
    (published.source / "a/0003.txt").rename(published.source / "a/0003b.txt")
    found = look(published)
    assert counts(found) == (1, 0, 1)
    assert just_now(found)


def test_files_that_are_no_samples_do_not_count(published: Project) -> None:
    published.write("README", "edited")
    published.write("LICENSE", "added")
    assert counts(look(published)) == (0, 0, 0)
    (published.source / "README").unlink()
    assert counts(look(published)) == (0, 0, 0)


def test_fields_that_are_not_selected_do_not_count(project: Project) -> None:
    fields: dict[str, Any] = {"samples": {"fields": {"png": ["png"], "txt": ["txt"]}}}
    project.add(0, 5)
    project.build(**fields)
    project.write("a/0003.json", '{"another": 1}')
    assert counts(look(project, **fields)) == (0, 0, 0)
    project.write("a/0003.txt", "another")
    assert counts(look(project, **fields)) == (0, 1, 0)


def test_a_change_that_a_build_found_to_be_none(published: Project) -> None:
    """The file is broken before and after, and its sample in the quarantine."""
    published.write("a/0003.png", b"no picture")
    published.build()
    assert counts(look(published)) == (0, 0, 0)


def test_published_changes_do_not_wait(published: Project) -> None:
    published.add(20, 3)
    assert counts(look(published)) == (9, 0, 0)
    published.build()
    assert counts(look(published)) == (0, 0, 0)


def test_content_fingerprints(project: Project) -> None:
    content: dict[str, Any] = {"source": {"url": str(project.source), "fingerprint": "content"}}
    project.add(0, 5)
    project.build(**content)
    written(project.source / "a/0003.txt", datetime.now(timezone.utc))
    assert counts(look(project, **content)) == (0, 0, 0)
    path = project.write("a/0003.txt", "CAPTION of a/0003")
    when = datetime.now(timezone.utc) + timedelta(hours=1)
    written(path, when)
    found = look(project, when + timedelta(hours=2), **content)
    assert counts(found) == (0, 1, 0)
    assert found.lag == timedelta(hours=2)


def test_other_fingerprints_are_no_edit(published: Project) -> None:
    content: dict[str, Any] = {"source": {"url": str(published.source), "fingerprint": "content"}}
    assert counts(look(published, **content)) == (0, 0, 0)
    published.write("a/0003.txt", "of another size")
    assert counts(look(published, **content)) == (0, 1, 0)
