"""The asset checks: what the catalogue says of them after builds, and executed by themselves."""

import asyncio
from pathlib import Path

import dagster as dg
import pyarrow as pa
from dagster._core.loader import LoadingContextForTest

from wds_pipeline.dataset import version
from wds_pipeline.dataset.accounts import recount
from wds_pipeline.defs import checks, keys
from wds_pipeline.defs.check_results import (
    DUPLICATES,
    FRESH,
    NO_KEY_LOST,
    NO_LEAK,
    QUARANTINE_WITHIN_BUDGET,
    VERIFICATION_PASSED,
)
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.defs.check_status import (
    ALL,
    NONE_YET,
    PASSED,
    check_key,
    duplicate_of,
    execute,
    latest,
    leak,
    rows,
    statuses,
    values,
    versions,
)
from wds_pipeline_tests.defs.conftest import Edge, status_of


def test_definitions(edge: Edge) -> None:
    graph = edge.defs(verify={"on_leak": "error"}).resolve_asset_graph()
    found = {key.name: graph.get_check_spec(key) for key in graph.asset_check_keys}
    assert set(found) == set(ALL)
    blocking = {name for name, spec in found.items() if spec.blocking}
    assert blocking == {VERIFICATION_PASSED, NO_KEY_LOST, QUARANTINE_WITHIN_BUDGET, NO_LEAK}
    assert all(spec.description and "{" not in spec.description for spec in found.values())
    assert "small_build" in str(found[FRESH].description)
    graph = edge.defs().resolve_asset_graph()
    assert not graph.get_check_spec(check_key(NO_LEAK)).blocking


def test_before_the_first_build(edge: Edge) -> None:
    execute(edge, fails=True)
    assert statuses(edge) == {
        **dict.fromkeys((VERIFICATION_PASSED, NO_KEY_LOST, QUARANTINE_WITHIN_BUDGET), "failed"),
        **dict.fromkeys((NO_LEAK, DUPLICATES, FRESH), "warns"),
    }
    for name in ALL:
        said = latest(edge, name).description
        assert said == "small: no version is published; expected one. Run small_build"


def test_a_build_logs_all_checks(edge: Edge) -> None:
    assert statuses(edge) == NONE_YET
    result = edge.build()
    assert statuses(edge) == PASSED
    (record,) = edge.instance.fetch_materializations(
        keys.asset_key("small", keys.PUBLISHED_VERSION), limit=10
    ).records
    specs = {spec.name: spec for spec in checks.specs(edge.project.config())}
    for name in ALL:
        evaluation = latest(edge, name)
        target = evaluation.target_materialization_data
        assert target is not None
        assert (target.storage_id, target.run_id) == (record.storage_id, result.run_id)
        assert evaluation.blocking == specs[name].blocking
        assert values(evaluation)["version"] == 1
        assert values(evaluation)["checked"] == "version 1"
        assert "candidate" not in str(evaluation.description)
    assert rows(latest(edge, NO_KEY_LOST), "counted")[:2] == [
        {"samples": "in the source", "report": 30, "counted anew": 30},
        {"samples": "published", "report": 30, "counted anew": 30},
    ]
    assert "30 samples in = 30 published + 0 quarantined" in str(
        latest(edge, NO_KEY_LOST).description
    )


async def _of_the_latest(edge: Edge) -> dict[str, bool]:
    context = LoadingContextForTest(edge.instance)
    wanted = [check_key(name) for name in ALL]
    found = edge.instance.event_log_storage.get_latest_asset_check_execution_by_key(wanted)
    return {key.name: await found[key].targets_latest_materialization(context) for key in found}


def test_the_ui_takes_them_for_the_latest_versions(edge: Edge) -> None:
    for _ in range(2):
        edge.build()
        assert asyncio.run(_of_the_latest(edge)) == dict.fromkeys(ALL, True)
        edge.project.add(30, 3)


def test_each_version_has_its_own(edge: Edge) -> None:
    edge.build()
    edge.project.add(30, 5)
    duplicate_of(edge, "a/0001", "a")
    edge.build(split={"train": 1.0})
    assert statuses(edge) == PASSED | {DUPLICATES: "warns"}
    assert values(latest(edge, NO_KEY_LOST))["published"] == 36
    edge.project.write("a/again.png", png(77))
    edge.build(split={"train": 1.0})
    assert statuses(edge) == PASSED
    assert values(latest(edge, VERIFICATION_PASSED))["version"] == 3


def evaluated(result: dg.ExecuteInProcessResult) -> list[str]:
    """The checks that a run has logged."""
    return [
        event.asset_check_evaluation_data.check_name
        for event in result.all_events
        if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]


def test_nothing_changed_evaluates_only_freshness(edge: Edge) -> None:
    edge.build()
    assert evaluated(edge.build()) == [FRESH]


def test_a_version_of_another_program(edge: Edge) -> None:
    """`wds-pipeline build` logs nothing; the next run finds its version, and checks it."""
    edge.build()
    edge.project.add(30, 3)
    edge.project.build()
    assert values(latest(edge, VERIFICATION_PASSED))["version"] == 1
    edge.build()
    assert statuses(edge) == PASSED
    assert {values(latest(edge, name))["version"] for name in ALL} == {2}


def test_each_check_alone(edge: Edge) -> None:
    edge.project.build()
    for number, name in enumerate(ALL, 1):
        execute(edge, [name])
        assert list(statuses(edge).values()).count("passed") == number


def test_a_report_that_cannot_be_read(edge: Edge) -> None:
    edge.build()
    (edge.project.destination / version.folder(1) / version.REPORT_JSON).write_text("{")
    execute(edge, fails=True)
    assert statuses(edge) == {
        **dict.fromkeys((VERIFICATION_PASSED, NO_KEY_LOST, QUARANTINE_WITHIN_BUDGET), "failed"),
        **dict.fromkeys((NO_LEAK, DUPLICATES), "warns"),
        FRESH: "passed",
    }
    assert "report.json: not readable" in str(latest(edge, NO_LEAK).description)


def test_a_table_that_cannot_be_read(edge: Edge) -> None:
    edge.build()
    path = edge.project.destination / version.folder(1) / version.LEDGER
    path.write_bytes(path.read_bytes()[:-8])
    execute(edge, [NO_KEY_LOST], fails=True)
    assert "ledger.parquet: damaged" in str(latest(edge, NO_KEY_LOST).description)


def test_a_shard_that_is_gone(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[2]
    (edge.project.destination / shard.path).unlink()
    execute(edge, fails=True)
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}
    assert rows(latest(edge, VERIFICATION_PASSED), "findings")[0]["shard"] == shard.name
    edge.build()
    assert versions(edge) == [1]
    assert statuses(edge) == PASSED


def test_a_budget_that_was_lowered(edge: Edge) -> None:
    edge.project.write("a/0003.png", b"no picture")
    edge.build()
    assert statuses(edge) == PASSED
    execute(edge, samples={"max_quarantined": 0.01}, fails=True)
    assert statuses(edge) == PASSED | {QUARANTINE_WITHIN_BUDGET: "failed"}
    assert "Nothing was published" not in str(latest(edge, QUARANTINE_WITHIN_BUDGET).description)


def test_a_source_that_is_gone(edge: Edge) -> None:
    edge.build()
    edge.project.source.rename(edge.project.folder / "elsewhere")
    execute(edge)
    assert statuses(edge) == PASSED | {FRESH: "warns"}
    assert "found nothing; expected a folder" in str(latest(edge, FRESH).description)


def test_materialized_with_its_checks(edge: Edge) -> None:
    result = edge.materialize([keys.PUBLISHED_VERSION])
    assert versions(edge) == [1]
    assert statuses(edge) == PASSED
    assert status_of(result) == {
        "small__published_version": "done",
        "small_version_checks": "done",
        "small_freshness_check": "done",
    }
    assert evaluated(edge.build()) == [FRESH]


def test_several_datasets(edge: Edge, tmp_path: Path) -> None:
    other = Project(tmp_path / "other", {"name": "other"})
    other.add(0, 12)
    leak(edge)
    defs = build_defs([edge.project.config(), other.config()])
    assert defs.resolve_job_def("other_build").execute_in_process(instance=edge.instance).success
    assert statuses(edge) == NONE_YET
    assert statuses(edge, "other") == PASSED
    assert defs.resolve_job_def("small_build").execute_in_process(instance=edge.instance).success
    assert statuses(edge) == PASSED | {NO_LEAK: "warns"}
    assert statuses(edge, "other") == PASSED


def test_in_the_storage_of_make_ui(edge: Edge, sqlite: dg.DagsterInstance) -> None:
    edge.instance = sqlite
    edge.build()
    assert statuses(edge) == PASSED
    edge.project.write("a/0003.png", b"no picture")
    edge.build(samples={"max_quarantined": 0.0}, fails=True)
    assert statuses(edge) == PASSED | {QUARANTINE_WITHIN_BUDGET: "failed"}


def test_metadata_is_bounded(edge: Edge) -> None:
    """Of many findings and groups a part is listed, and an event stays small."""
    for number in range(120):
        for copy in ("x", "y"):
            edge.project.write(f"{copy}/{number:04d}.png", png(1000 + number))
            edge.project.write(f"{copy}/{number:04d}.txt", "caption " * 200)
    edge.project.options["split"] = {"train": 1.0}
    edge.build()
    evaluation = latest(edge, DUPLICATES)
    facts = values(evaluation)
    assert facts["groups"] > 100
    assert "at least" in str(evaluation.description)
    shown = next(name for name in facts if name.startswith("examples"))
    assert len(rows(evaluation, shown)) == 20
    assert len(dg.serialize_value(evaluation)) < 60_000


def test_a_thousandfold_table_is_counted_by_column() -> None:
    """Only what is shown becomes Python objects: a million keys would take minutes otherwise."""
    count = 200_000
    names = pa.array([f"a/{number:07d}" for number in range(count)], pa.large_string())
    inventory = pa.table({"key": names, "status": pa.array(["ok"] * count).dictionary_encode()})
    ledger = pa.table({"key": names, "split": pa.array(["train"] * count).dictionary_encode()})
    quarantine = pa.table({"key": pa.array([], pa.large_string())})
    found = recount(inventory, ledger, quarantine, {"train": count})
    assert (found.samples_in, found.published, found.problems) == (count, count, [])
