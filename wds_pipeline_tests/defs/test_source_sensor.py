"""The source's sensor: what makes it launch a run, what does not, and what it says."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest

from wds_pipeline.config_automation import SensorConfig
from wds_pipeline.dataset import watch
from wds_pipeline.dataset.publish import restore
from wds_pipeline.defs import keys
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.source_sensor import Cursor, build_source_sensor
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.defs.sensor_world import INTERVAL, SENSOR, Status, World, delete, make_world


@pytest.fixture
def world(project: Project) -> Iterator[World]:
    with make_world(project) as made:
        yield made


@pytest.fixture
def built(world: World) -> World:
    """The first version is published, by the sensor."""
    world.build_settled()
    world.tick()
    assert "nothing changed since version 1 (12 files)" in world.text
    return world


# --- the definition ------------------------------------------------------------------------------


def test_a_dataset_without_the_section_has_none(project: Project) -> None:
    config = project.config()
    assert build_source_sensor(config, build_job(config)) is None


def test_the_definition(project: Project) -> None:
    config = project.config(sensor={"interval_seconds": 7})
    job = build_job(config)
    sensor = build_source_sensor(config, job)
    assert sensor is not None
    assert sensor.name == SENSOR == keys.source_sensor_name("small")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 7
    assert sensor.job_name == "small_build"
    assert sensor.tags == {keys.DATASET_TAG: "small"}
    dg.Definitions.validate_loadable(dg.Definitions(jobs=[job], sensors=[sensor]))


# --- changes -------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[Project], Any], str]] = {
    "added": (lambda p: p.add(4, 1), "+3 files since version 1 (now 15)"),
    "edited": (lambda p: p.write("a/0001.txt", "other"), "edited or renamed"),
    "edited, same size": (lambda p: p.write("a/0001.txt", "caption of A/0001"), "edited"),
    "deleted": (
        lambda p: delete(p, "a/0001.*"),
        "-3 files since version 1 (now 9)",
    ),
    "one deleted": (lambda p: (p.source / "a/0001.json").unlink(), "-1 file since"),
    "renamed": (
        lambda p: [path.rename(path.with_stem("0009")) for path in p.source.glob("a/0001.*")],
        "edited or renamed",
    ),
    "older time": (lambda p: os.utime(p.source / "a/0001.txt", (1, 1)), "edited or renamed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_built_once(built: World, change: str) -> None:
    act, why = CHANGES[change]
    act(built.project)
    assert built.tick() is None
    assert why in built.text
    assert "when it has been still for 30 s" in built.text
    run_id = built.tick()
    assert run_id
    assert why in built.text
    run = built.instance.get_run_by_id(run_id)
    assert run
    assert run.tags[keys.AFTER_VERSION_TAG] == "1"
    built.succeed(run_id)
    assert "nothing changed since version" in built.quiet()


def test_the_first_build(world: World) -> None:
    assert world.tick() is None
    assert world.text.startswith("small: no version is published yet, the source has 12 files; it")
    run_id = world.tick()
    assert run_id
    run = world.instance.get_run_by_id(run_id)
    assert run
    assert run.tags[keys.AFTER_VERSION_TAG] == "0"
    assert run.tags["dagster/run_key"] == f"{run.tags[keys.SOURCE_TAG]}-after-none"
    assert not world.project.destination.exists()


def test_what_others_built_is_not_built_again(world: World) -> None:
    world.project.build()
    assert world.quiet() == "small: nothing changed since version 1 (12 files)"


def test_what_is_no_part_of_any_sample_is_built_once(built: World) -> None:
    built.project.options["samples"] = {"fields": {"png": [], "txt": [], "json": []}}
    built.project.write("README.md", "read me")
    built.build_settled()
    assert "nothing changed since version 1 (13 files)" in built.quiet()
    assert len(built.launched) == 2


def test_there_and_back_and_there_again(built: World) -> None:
    """Each key is new, though the digests come back."""
    for _ in range(2):
        path = built.project.write("b.png", png(7))
        built.project.write("b.txt", "b")
        for each in (path, path.with_suffix(".txt")):
            os.utime(each, (5, 5))
        built.build_settled()
        for each in (path, path.with_suffix(".txt")):
            each.unlink()
        built.build_settled()
    assert len(built.launched) == len(set(built.launched)) == 5
    assert built.project.latest().version == 5


def test_a_change_taken_back_before_it_settled(built: World) -> None:
    path = built.project.write("b.txt", "b")
    assert built.tick() is None
    path.unlink()
    assert "nothing changed since version 1" in built.quiet()


def test_another_configuration_is_a_change(built: World) -> None:
    built.project.options["description"] = "Other words"
    assert "nothing changed" in built.quiet()
    built.project.options["shards"] = {"max_samples": 2}
    assert built.tick(), "the source itself has been still for long"
    assert "the configuration changed, since version 1" in built.text


def test_a_version_restored_by_hand_stays_until_the_next_change(built: World) -> None:
    built.project.add(4, 1)
    built.build_settled()
    restore(built.project.storage, 1, "small")
    assert "version 3 was restored by hand from version 1" in built.quiet()
    built.project.add(5, 1)
    built.build_settled()
    assert "nothing changed since version 4 (18 files)" in built.quiet()


# --- debounce ------------------------------------------------------------------------------------


def test_a_source_that_keeps_changing_is_waited_for(built: World) -> None:
    for number in range(10):
        built.project.write("a/0001.txt", f"edit {number}")
        assert built.tick() is None
    assert built.tick()


def test_no_pass_begins_before_the_source_can_have_settled(
    built: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = watch.look

    def counted(*args: Any, **more: Any) -> watch.Look:
        looks.append(built.now)
        return look(*args, **more)

    monkeypatch.setattr(watch, "look", counted)
    built.project.add(4, 1)
    start = built.now
    while not built.tick(after=10):
        assert "+3 files" in built.text or "the source changed" in built.text
        assert "when it has been still for 30 s" in built.text
    assert [when - start for when in looks] == [10, 40]


def test_it_need_not_settle(project: Project) -> None:
    with make_world(project, settle_seconds=0) as world:
        assert world.tick()


def test_a_clock_that_was_set_back(built: World) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    built.now -= 100_000
    assert built.tick() is None
    assert built.launch_settled()


# --- never two at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "status", [Status.QUEUED, Status.STARTING, Status.STARTED, Status.CANCELING]
)
def test_a_run_under_way_is_waited_for(built: World, status: dg.DagsterRunStatus) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    run_id = built.create(status)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(watch, "look")  # nor is the source looked at
        text = built.quiet()
    assert f"run {run_id} (small_build) is {status.value.lower()}" in text
    built.set(run_id, Status.FAILURE)
    assert built.tick()


def test_a_run_that_began_during_the_look(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    look = watch.look

    def slow_look(*args: Any, **more: Any) -> watch.Look:
        built.create(Status.QUEUED)
        return look(*args, **more)

    monkeypatch.setattr(watch, "look", slow_look)
    assert built.tick() is None
    assert "is queued" in built.text


@pytest.mark.parametrize(("dataset", "waits"), [("small", True), ("other", False)])
def test_a_partition_that_is_materialized_in_the_ui_is_waited_for(
    world: World, dataset: str, waits: bool
) -> None:
    """Such a run has no tags of ours."""
    run = dg.DagsterRun(
        job_name="__ASSET_JOB",
        run_id=str(uuid4()),
        status=Status.STARTED,
        asset_selection={keys.asset_key(dataset, keys.SHARDS)},
    )
    world.instance.add_run(run)
    if waits:
        assert f"run {run.run_id} (__ASSET_JOB) is started" in world.quiet()
    else:
        assert world.launch_settled()


def test_runs_of_other_datasets_do_not_count(world: World) -> None:
    world.create(Status.STARTED, {keys.DATASET_TAG: "other"})
    assert world.launch_settled()


def test_a_run_that_others_are_about_to_submit_is_waited_for(world: World) -> None:
    """It counts for ten minutes; after that, whoever created it has died."""
    created = world.create(Status.NOT_STARTED)
    assert f"run {created} (small_build) is not started" in world.quiet(2)
    world.now += 600
    assert world.launch_settled()


# --- the daemon dies -----------------------------------------------------------------------------


def test_a_crash_before_the_run_is_created(built: World) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    cursor = built.cursor
    built.now += INTERVAL
    lost = built.ask()
    built.cursor = cursor  # the daemon died: neither the run nor the cursor came to the storage
    again = built.ask()
    assert lost
    assert again
    assert lost.run_key == again.run_key
    assert built.launch(again)


@pytest.mark.parametrize("status", [Status.NOT_STARTED, Status.STARTED, Status.SUCCESS])
def test_a_crash_between_the_run_and_the_cursor(built: World, status: dg.DagsterRunStatus) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    cursor = built.cursor
    built.now += INTERVAL
    request = built.ask()
    assert request
    tags = {"dagster/run_key": str(request.run_key), "dagster/sensor_name": SENSOR}
    run_id = built.create(Status.NOT_STARTED, {**request.tags, **tags})
    if status != Status.NOT_STARTED:
        built.set(run_id, Status.STARTED)
    if status == Status.SUCCESS:
        built.succeed(run_id)
    built.cursor = cursor
    again = built.tick(after=0)
    if status == Status.NOT_STARTED:
        assert again == run_id, "the same run is submitted"
        built.succeed(run_id)
    else:
        assert again is None
        if status == Status.STARTED:
            assert run_id in built.text
            built.succeed(run_id)
    assert "nothing changed since version 2" in built.quiet()


GARBAGE = [
    *(
        "",
        "garbage",
        "null",
        "[]",
        "{}",
        '{"format_version": 2}',
        '{"format_version": 1, "since": []}',
    ),
    '{"format_version": 1, "under_way": {"files": -1}, "digest": "x"}',
    '{"format_version": 1, "settling": true, "since": 1e300}',
    '{"format_version": 1, "since": NaN}',
]


@pytest.mark.parametrize("cursor", GARBAGE)
def test_any_cursor_will_do(built: World, cursor: str) -> None:
    built.cursor = cursor
    built.project.add(4, 1)
    built.build_settled()
    built.cursor = cursor
    assert "nothing changed since version 2" in built.quiet()
    assert len(built.launched) == 2


def test_a_lost_cursor_costs_no_change(built: World) -> None:
    built.project.add(4, 1)
    assert built.tick() is None
    built.cursor = None
    built.build_settled()
    for _ in range(3):
        built.cursor = None
        assert "nothing changed since version 2" in built.quiet(1)


# --- many files ----------------------------------------------------------------------------------


def test_a_large_source_takes_several_ticks(built: World, monkeypatch: pytest.MonkeyPatch) -> None:
    look, clock = watch.look, itertools.count(step=1000)
    monkeypatch.setattr(
        watch,
        "look",
        lambda *args, **more: look(*args, **{**more, "clock": lambda: float(next(clock))}),
    )
    for folder in ("b", "c", "d"):
        built.project.add(0, 2, folder)
    texts = []
    while not built.tick():
        texts.append(built.text)
        assert len(built.cursor or "") < 1000
        assert len(texts) < 30
    assert any("12 files so far; the next tick goes on behind b/" in text for text in texts)
    assert any("looking at the source since 2027-" in text for text in texts)
    assert sum("it is looked at again" in text for text in texts) == 1


# --- what cannot be looked at --------------------------------------------------------------------


def test_a_source_that_is_gone_fails_the_tick_and_builds_nothing(built: World) -> None:
    away = built.project.source.with_name("away")
    built.project.source.rename(away)
    for _ in range(3):
        assert "small: source.url: " in built.error()
        assert "found nothing; expected a folder with raw files" in built.error()
    built.project.source.mkdir()  # the mount point of a disk that is not there
    assert "no file to take" in built.error()
    built.project.source.rmdir()
    away.rename(built.project.source)
    assert "nothing changed since version 1" in built.quiet()


def test_a_pass_under_way_survives_a_tick_that_fails(built: World) -> None:
    cursor = Cursor.parse(built.cursor).model_copy(update={"settling": True})
    built.cursor = cursor.model_dump_json()
    shutil.move(built.project.source, built.project.folder / "away")
    built.error()
    assert Cursor.parse(built.cursor) == cursor


def test_a_destination_that_is_another_s_fails_the_tick(world: World) -> None:
    world.project.destination.mkdir()
    (world.project.destination / "thesis.tex").write_text("x")
    assert "found a folder with other files" in world.error()


def test_a_list_that_is_gone_fails_the_tick(world: World) -> None:
    world.project.options["split"] = {"by": "list", "file": "splits.csv"}
    assert "splits.csv" in world.error()


def test_the_section_s_defaults_are_those_of_the_tests() -> None:
    found = SensorConfig()
    assert (found.interval_seconds, found.settle_seconds) == (INTERVAL, 30)
    assert (found.retries, found.retry_seconds) == (3, 300)
