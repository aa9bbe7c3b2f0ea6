"""`on_failure`: who is told what of a run that failed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest

from wds_pipeline.defs import alerts
from wds_pipeline.defs.alerts import FailedRun
from wds_pipeline.defs.location import build_defs
from wds_pipeline.errors import ConfigError
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.conftest import Edge

TOLD: list[FailedRun] = []


def remember(run: FailedRun) -> None:
    TOLD.append(run)


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    TOLD.clear()


def sensor_of(defs: dg.Definitions) -> dg.SensorDefinition:
    (sensor,) = [each for each in defs.sensors or [] if each.name == alerts.NAME]
    assert isinstance(sensor, dg.SensorDefinition)
    return sensor


def evaluate(edge: Edge, defs: dg.Definitions, result: dg.ExecuteInProcessResult) -> object:
    (event,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.RUN_FAILURE]
    context = dg.build_run_status_sensor_context(
        sensor_name=alerts.NAME,
        dagster_event=event,
        dagster_instance=edge.instance,
        dagster_run=result.dagster_run,
    ).for_run_failure()
    return sensor_of(defs)(context)


def test_a_failed_build_is_told(edge: Edge) -> None:
    edge.project.options["on_failure"] = f"{__name__}:remember"
    edge.project.options["samples"] = {"max_quarantined": 0}
    edge.project.write("a/0003.png", b"no picture")
    result = edge.build(fails=True)
    evaluate(edge, edge.defs(), result)
    (told,) = TOLD
    assert (told.dataset, told.job, told.run_id) == ("small", "small_build", result.run_id)
    assert told.step == "publish"
    assert "quarantine" in told.message
    assert str(told).startswith(f"small: small_build failed in publish (run {result.run_id}):\n")


def test_a_failed_run_of_assets_is_told(edge: Edge) -> None:
    edge.project.options["on_failure"] = f"{__name__}:remember"
    edge.build()
    edge.instance.add_dynamic_partitions("small_shards", ["train-000999"])
    result = edge.materialize(["shards"], ["train-000999"], fails=True)
    evaluate(edge, edge.defs(), result)
    (told,) = TOLD
    assert told.dataset == "small"
    assert "train-000999" in told.message


def test_only_those_that_want_it(edge: Edge) -> None:
    """One dataset names its own callable, the other gets the code location's, a third has none."""
    others: list[FailedRun] = []
    own = edge.project.config(on_failure=f"{__name__}:remember", name="own")
    defs = build_defs([own, edge.project.config()], on_failure=others.append)
    edge.project.options["samples"] = {"max_quarantined": 0}
    edge.project.write("a/0003.png", b"no picture")
    result = edge.build(fails=True)
    evaluate(edge, defs, result)
    assert [each.dataset for each in others] == ["small"]
    evaluate(edge, build_defs([own]), result)
    assert not TOLD


def test_a_run_of_several_datasets_is_told_to_those_that_failed(edge: Edge) -> None:
    told: list[FailedRun] = []
    other = Project(edge.project.folder / "other")
    other.add(0, 3)
    (other.source / "a").rename(other.folder / "away")  # its source is empty now
    configs = [edge.project.config(), other.config(name="aaa")]
    defs = build_defs(configs, on_failure=told.append)
    nightly = dg.define_asset_job(
        "nightly", dg.AssetSelection.assets(["small", "source_files"], ["aaa", "source_files"])
    )
    whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[nightly]))
    result = whole.resolve_job_def("nightly").execute_in_process(
        instance=edge.instance, raise_on_error=False
    )
    assert not result.success
    evaluate(edge, defs, result)
    assert [(each.dataset, each.job, each.step) for each in told] == [
        ("aaa", "nightly", "aaa__source_files")
    ]


def test_a_callable_whose_module_breaks(project: Project, tmp_path: Path) -> None:
    (tmp_path / "broken_alerts.py").write_text("import os\nHOOK = os.environ['NO_SUCH_WEBHOOK']\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ConfigError, match="importing broken_alerts failed: KeyError"):
            build_defs([project.config(on_failure="broken_alerts:tell")])
    finally:
        sys.path.remove(str(tmp_path))


def test_no_sensor_when_nobody_wants_to_know(project: Project) -> None:
    assert not build_defs([project.config()]).sensors


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("no_such_package.alerts:tell", "No module named 'no_such_package'.*install the package"),
        ("my_alerts:tel", "nothing of that name in my_alerts.*did you mean 'tell'"),
        ("my_alerts:NUMBER", "found not a function in my_alerts; expected a function that takes"),
    ],
)
def test_a_callable_that_is_not_there(
    project: Project, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    module = ModuleType("my_alerts")
    vars(module).update(tell=remember, NUMBER=1)
    monkeypatch.setitem(sys.modules, "my_alerts", module)
    config = project.config(on_failure=path)
    config._file = Path("datasets/small.yaml")
    with pytest.raises(ConfigError, match=rf"(?s)small\.yaml: on_failure: {path}: .*{expected}"):
        build_defs([config])
