"""One run's own choice of workers, instead of what the dataset's file says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from wds_pipeline.dataset.plan import ShardPlan
from wds_pipeline.defs import keys
from wds_pipeline.defs.job import batches
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.conftest import Edge, failure_of
from wds_pipeline_tests.test_compute import THREADS

ROOT = Path(__file__).parents[2]
NOWHERE = {"kind": "dask", "workers": None, "address": "tcp://127.0.0.1:1"}


@pytest.fixture
def stuck(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> Edge:
    """A dataset whose file names a cluster that nobody reaches."""
    edge.build()
    edge.project.add(30, 10)
    edge.project.options["compute"] = NOWHERE
    monkeypatch.setattr("wds_pipeline.compute.dask_cluster._CONNECT_SECONDS", 0.1)
    monkeypatch.setattr("wds_pipeline.defs.session._RETRIES", 0)
    return edge


def run(edge: Edge, job: str, config: dict[str, Any]) -> dg.ExecuteInProcessResult:
    found = edge.defs().resolve_job_def(job)
    return found.execute_in_process(run_config=config, instance=edge.instance, raise_on_error=False)


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("small_build", {}),
        ("small_build", {"repack": True}),
        ("small_repack", {"confirm": "repack"}),
        ("small_verify", {"level": "digest"}),
        ("small_repair", {}),
    ],
)
def test_a_jobs_option(stuck: Edge, job: str, options: dict[str, Any]) -> None:
    result = run(stuck, job, options)
    assert not result.success
    message = "compute.address: tcp://127.0.0.1:1: no Dask scheduler answered"
    assert message in failure_of(result)
    assert run(stuck, job, {**options, "compute": {"kind": "threads", "workers": 2}}).success


def test_the_resource_of_assets(stuck: Edge) -> None:
    defs = stuck.defs()

    def materialize(**more: Any) -> dg.ExecuteInProcessResult:
        return defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=stuck.instance,
            asset_selection=[keys.asset_key("small", keys.PUBLISHED_VERSION)],
            raise_on_error=False,
            **more,
        )

    assert not materialize().success
    config = {"resources": {"compute": {"config": {"kind": "threads"}}}}
    assert materialize(run_config=config).success
    assert stuck.project.published() == stuck.project.raw()


def test_a_choice_that_makes_no_sense(edge: Edge) -> None:
    edge.project.options["compute"] = {"kind": "threads"}
    result = run(edge, "small_build", {"compute": {"address": "tcp://127.0.0.1:1"}})
    assert not result.success
    errors = [
        event.event_specific_data.error  # type: ignore[union-attr]
        for event in result.all_events
        if event.is_failure and getattr(event.event_specific_data, "error", None)
    ]
    assert "found with `kind: threads`; write `kind: dask`" in str(errors)
    with pytest.raises(dg.DagsterInvalidConfigError, match=r"\(processes, threads, dask\)"):
        edge.defs().resolve_job_def("small_build").execute_in_process(
            run_config={"compute": {"kind": "spark"}}, instance=edge.instance
        )


OWN_LOCATION = """
import dagster as dg
from wds_pipeline.config_file import load_configs
from wds_pipeline.defs.location import build_defs
defs = build_defs(load_configs(), build_executor=dg.multiprocess_executor)
"""


@pytest.mark.parametrize("location", ["", OWN_LOCATION], ids=["ours", "a process a step"])
def test_by_the_command_line(project: Project, tmp_path: Path, location: str) -> None:
    """`dagster job execute -c`, with a file that names a cluster which is not there; also where each
    batch has a process of its own, as pods would."""
    project.add(0, 12)
    datasets, home = tmp_path / "datasets", tmp_path / "home"
    datasets.mkdir()
    home.mkdir()
    values = {**project.config().written, "compute": NOWHERE}
    (datasets / "small.yaml").write_text(yaml.safe_dump(values))
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    (tmp_path / "run.yaml").write_text("compute: {kind: threads}\n")
    (tmp_path / "location.py").write_text(location)
    where = ["-f", "location.py"] if location else ["-m", "wds_pipeline.definitions"]
    command = [sys.executable, "-m", "dagster", "job", "execute", *where]
    done = subprocess.run(
        [*command, "-j", "small_build", "-c", "run.yaml"],
        env={
            **os.environ,
            "DAGSTER_HOME": str(home),
            "WDS_PIPELINE_DATASETS": str(datasets),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert project.published() == project.raw()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        (made,) = instance.get_runs()
        events = [each.dagster_event for each in instance.all_logs(made.run_id)]
        processes = {each.pid for each in events if each and each.is_step_success}
    assert len(processes) == (5 if location else 1), "scan, plan, pack, verify, publish"


def test_batches_of_a_large_cluster() -> None:
    """Each is enough for all the workers, also where that is more than for one machine."""
    shards = [ShardPlan("train", slot, "0", 1, 1, {}) for slot in range(100_000)]
    assert {len(each) for each in batches(shards, 100)} == {1600, 800}
    assert max(len(each) for each in batches(shards, 2)) == 256


def test_where_nothing_is_chosen_the_file_decides(edge: Edge) -> None:
    edge.project.options["compute"] = THREADS.model_dump(exclude_unset=True)
    assert run(edge, "small_build", {}).success
