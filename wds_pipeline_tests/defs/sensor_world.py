"""A dataset, its source sensor, a clock that the test sets, and runs that end when the test says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.test_utils import freeze_time
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

from wds_pipeline.dataset import publish
from wds_pipeline.defs import keys, source_sensor
from wds_pipeline.defs.job import build_job
from wds_pipeline.defs.source_sensor import SourceTickError, build_source_sensor
from wds_pipeline_tests.conftest import Project

Status = dg.DagsterRunStatus
SENSOR = "small_source_sensor"
START = 1_800_000_000.0  # the clock at the beginning
INTERVAL = 60
_EVENTS = {
    Status.QUEUED: dg.DagsterEventType.RUN_ENQUEUED,
    Status.STARTING: dg.DagsterEventType.RUN_STARTING,
    Status.CANCELING: dg.DagsterEventType.RUN_CANCELING,
    Status.STARTED: dg.DagsterEventType.RUN_START,
    Status.SUCCESS: dg.DagsterEventType.RUN_SUCCESS,
    Status.FAILURE: dg.DagsterEventType.RUN_FAILURE,
    Status.CANCELED: dg.DagsterEventType.RUN_CANCELED,
}


# Dagster queues no run without; nobody looks where it leads.
_ORIGIN = RemoteJobOrigin(
    RemoteRepositoryOrigin(
        InProcessCodeLocationOrigin(LoadableTargetOrigin(python_file="x"), location_name="x"), "x"
    ),
    "small_build",
)


@dataclass
class World:
    """What the sensor sees, and what a daemon does with its answers."""

    project: Project
    instance: dg.DagsterInstance
    sensor_config: dict[str, Any] = field(default_factory=dict)
    now: float = START
    cursor: str | None = None
    text: str = ""
    launched: list[str] = field(default_factory=list)
    sensors: dict[str, dg.SensorDefinition] = field(default_factory=dict)

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.now, timezone.utc)

    def sensor(self) -> dg.SensorDefinition:
        options = repr((self.project.options, self.sensor_config))
        if options not in self.sensors:
            config = self.project.config(sensor=self.sensor_config)
            found = build_source_sensor(config, build_job(config))
            assert found is not None
            self.sensors[options] = found
        return self.sensors[options]

    def ask(self) -> dg.RunRequest | None:
        """Evaluates the sensor; its answer goes to `text` or is returned. The cursor is kept."""
        context = dg.build_sensor_context(self.instance, cursor=self.cursor)
        answer = self.sensor().evaluate_tick(context)
        self.cursor = answer.cursor
        self.text = answer.skip_message or ""
        requests = answer.run_requests or []
        assert len(requests) <= 1
        assert bool(requests) != bool(self.text), "a tick says why it launches nothing"
        if not requests:
            return None
        self.text = requests[0].tags[keys.WHY_TAG]
        return requests[0]

    def tick(self, *, after: float = INTERVAL) -> str | None:
        """A tick so many seconds after the last; returns the run that it launches."""
        self.now += after
        request = self.ask()
        return self.launch(request) if request else None

    def launch(self, request: dg.RunRequest) -> str | None:
        """Queues a run as the daemon does: none whose key there is, but what was never submitted."""
        assert request.run_key
        tags = {"dagster/run_key": request.run_key, "dagster/sensor_name": SENSOR}
        for run in self.instance.get_runs(dg.RunsFilter(tags=tags)):
            if run.status != Status.NOT_STARTED:
                return None
            self.launched.append(run.run_id)
            return self.set(run.run_id, Status.STARTED)
        run_id = self.create(Status.STARTED, {**request.tags, **tags})
        self.launched.append(run_id)
        return run_id

    def create(
        self,
        status: dg.DagsterRunStatus,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> str:
        """Puts a run of the dataset's into the storage."""
        run = dg.DagsterRun(
            job_name="small_build",
            run_id=str(uuid4()),
            status=Status.NOT_STARTED,
            tags={keys.DATASET_TAG: "small", **(tags or {})},
            parent_run_id=parent,
            root_run_id=parent,
            remote_job_origin=_ORIGIN if status == Status.QUEUED else None,
        )
        with freeze_time(self.now):
            self.instance.add_run(run)
        return run.run_id if status == Status.NOT_STARTED else self.set(run.run_id, status)

    def set(self, run_id: str, status: dg.DagsterRunStatus) -> str:
        """A run gets a status, now."""
        event = dg.DagsterEvent(_EVENTS[status].value, "small_build")
        self.instance.run_storage.handle_run_event(run_id, event, self.time)
        return run_id

    def fail(self, run_id: str) -> None:
        self.set(run_id, Status.FAILURE)

    def succeed(self, run_id: str, *, build: bool = True) -> None:
        """The run builds, and ends."""
        if build:
            self.project.build()
        self.set(run_id, Status.SUCCESS)

    def launch_settled(self) -> str:
        """Ticks until a change has settled; returns the run that it launches."""
        for _ in range(3):
            run_id = self.tick()
            if run_id:
                return run_id
        raise AssertionError(self.text)

    def build_settled(self) -> str:
        """Ticks until a change has settled, and builds it."""
        run_id = self.launch_settled()
        self.succeed(run_id)
        return run_id

    def quiet(self, ticks: int = 5, *, after: float = INTERVAL) -> str:
        """Nothing is launched in so many ticks; returns what the last one says."""
        for _ in range(ticks):
            assert self.tick(after=after) is None, self.text
        return self.text

    def error(self) -> str:
        """The message of a tick that fails; its cursor is that of before."""
        before = self.cursor
        self.now += INTERVAL
        with pytest.raises(SourceTickError) as caught:
            self.ask()
        assert self.cursor == before
        return str(caught.value)


def delete(project: Project, pattern: str) -> None:
    """Deletes raw files."""
    for path in project.source.glob(pattern):
        path.unlink()


@contextmanager
def make_world(project: Project, **sensor_config: Any) -> Iterator[World]:
    """Four samples, nothing built yet; the sensor's and the builds' clock is the world's."""
    project.add(0, 4)
    with dg.DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as patch:
        world = World(project, instance, sensor_config)
        patch.setattr(source_sensor, "_now", lambda: world.now)
        stamp = publish.stamp
        patch.setattr(publish, "stamp", lambda: {**stamp(), "created": world.time.isoformat()})
        yield world
