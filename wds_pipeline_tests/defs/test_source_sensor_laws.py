"""The source's sensor, whatever happens in whatever order: changes, ticks, runs that end well or not,
cursors and answers that are lost."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.version import Manifest
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.sensor_world import INTERVAL, Status, World, make_world

RETRIES = 2
SETTLE = 90  # more than one tick apart

steps = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.just("delete"), st.integers(0, 2)),
    st.tuples(st.just("tick"), st.sampled_from([5, INTERVAL, 400])),
    st.tuples(st.just("tick"), st.just(INTERVAL)),
    st.tuples(st.just("end"), st.sampled_from([Status.SUCCESS, Status.SUCCESS, Status.FAILURE])),
    st.tuples(st.just("end"), st.just(Status.CANCELED)),
    st.tuples(st.just("lose the cursor")),
    st.tuples(st.just("lose the answer")),
    st.tuples(st.just("build by hand")),
)


@dataclass
class Story:
    """A world whose builds only note what they were made of."""

    world: World
    version: int = 0
    made_of: str = ""
    created: str = ""
    running: str | None = None
    aims: list[tuple[str, int]] = field(default_factory=list)
    outcomes: dict[tuple[str, int], list[Any]] = field(default_factory=dict)

    def newest(self) -> Manifest | None:
        if not self.version:
            return None
        return Manifest.model_construct(
            version=self.version,
            inputs=self.made_of,
            quarantined={},
            files={},
            created=self.created,
            parent=self.version - 1,
            restored_from=None,
        )

    def inputs(self) -> str:
        build = Build(self.world.project.config())
        return build.inputs(build.scan())

    def publish(self) -> None:
        now = self.inputs()
        if now != self.made_of:
            self.version, self.made_of = self.version + 1, now
            self.created = self.world.time.isoformat()

    def path(self, number: int) -> Path:
        return self.world.project.source / f"{'abc'[number]}/{number}.txt"

    def write(self, number: int, content: int) -> None:
        path = self.path(number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{content}")
        os.utime(path, ns=(0, content))  # so that an edit can be taken back

    def delete(self, number: int) -> None:
        self.path(number).unlink(missing_ok=True)

    def tick(self, after: float) -> None:
        running = self.running
        run_id = self.world.tick(after=after)
        if run_id is None:
            return
        assert running is None, "never two at once"
        aim = (self.inputs(), self.version)
        assert aim[0] != self.made_of, "never what is published"
        before = self.outcomes.setdefault(aim, [])
        assert len(before) <= RETRIES or self.retried_since_another(aim)
        if before and not self.retried_since_another(aim):
            assert before[-1] == Status.FAILURE, "never again what succeeded or was cancelled"
        self.running = run_id
        self.aims.append(aim)

    def retried_since_another(self, aim: tuple[str, int]) -> bool:
        """Whether a run was launched for something else since the last one for this."""
        return bool(self.aims) and self.aims[-1] != aim

    def end(self, status: Any) -> None:
        if self.running is not None:
            if status == Status.SUCCESS:
                self.publish()
            self.world.set(self.running, status)
            self.outcomes[self.aims[-1]].append(status)
            self.running = None

    def do(self, step: tuple[Any, ...]) -> None:
        verb, *arguments = step
        if verb == "lose the cursor":
            self.world.cursor = None
        elif verb == "lose the answer":  # the daemon dies after the evaluation
            before, self.world.now = self.world.cursor, self.world.now + INTERVAL
            self.world.ask()
            self.world.cursor = before
        elif verb == "build by hand":
            self.publish()
        else:
            getattr(self, verb)(*arguments)


@settings(max_examples=40, deadline=None)
@given(script=st.lists(steps, max_size=40))
def test_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("story")
    (folder / "raw").mkdir()
    with (
        make_world(Project(folder), settle_seconds=SETTLE, retries=RETRIES) as world,
        pytest.MonkeyPatch.context() as patch,
    ):
        story = Story(world)
        patch.setattr(Build, "newest", lambda self: story.newest())
        for step in script:
            story.do(step)
        event(f"{len(story.aims)} runs")
        # A change that stays is built, once, whatever was before.
        story.end(Status.FAILURE)
        story.write(0, 99)
        launched = len(story.aims)
        for _ in range(8):
            story.tick(INTERVAL)
            story.end(Status.SUCCESS)
        assert story.made_of == story.inputs()
        assert len(story.aims) == launched + 1
        assert "nothing changed since version" in world.text
    shutil.rmtree(folder)


def test_the_story_launches_runs(project: Project) -> None:
    """The law is not held by doing nothing."""
    with make_world(project, settle_seconds=SETTLE, retries=RETRIES) as world:
        story = Story(world)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Build, "newest", lambda self: story.newest())
            for content in range(3):
                story.write(0, content)
                for _ in range(4):
                    story.tick(INTERVAL)
                story.end(Status.SUCCESS)
    assert len(story.aims) == 3
