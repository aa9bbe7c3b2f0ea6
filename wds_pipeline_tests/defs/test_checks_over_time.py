"""What time does to a version: the source goes on without it, and its bytes rot."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta, timezone
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import freshness, seal, settle, version
from wds_pipeline.dataset.audit import Audit, audit
from wds_pipeline.defs import checks
from wds_pipeline.defs.check_results import (
    FRESH,
    NO_LEAK,
    QUARANTINE_WITHIN_BUDGET,
    VERIFICATION_PASSED,
)
from wds_pipeline.defs.session import Session, session_resources
from wds_pipeline.errors import VerificationError
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.check_status import (
    PASSED,
    execute,
    latest,
    leak,
    rows,
    statuses,
    values,
    versions,
)
from wds_pipeline_tests.defs.conftest import Edge


def unseal(edge: Edge, names: Collection[str]) -> None:
    """Has the next build pack these shards anew."""
    for name in names:
        edge.project.storage.delete(seal.path(name, seal.SEAL))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes it so many hours later, for the check `fresh`."""

    look = freshness.look

    def later(hours: float) -> None:
        monkeypatch.setattr(
            freshness,
            "look",
            lambda work, listing: look(
                work, listing, datetime.now(timezone.utc) + timedelta(hours=hours)
            ),
        )

    return later


def test_fresh(edge: Edge, late: Callable[[float], None]) -> None:
    hours: dict[str, Any] = {"freshness": {"max_lag_hours": 2}}
    edge.build()
    late(1)
    edge.project.add(30, 1)
    execute(edge, [FRESH], **hours)
    assert statuses(edge)[FRESH] == "passed"
    assert values(latest(edge, FRESH))["added"] == 3
    late(3)
    execute(edge, [FRESH], **hours)
    assert statuses(edge)[FRESH] == "warns"
    evaluation = latest(edge, FRESH)
    assert "3 added files, such as a/0030.json" in str(evaluation.description)
    assert "Run small_build" in str(evaluation.description)
    assert values(evaluation)["lag_hours"] > 2.9
    assert rows(evaluation, "examples")[0] == {"change": "added", "file": "a/0030.json"}
    edge.build(**hours)
    assert statuses(edge) == PASSED


def test_builds_that_fail_for_long(edge: Edge, late: Callable[[float], None]) -> None:
    edge.project.options["samples"] = {"max_quarantined": 0.0}
    edge.build()
    edge.project.write("a/0003.png", b"no picture")
    late(30)
    edge.build(fails=True)
    assert statuses(edge) == PASSED | {QUARANTINE_WITHIN_BUDGET: "failed", FRESH: "warns"}


def run_op(edge: Edge, work: Callable[[dg.OpExecutionContext, Session], None]) -> None:
    """Runs this as the op of another job of the dataset."""
    config = edge.project.config()

    @dg.op(required_resource_keys={"session"})
    def look_after(context: dg.OpExecutionContext) -> None:
        work(context, context.resources.session)

    @dg.job(name="small_upkeep", resource_defs=session_resources(config))
    def job() -> None:
        look_after()

    assert job.execute_in_process(instance=edge.instance).success


def read_back(edge: Edge, *, level: str = "decode") -> Audit:
    """What a verify job does: reads the newest version back and logs what that says."""
    config = edge.project.config(verify={"level": level})
    storage, manifest = edge.project.storage, edge.project.latest()
    with open_pool(config.compute) as pool:
        found = audit(config, storage, manifest, settle.rules(config), pool)

    def log(context: dg.OpExecutionContext, session: Session) -> None:
        checks.log_audit(context, session, manifest, found.report, found.damaged)
        checks.log_fresh(context, session)

    run_op(edge, log)
    return found


def rot(edge: Edge, shard: version.ShardEntry) -> None:
    """Another byte, the same size."""
    path = edge.project.destination / shard.path
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def test_bit_rot_and_repair(edge: Edge) -> None:
    edge.build()
    read_back(edge)
    assert statuses(edge) == PASSED
    assert values(latest(edge, VERIFICATION_PASSED))["read_back"] is True

    shard = edge.project.latest().shards[1]
    rot(edge, shard)
    found = read_back(edge)
    assert set(found.damaged) == {shard.name}
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}
    evaluation = latest(edge, VERIFICATION_PASSED)
    assert evaluation.target_materialization_data is not None
    assert values(evaluation)["damaged"] == [shard.name]
    assert "small_repair packs damaged shards anew" in str(evaluation.description)

    edge.build()  # nothing changed, and nothing is mended
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}
    execute(edge, [VERIFICATION_PASSED], fails=True)  # the stored report knows nothing of it
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}

    unseal(edge, found.damaged)
    edge.build()
    assert versions(edge) == [1]
    assert statuses(edge) == PASSED
    read_back(edge)
    assert statuses(edge) == PASSED


def test_a_repair_by_another_program(edge: Edge) -> None:
    edge.build()
    rot(edge, edge.project.latest().shards[1])
    damaged = read_back(edge).damaged
    unseal(edge, damaged)
    edge.project.build()
    assert statuses(edge)[VERIFICATION_PASSED] == "failed"
    execute(edge, [VERIFICATION_PASSED])
    assert statuses(edge) == PASSED


def test_half_a_repair(edge: Edge) -> None:
    edge.build()
    first, second = edge.project.latest().shards[:2]
    rot(edge, first)
    rot(edge, second)
    assert len(read_back(edge).damaged) == 2
    unseal(edge, [first.name])
    edge.build()
    assert statuses(edge)[VERIFICATION_PASSED] == "failed"


def test_a_shallow_reading_says_nothing_of_leaks(edge: Edge) -> None:
    leak(edge)
    edge.build()
    read_back(edge, level="digest")
    assert statuses(edge) == PASSED | {NO_LEAK: "warns"}
    assert values(latest(edge, VERIFICATION_PASSED))["level"] == "digest"


def test_a_version_that_was_replaced_while_it_was_read(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.build()
    old = edge.project.latest()
    rot(edge, old.shards[0])
    edge.project.write("a/0000.txt", "another")
    edge.project.add(30, 5)
    edge.build()
    with monkeypatch.context() as patch:
        patch.setattr(Project, "latest", lambda _: old)
        assert read_back(edge).damaged
    assert statuses(edge) == PASSED


def test_a_job_that_repairs(edge: Edge) -> None:
    edge.build()
    manifest = edge.project.latest()
    rot(edge, manifest.shards[1])
    damaged = read_back(edge).damaged

    def repair(context: dg.OpExecutionContext, session: Session) -> None:
        unseal(edge, damaged)
        edge.project.build()
        checks.log_newest(context, session, manifest)

    run_op(edge, repair)
    assert statuses(edge) == PASSED


def test_tables_that_rot(edge: Edge) -> None:
    edge.build()
    path = edge.project.destination / version.folder(1) / version.LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(VerificationError) as error:
        read_back(edge)
    run_op(edge, lambda context, session: checks.log_unreadable(context, session, error.value))
    assert statuses(edge)[VERIFICATION_PASSED] == "failed"
    assert "ledger.parquet: damaged" in str(latest(edge, VERIFICATION_PASSED).description)
    path.write_bytes(whole)
    edge.build()
    assert statuses(edge) == PASSED


def test_evaluations_for_a_job_of_ones_own(edge: Edge) -> None:
    edge.build()
    config, manifest = edge.project.config(), edge.project.latest()
    with open_pool(config.compute) as pool:
        found = audit(config, edge.project.storage, manifest, settle.rules(config), pool)
    report, storage = found.report, edge.project.storage
    evaluations = list(checks.evaluate(config, storage, manifest, report, found.damaged))
    assert [each.check_name for each in evaluations] == list(checks.OF_VERSION)
    assert all(each.passed for each in evaluations)
    assert {each.target_materialization_data for each in evaluations} == {None}
    evaluations = list(
        checks.evaluate(config, storage, manifest, report, found.damaged, edge.instance)
    )
    assert None not in {each.target_materialization_data for each in evaluations}
