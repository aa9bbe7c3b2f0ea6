"""Dagster's own launcher of runs, on the daemon's machine, and whether a run's process is still there.

Dagster's `DefaultRunLauncher` cannot tell: after a power failure, or a restart of the daemon's container,
a run counts as under way for ever, and its dataset waits. Whoever started the run's
process knows: the code server, which lives as long as its runs do.
"""

from __future__ import annotations

import json
import time

import grpc
from dagster import DagsterRun, deserialize_value
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

_TRIES = 3
_PAUSE = 2.0  # seconds
_SECONDS_TO_ANSWER = 30


class WatchedRunLauncher(DefaultRunLauncher):
    """`run_launcher` of dagster.yaml: run monitoring finds runs that died, and `run_retries` starts
    them again."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Asks the code server that started the run, several times if it does not answer."""
        where = run.tags.get(GRPC_INFO_TAG)
        if where is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "not started by a code server")
        for last in (False,) * (_TRIES - 1) + (True,):
            try:
                answer = DagsterGrpcClient(**json.loads(where)).can_cancel_execution(
                    CanCancelExecutionRequest(run_id=run.run_id), timeout=_SECONDS_TO_ANSWER
                )
            except DagsterUserCodeUnreachableError as error:
                if not _is_gone(error):  # it is slow
                    return CheckRunHealthResult(WorkerStatus.RUNNING, str(error))
                if not last:
                    time.sleep(_PAUSE)
                continue
            if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            return CheckRunHealthResult(WorkerStatus.FAILED, "the run's process is gone")
        return CheckRunHealthResult(
            WorkerStatus.FAILED, "the code server that started the run is gone, and the run with it"
        )


def _is_gone(error: DagsterUserCodeUnreachableError) -> bool:
    """Whether there is no server at the address."""
    cause = error.__cause__
    return isinstance(cause, grpc.Call) and cause.code() is grpc.StatusCode.UNAVAILABLE
