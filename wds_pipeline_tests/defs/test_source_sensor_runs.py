"""The source's sensor after a run: what is tried again, and what is waited for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime

import pytest

from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.version import Manifest
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.sensor_world import INTERVAL, Status, World, delete, make_world


@pytest.fixture
def built(project: Project) -> Iterator[World]:
    """The first version is published, by the sensor."""
    with make_world(project) as world:
        world.build_settled()
        world.quiet(1)
        yield world


def test_a_failed_run_is_tried_again_ever_later(built: World) -> None:
    built.project.add(4, 1)
    run_id = built.launch_settled()
    keys_seen = set()
    for attempt, wait in enumerate((300, 600, 1200), 1):
        built.fail(run_id)
        failed_at, failed = built.now, run_id
        while not (again := built.tick(after=30)):
            assert f"run {failed} failed (+3 files since version 1 (now 15))" in built.text
            assert f"tried again ({attempt} of 3) at 2027-" in built.text
        assert built.now - failed_at == wait
        run_id = again
        run = built.instance.get_run_by_id(run_id)
        assert run
        keys_seen.add(run.tags["dagster/run_key"])
        assert run.tags["dagster/run_key"].endswith(f"-after-{failed}")
    built.fail(run_id)
    text = built.quiet(after=100_000)
    assert f"run {run_id} failed" in text
    assert "tried again 3 of 3 times (sensor.retries), the next change is waited for" in text
    assert len(keys_seen) == 3
    built.project.add(5, 1)
    built.build_settled()
    assert "nothing changed since version 2" in built.quiet()


def test_a_failed_run_is_tried_at_once_when_the_source_changes(built: World) -> None:
    built.project.add(4, 1)
    built.fail(built.launch_settled())
    built.project.add(5, 1)
    start = built.now
    assert built.launch_settled()
    assert built.now - start == 2 * INTERVAL


def test_no_retries(project: Project) -> None:
    with make_world(project, retries=0) as world:
        world.fail(world.launch_settled())
        assert "tried again 0 of 0 times" in world.quiet(after=10_000)


def test_a_cancelled_run_is_not_started_again(built: World) -> None:
    built.project.add(4, 1)
    run_id = built.launch_settled()
    built.set(run_id, Status.CANCELED)
    text = built.quiet(after=10_000)
    assert f"run {run_id} was cancelled (+3 files" in text
    assert "the next change is waited for" in text
    built.project.add(5, 1)
    built.build_settled()


def test_dagsters_own_retry_is_left_to_it(built: World) -> None:
    built.project.add(4, 1)
    run_id = built.launch_settled()
    built.instance.add_run_tags(run_id, {"dagster/will_retry": "true"})
    built.fail(run_id)
    assert "Dagster tries it again" in built.quiet(after=100)
    run = built.instance.get_run_by_id(run_id)
    assert run
    tags = {key: value for key, value in run.tags.items() if key != "dagster/will_retry"}
    retry = built.create(Status.STARTED, tags, parent=run_id)
    built.instance.add_run_tags(run_id, {"dagster/auto_retry_run_id": retry})
    assert retry in built.quiet(after=100)
    built.fail(retry)
    assert f"run {retry} failed" in built.quiet(1)
    assert "(1 of 3)" in built.text, "Dagster's retries are not counted as the sensor's"
    assert built.tick(after=300)


def test_a_retry_that_never_comes_is_not_waited_for(built: World) -> None:
    built.project.add(4, 1)
    run_id = built.launch_settled()
    built.instance.add_run_tags(run_id, {"dagster/will_retry": "true"})
    built.fail(run_id)
    assert built.tick(after=601)


def test_a_source_that_was_another_while_it_was_scanned(built: World) -> None:
    """The run scanned a file that was then taken back: the version is not of the source as it is."""
    (path,) = [built.project.write("a/0004.txt", "without a picture")]
    run_id = built.launch_settled()
    built.project.add(5, 1)
    built.succeed(run_id)
    delete(built.project, "a/0005.*")
    assert path.exists()
    built.build_settled()
    assert "nothing changed since version 3" in built.quiet()


def test_a_run_whose_scan_never_agrees_is_not_repeated(built: World) -> None:
    """As on another machine, where the same files have other times."""
    built.project.add(4, 1)
    built.succeed(built.launch_settled(), build=False)
    assert "found nothing to publish; the next change is waited for" in built.quiet(after=10_000)
    built.project.add(5, 1)
    assert built.launch_settled()


def test_files_that_could_not_be_read_are_tried_again_by_the_policy(
    built: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Build.newest

    def lacking(self: Build) -> Manifest | None:
        found = newest(self)
        return found and found.model_copy(update={"quarantined": {"unreadable": 2}})

    monkeypatch.setattr(Build, "newest", lacking)
    last = datetime.fromisoformat(built.project.latest().created).timestamp()
    waits = []
    for _ in range(3):
        while not (run_id := built.tick(after=30)):
            assert "version 1 lacks 2 samples (unreadable), which may be readable" in built.text
        waits.append(built.now - last)
        last = built.now
        built.succeed(run_id, build=False)
    assert waits == [300, 600, 1200]
    assert "tried again 3 of 3 times" in built.quiet(after=10_000)


# --- fingerprints of contents --------------------------------------------------------------------


def test_contents_are_compared_by_the_build(project: Project) -> None:
    project.options["source"] = {"fingerprint": "content"}
    with make_world(project) as world:
        world.project.build()
        world.build_settled()  # the sensor cannot know that this was published
        assert "nothing changed since version 1 (12 files)" in world.quiet()
        os.utime(world.project.source / "a/0001.txt", (5, 5))
        world.build_settled()
        assert "nothing changed since version 1" in world.quiet()
        world.project.add(4, 1)
        world.build_settled()
        assert "nothing changed since version 2" in world.quiet()
        assert len(world.launched) == 3


def test_by_contents_a_version_that_others_published_is_compared(project: Project) -> None:
    project.options["source"] = {"fingerprint": "content"}
    with make_world(project) as world:
        world.build_settled()
        world.quiet(2)
        world.project.add(4, 1)
        world.project.build()
        delete(world.project, "a/0004.*")
        world.build_settled()
        assert world.project.latest().version == 3
        assert "nothing changed since version 3" in world.quiet()
