"""What the run storage says of the runs that a dataset's source sensor launched."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import dagster as dg

from wds_pipeline.defs import keys
from wds_pipeline.defs.run_datasets import datasets_of

_Status = dg.DagsterRunStatus
_FINISHED = [_Status.SUCCESS, _Status.FAILURE, _Status.CANCELED]
_UNDER_WAY = [
    status for status in _Status if status not in (*_FINISHED, _Status.NOT_STARTED, _Status.MANAGED)
]
_SENSOR_TAG = "dagster/sensor_name"
_WILL_RETRY_TAG = "dagster/will_retry"
_RETRIED_BY_TAG = "dagster/auto_retry_run_id"
_LOOKED_THROUGH = 1_000
# For so long a run that was created, or a retry that was announced, is expected to be submitted; the
# daemon does it within seconds. Later, it died before.
_SUBMITTED_WITHIN = 600.0


@dataclass(frozen=True)
class SensorRun:
    """A run of the sensor's, or Dagster's retry of one, that has ended; `ended` in seconds since 1970.

    `inputs` and `after_version` say what it was launched for: `keys.SOURCE_TAG` and
    `keys.AFTER_VERSION_TAG`.
    """

    id: str
    status: dg.DagsterRunStatus
    inputs: str
    after_version: str
    ended: float
    is_retry: bool
    awaits_retry: bool

    @property
    def outcome(self) -> str:
        """How it ended, for people."""
        return {
            _Status.SUCCESS: "succeeded",
            _Status.FAILURE: "failed",
            _Status.CANCELED: "was cancelled",
        }[self.status]


def under_way(instance: dg.DagsterInstance, dataset: str, now: float) -> str | None:
    """Says which run of the dataset is queued or in progress at this time, if one is.

    A run of the sensor's that was created but never submitted, because the daemon died in between, is
    none: asked for by the same run key again, Dagster submits it.
    """
    tags = {keys.DATASET_TAG: dataset}
    records = instance.get_run_records(dg.RunsFilter(tags=tags, statuses=_UNDER_WAY), limit=1)
    if not records:  # of assets: such runs have no tags of ours
        others = instance.get_run_records(dg.RunsFilter(statuses=_UNDER_WAY), limit=_LOOKED_THROUGH)
        records = [each for each in others if dataset in datasets_of(instance, each.dagster_run)]
    if not records:
        created = instance.get_run_records(
            dg.RunsFilter(
                tags=tags,
                statuses=[_Status.NOT_STARTED],
                created_after=datetime.fromtimestamp(now - _SUBMITTED_WITHIN, timezone.utc),
            )
        )
        records = [
            each
            for each in created
            if each.dagster_run.parent_run_id or _SENSOR_TAG not in each.dagster_run.tags
        ]
    for record in records:
        run = record.dagster_run
        state = run.status.value.lower().replace("_", " ")
        return f"run {run.run_id} ({run.job_name}) is {state}"
    return None


def finished(instance: dg.DagsterInstance, dataset: str, now: float, limit: int) -> list[SensorRun]:
    """The sensor's runs that have ended, newest first."""
    tags = {
        keys.DATASET_TAG: dataset,
        _SENSOR_TAG: keys.source_sensor_name(dataset),
    }
    records = instance.get_run_records(
        dg.RunsFilter(tags=tags, statuses=_FINISHED), limit=limit, ascending=False
    )
    return [_sensor_run(each, now) for each in records]


def _sensor_run(record: dg.RunRecord, now: float) -> SensorRun:
    run = record.dagster_run
    ended = record.end_time or record.update_timestamp.timestamp()
    announced = (
        run.status == _Status.FAILURE
        and run.tags.get(_WILL_RETRY_TAG) == "true"
        and _RETRIED_BY_TAG not in run.tags
    )
    return SensorRun(
        id=run.run_id,
        status=run.status,
        inputs=run.tags.get(keys.SOURCE_TAG, ""),
        after_version=run.tags.get(keys.AFTER_VERSION_TAG, ""),
        ended=ended,
        is_retry=run.parent_run_id is not None,
        awaits_retry=announced and now - ended < _SUBMITTED_WITHIN,
    )
