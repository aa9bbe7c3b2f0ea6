"""One run of a dataset at a time: all that starts one is in the dataset's pool."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.execution.api import create_execution_plan
from dagster._core.op_concurrency_limits_counter import (
    compute_run_op_concurrency_info_for_snapshot,
)
from dagster._core.snap import snapshot_from_execution_plan

from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project


def pools(job: dg.JobDefinition, config: dict[str, str] | None = None) -> set[str]:
    plan = create_execution_plan(job, run_config=config or {})
    snapshot = snapshot_from_execution_plan(plan, "an id")
    found = compute_run_op_concurrency_info_for_snapshot(snapshot)
    assert found is not None
    return set(found.all_pools or ())


@pytest.mark.parametrize("name", ["build", "verify", "repair", "gc", "repack"])
def test_jobs(project: Project, name: str) -> None:
    defs = build_defs([project.config(), project.config(name="other")])
    for dataset in ("small", "other"):
        job = defs.resolve_job_def(f"{dataset}_{name}")
        config = {"confirm": "repack"} if name == "repack" else None
        assert pools(job, config) == {keys.pool(dataset)}
        assert job.tags[keys.DATASET_TAG] == dataset


def test_assets(project: Project) -> None:
    defs = build_defs([project.config()])
    assert pools(defs.resolve_implicit_global_asset_job_def()) == {keys.pool("small")}
