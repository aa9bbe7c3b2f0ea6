"""What a check refuses is not published: the failed evaluation is there, the last good version stays."""

from typing import Any

import pytest

from wds_pipeline.dataset import settle
from wds_pipeline.dataset.accounts import Accounts
from wds_pipeline.dataset.places import Places
from wds_pipeline.dataset.shard_report import Finding
from wds_pipeline.defs import check_results, keys
from wds_pipeline.defs.check_results import (
    DUPLICATES,
    FRESH,
    NO_KEY_LOST,
    NO_LEAK,
    QUARANTINE_WITHIN_BUDGET,
    VERIFICATION_PASSED,
)
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.defs.check_status import (
    ALL,
    PASSED,
    duplicate_of,
    execute,
    latest,
    leak,
    rows,
    statuses,
    values,
    versions,
)
from wds_pipeline_tests.defs.conftest import Edge, failure_of, status_of


def test_errors_in_verification(edge: Edge) -> None:
    """A file that changes behind the plan's back is found in the shard, and again in the next one."""
    edge.build()
    edge.project.add(30, 3)
    real = settle.load_reports

    def damaged(*arguments: Any) -> Any:
        found = real(*arguments)
        for report in found.values():
            if report is not None and report.name == victim:
                report.findings.append(Finding("error", "wrong_digest", victim, "", "", "rotten"))
        return found

    victim = edge.project.latest().shards[0].name
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "load_reports", damaged)
        patch.setattr("wds_pipeline.dataset.drafts._verified", lambda _, draft, __: (draft, True))
        result = edge.build(fails=True)
    assert "verification failed with 1 error:" in failure_of(result)
    assert "Nothing was published" in failure_of(result)
    assert versions(edge) == [1]
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}
    evaluation = latest(edge, VERIFICATION_PASSED)
    assert evaluation.target_materialization_data is None
    assert "the candidate for the version after 1" in str(evaluation.description)
    (row,) = rows(evaluation, "findings")
    assert (row["severity"], row["finding"], row["count"]) == ("error", "wrong_digest", 1)
    assert row["shard"] == victim
    edge.build()
    assert versions(edge) == [1, 2]
    assert statuses(edge) == PASSED


def test_a_shard_that_is_damaged_whenever_it_is_packed(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "wds_pipeline.dataset.shard_report.ShardReport.passed", property(lambda _: False)
    )
    monkeypatch.setattr(
        "wds_pipeline.dataset.shard_report.ShardReport.errors",
        property(lambda self: [Finding("error", "bad_disk", self.name, "", "", "rot")]),
        raising=False,
    )
    result = edge.build(fails=True)
    assert "is damaged again" in failure_of(result)
    assert versions(edge) == []
    assert statuses(edge)[VERIFICATION_PASSED] == "failed"
    assert "bad_disk: rot" in str(latest(edge, VERIFICATION_PASSED).description)


@pytest.mark.parametrize("found", ["by the plan", "by verification"])
def test_quarantine_over_budget(edge: Edge, found: str) -> None:
    edge.project.options["samples"] = {"max_quarantined": 0.05}
    edge.build()
    for number in range(3):
        if found == "by the plan":
            (edge.project.source / f"a/{number:04d}.txt").unlink()
        else:
            edge.project.write(f"a/{number:04d}.png", b"no picture")
    result = edge.build(fails=True)
    assert "3 of 30 samples (10.0%) are unusable" in failure_of(result)
    failed = "plan" if found == "by the plan" else "publish"
    assert status_of(result)[failed] == "failed"
    assert versions(edge) == [1]
    assert statuses(edge) == PASSED | {QUARANTINE_WITHIN_BUDGET: "failed"}
    evaluation = latest(edge, QUARANTINE_WITHIN_BUDGET)
    assert evaluation.blocking
    (row,) = rows(evaluation, "quarantine")
    assert row["samples"] == 3
    facts = values(evaluation)
    assert (facts["share"], facts["allowed"], facts["quarantined"]) == (0.1, 0.05, 3)
    assert "samples.max_quarantined allows 5.0%" in str(evaluation.description)
    assert "Nothing was published" in str(evaluation.description)

    for number in range(3):  # taken back: the good version is the newest again
        edge.project.write(f"a/{number:04d}.png", png(number))
        edge.project.write(f"a/{number:04d}.txt", f"caption of a/{number:04d}")
    edge.build()
    assert statuses(edge) == PASSED


def test_a_policy_of_error(edge: Edge) -> None:
    edge.project.options["samples"] = {"on_missing": "error"}
    (edge.project.source / "a/0003.txt").unlink()
    edge.build(fails=True)
    assert statuses(edge)[QUARANTINE_WITHIN_BUDGET] == "failed"
    assert "1 samples break a rule" in str(latest(edge, QUARANTINE_WITHIN_BUDGET).description)
    assert statuses(edge)[FRESH] == "warns"  # no version yet


def test_a_leak_that_is_an_error(edge: Edge) -> None:
    edge.project.options["verify"] = {"on_leak": "error"}
    edge.build()
    leak(edge)
    result = edge.build(fails=True)
    assert "leak" in failure_of(result)
    assert versions(edge) == [1]
    assert statuses(edge)[NO_LEAK] == "failed"
    assert statuses(edge)[VERIFICATION_PASSED] == "failed"
    evaluation = latest(edge, NO_LEAK)
    assert evaluation.blocking
    assert "the same png in a/00" in str(evaluation.description)
    (row,) = rows(evaluation, "examples")
    assert (row["samples"], row["field"]) == (10, "png")
    assert set(row["splits"].split(", ")) == {"train", "val"}
    assert "data:image/jpeg" in values(evaluation)["pictures"]


def test_a_leak_that_warns(edge: Edge) -> None:
    leak(edge)
    edge.build()
    assert statuses(edge) == PASSED | {NO_LEAK: "warns"}
    assert not latest(edge, NO_LEAK).blocking
    execute(edge)  # by what is stored, the same
    assert statuses(edge) == PASSED | {NO_LEAK: "warns"}
    assert values(latest(edge, NO_LEAK))["groups"] == 1


@pytest.mark.parametrize(("on_leak", "status"), [("warn", "passed"), ("error", "warns")])
def test_a_level_too_shallow_for_leaks(edge: Edge, on_leak: str, status: str) -> None:
    leak(edge)
    edge.build(verify={"level": "digest", "on_leak": on_leak})
    assert statuses(edge) == PASSED | {NO_LEAK: status}
    assert "not looked for at level digest" in str(latest(edge, NO_LEAK).description)


def test_a_lost_key(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    edge.build()
    edge.project.write("a/0003.png", b"no picture")
    whole = Places.quarantine
    monkeypatch.setattr(Places, "quarantine", lambda self: whole(self).slice(1))
    result = edge.build(fails=True)
    assert "30 samples went in; 29 published + 0 quarantined" in failure_of(result)
    assert versions(edge) == [1]
    assert statuses(edge)[NO_KEY_LOST] == "failed"
    said = str(latest(edge, NO_KEY_LOST).description)
    assert "1 samples are in the source, but neither published nor in the quarantine" in said
    assert "such as a/0003" in said


def test_a_lost_key_that_the_report_does_not_see(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second count refuses the candidate by itself."""
    accounts = Accounts(31, 30, 0, {}, ["1 samples are nowhere, such as a/0099"])
    monkeypatch.setattr(check_results, "recount", lambda *_: accounts)
    result = edge.build(fails=True)
    assert "1 samples are nowhere, such as a/0099" in failure_of(result)
    assert "Nothing was published" in failure_of(result)
    assert versions(edge) == []
    assert statuses(edge) == PASSED | {NO_KEY_LOST: "failed", FRESH: "warns"}


def test_duplicates(edge: Edge) -> None:
    edge.project.options["split"] = {"train": 1.0}
    duplicate_of(edge, "a/0001", "a")
    edge.build()
    assert statuses(edge) == PASSED | {DUPLICATES: "warns"}
    evaluation = latest(edge, DUPLICATES)
    facts = values(evaluation)
    assert (facts["groups"], facts["samples"], facts["bytes_wasted"]) == (1, 2, len(png(1)))
    (row,) = rows(evaluation, "examples")
    assert row["keys"] == "a/0001, a/again"
    assert "data:image/jpeg" in facts["pictures"]
    execute(edge)
    assert statuses(edge) == PASSED | {DUPLICATES: "warns"}
    assert values(latest(edge, DUPLICATES)) == facts


def test_findings_name_the_file(edge: Edge) -> None:
    edge.project.options["samples"] = {"on_invalid": "keep"}
    edge.project.write("a/0003.png", b"no picture")
    edge.build()
    evaluation = latest(edge, VERIFICATION_PASSED)
    assert evaluation.passed
    (row,) = rows(evaluation, "findings")
    assert (row["severity"], row["sample"], row["file"]) == ("warning", "a/0003", "a/0003.png")
    assert row["shard"].startswith(("train-", "val-"))


def test_what_fails_for_other_reasons_is_not_the_checks(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.build()
    edge.project.add(30, 3)
    with monkeypatch.context() as patch:
        patch.setattr("wds_pipeline.dataset.publish.commit", _fail)
        edge.build(fails=True)
    assert statuses(edge) == PASSED
    assert {values(latest(edge, name))["version"] for name in ALL} == {1}


def _fail(*_: object) -> None:
    raise RuntimeError("killed")


def test_an_asset_that_is_refused(edge: Edge) -> None:
    edge.project.options["samples"] = {"max_quarantined": 0.0}
    edge.build()
    edge.project.write("a/0003.png", b"no picture")
    result = edge.materialize([keys.PUBLISHED_VERSION], fails=True)
    assert "1 of 30 samples (3.3%) are unusable" in failure_of(result)
    assert versions(edge) == [1]
    assert statuses(edge)[QUARANTINE_WITHIN_BUDGET] == "failed"
    assert values(latest(edge, QUARANTINE_WITHIN_BUDGET))["quarantined"] == 1
