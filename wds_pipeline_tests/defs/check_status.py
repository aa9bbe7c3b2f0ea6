"""What the catalogue says of the asset checks, and sources for which they fail."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from wds_pipeline.dataset import version
from wds_pipeline.defs import checks, keys
from wds_pipeline.defs.check_results import (
    FRESH,
)
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.defs.conftest import Edge

ALL = (*checks.OF_VERSION, FRESH)
PASSED = dict.fromkeys(ALL, "passed")
NONE_YET = dict.fromkeys(ALL, "none")


def check_key(name: str, dataset: str = "small") -> dg.AssetCheckKey:
    return dg.AssetCheckKey(keys.asset_key(dataset, keys.PUBLISHED_VERSION), name)


def statuses(edge: Edge, dataset: str = "small") -> dict[str, str]:
    """What the UI shows of each check: by its latest execution."""
    wanted = [check_key(name, dataset) for name in ALL]
    found = edge.instance.event_log_storage.get_latest_asset_check_execution_by_key(wanted)
    return {
        key.name: _status(found[key].status.value, found[key].evaluation)
        if key in found
        else "none"
        for key in wanted
    }


def _status(status: str, evaluation: dg.AssetCheckEvaluation | None) -> str:
    words = {"SUCCEEDED": "passed", "FAILED": "failed", "PLANNED": "planned"}
    word = words[status]
    if word == "failed" and evaluation and evaluation.severity is dg.AssetCheckSeverity.WARN:
        return "warns"
    return word


def latest(edge: Edge, name: str) -> dg.AssetCheckEvaluation:
    """The latest evaluation of a check."""
    key = check_key(name)
    found = edge.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])
    evaluation = found[key].evaluation
    assert evaluation is not None
    return evaluation


def values(evaluation: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: entry.value for name, entry in evaluation.metadata.items()}


def rows(evaluation: dg.AssetCheckEvaluation, name: str) -> list[Any]:
    return [row.data for row in values(evaluation)[name].records]


def execute(
    edge: Edge, names: Sequence[str] = ALL, *, fails: bool = False, **more: Any
) -> dg.ExecuteInProcessResult:
    """Executes checks by themselves, as the UI does it."""
    selection = dg.AssetSelection.checks(*(check_key(name) for name in names))
    job = dg.define_asset_job("some_checks", selection)
    defs = dg.Definitions.merge(edge.defs(**more), dg.Definitions(jobs=[job]))
    result = defs.resolve_job_def("some_checks").execute_in_process(
        instance=edge.instance, raise_on_error=False
    )
    assert result.success != fails
    return result


def versions(edge: Edge) -> list[int]:
    return version.list_versions(edge.project.storage)


def leak(edge: Edge) -> None:
    """The same pictures in many samples: some of them are in both splits."""
    for number in range(10):
        edge.project.write(f"a/{number:04d}.png", png(0))


def duplicate_of(edge: Edge, key: str, split: str) -> None:
    """A sample's picture once more, in the same split."""
    edge.project.write(f"{split}/again.png", (edge.project.source / f"{key}.png").read_bytes())
    edge.project.write(f"{split}/again.txt", "again")
