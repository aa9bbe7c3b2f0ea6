"""What may pass is tried again; what cannot is not."""

from __future__ import annotations

import errno

import dagster as dg
import pytest

from wds_pipeline.dataset import publish
from wds_pipeline.dataset.build import Build
from wds_pipeline.defs import session
from wds_pipeline.errors import DestinationError, WorkerError, may_pass
from wds_pipeline_tests.defs.conftest import Edge, failure_of


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_FIRST_WAIT", 0.001)


def fail(monkeypatch: pytest.MonkeyPatch, times: int, number: int) -> list[int]:
    """The commit fails so often, as a network filesystem that is away fails it."""
    calls: list[int] = []
    commit = publish.commit

    def flaky(*args: object) -> bool:
        calls.append(1)
        if len(calls) <= times:
            raise DestinationError("small: the disk is away") from OSError(number, "away")
        return commit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(publish, "commit", flaky)
    return calls


def retries(result: dg.ExecuteInProcessResult) -> int:
    return sum(e.event_type == dg.DagsterEventType.STEP_RESTARTED for e in result.all_events)


def test_storage_that_comes_back(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, 2, errno.EIO)
    result = edge.build()
    assert retries(result) == 2
    assert edge.project.latest().version == 1


def test_storage_that_stays_away(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, 99, errno.ESTALE)
    result = edge.build(fails=True)
    assert retries(result) == 3
    assert failure_of(result) == "small: the disk is away"


def test_what_does_not_pass(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fail(monkeypatch, 99, errno.EACCES)
    result = edge.build(fails=True)
    assert (len(calls), retries(result)) == (1, 0)


def test_a_bug_is_not_tried_again(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(Build, "scan", broken)
    assert retries(edge.build(fails=True)) == 0
    assert len(calls) == 1


def test_a_worker_that_died(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, calls = Build.pack, []

    def dies_once(self: Build, *args: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise WorkerError("a worker process died")
        return pack(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Build, "pack", dies_once)
    assert retries(edge.build()) == 1


def test_what_a_worker_says_of_its_error_survives_the_way_home() -> None:
    import pickle

    error = DestinationError("full")
    assert not may_pass(error)
    error.passing = True
    assert may_pass(pickle.loads(pickle.dumps(error)))
