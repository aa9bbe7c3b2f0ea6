"""The source's sensor under Dagster's own daemon code, which dies at any point of a tick."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.scheduler.instigation import InstigatorTick
from dagster._core.test_utils import create_test_daemon_workspace_context, freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceLoadTarget
from dagster._daemon.sensor import execute_sensor_iteration

from wds_pipeline.defs import keys
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.sensor_world import INTERVAL, SENSOR, Status, World, make_world

POINTS = ["TICK_CREATED", "TICK_HELD", "RUN_IDS_RESERVED", "RUN_CREATED", "RUN_LAUNCHED"]
_CODE = """
import dagster as dg
from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.source_sensor import build_source_sensor

config = DatasetConfig.model_validate_json({config!r})
job = build_job(config)
defs = dg.Definitions(jobs=[job], sensors=[build_source_sensor(config, job)])
"""


class InThisProcess(WorkspaceLoadTarget):
    """The code location of one file, loaded here: the clock of the test is the sensor's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create_origins(self) -> Sequence[InProcessCodeLocationOrigin]:
        target = LoadableTargetOrigin(executable_path=sys.executable, python_file=str(self.path))
        return [InProcessCodeLocationOrigin(target, location_name="here")]


@dataclass
class Daemon:
    """The sensor daemon's loop, a tick at a time. No other daemon takes runs from the queue."""

    world: World
    workspace: WorkspaceProcessContext
    instance: dg.DagsterInstance = field(init=False)

    def __post_init__(self) -> None:
        self.instance = self.world.instance

    def tick(self, dies_at: str | None = None, *, after: float = INTERVAL) -> None:
        self.world.now += after
        flags = {SENSOR: {dies_at: signal.SIGINT}} if dies_at else None
        with freeze_time(self.world.now):
            loop = execute_sensor_iteration(
                self.workspace, getLogger("test"), None, None, debug_crash_flags=flags
            )
            if dies_at is None:
                assert [each for each in loop if each is not None] == []
            else:
                with pytest.raises(KeyboardInterrupt):  # as if it had died: nothing is tidied up
                    list(loop)

    def last(self) -> InstigatorTick:
        (state,) = self.instance.all_instigator_state()
        return self.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)[0]

    def runs(self) -> list[dg.DagsterRun]:
        return [*self.instance.get_runs()]


@pytest.fixture
def daemon(project: Project, tmp_path: Path) -> Iterator[Daemon]:
    settings = {"telemetry": {"enabled": False}}
    with ExitStack() as stack:
        world = stack.enter_context(make_world(project, interval_seconds=INTERVAL))
        home = str(tmp_path / "home")
        (tmp_path / "home").mkdir()
        world.instance = stack.enter_context(
            dg.DagsterInstance.local_temp(home, overrides=settings)
        )
        code = tmp_path / "code_location.py"
        config = project.config(sensor={"interval_seconds": INTERVAL})
        code.write_text(_CODE.format(config=config.model_dump_json(exclude_unset=True)))
        target = InThisProcess(code)
        workspace = stack.enter_context(
            create_test_daemon_workspace_context(target, world.instance)
        )
        yield Daemon(world, workspace)


def test_a_change_is_built_and_the_ticks_say_so(daemon: Daemon) -> None:
    daemon.tick()
    assert "no version is published yet" in str(daemon.last().tick_data.skip_reason)
    daemon.tick()
    (run,) = daemon.runs()
    assert daemon.last().run_ids == [run.run_id]
    assert run.job_name == "small_build"
    assert run.tags[keys.DATASET_TAG] == "small"
    assert run.tags["dagster/sensor_name"] == SENSOR
    daemon.tick()
    assert f"run {run.run_id} (small_build) is queued" in str(daemon.last().tick_data.skip_reason)
    daemon.world.succeed(run.run_id)
    daemon.tick()
    assert "nothing changed since version 1 (12 files)" in str(daemon.last().tick_data.skip_reason)


@pytest.mark.parametrize(
    ("point", "away"),
    [
        *((point, INTERVAL) for point in POINTS),
        # After a day, Dagster does not resume a tick.
        *((point, 100_000) for point in ("RUN_IDS_RESERVED", "RUN_CREATED", "RUN_LAUNCHED")),
    ],
)
def test_wherever_it_dies_one_run_comes_of_a_change(
    daemon: Daemon, point: str, away: float
) -> None:
    daemon.tick()
    daemon.tick(dies_at=point)
    for _ in range(3):
        daemon.tick(after=away)
    (run,) = daemon.runs()
    assert run.status == Status.QUEUED, "submitted, and once"
    daemon.world.succeed(run.run_id)
    daemon.tick()
    assert "nothing changed since version 1" in str(daemon.last().tick_data.skip_reason)
    assert len(daemon.runs()) == 1


def test_a_tick_that_fails_shows_the_message_first_and_keeps_the_cursor(daemon: Daemon) -> None:
    daemon.tick()
    (state,) = daemon.instance.all_instigator_state()
    before = state.instigator_data.cursor  # type: ignore[union-attr]
    assert before
    daemon.world.project.source.rename(daemon.world.project.folder / "away")
    daemon.world.now += INTERVAL
    with freeze_time(daemon.world.now):
        list(execute_sensor_iteration(daemon.workspace, getLogger("test"), None, None))
    error = daemon.last().tick_data.error
    assert error
    assert error.message.startswith(
        "wds_pipeline.defs.source_sensor.SourceTickError: small: source"
    )
    assert error.cause is None
    (state,) = daemon.instance.all_instigator_state()
    assert state.instigator_data.cursor == before  # type: ignore[union-attr]
