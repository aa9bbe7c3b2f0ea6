"""`<name>_verify`: what is not as it was published fails the run, and is told."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.dataset import seal, version
from wds_pipeline.defs import job_verify, keys
from wds_pipeline.defs.check_results import VERIFICATION_PASSED
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline.defs.upkeep import build_upkeep_jobs
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.check_status import PASSED, statuses
from wds_pipeline_tests.defs.conftest import Edge, failure_of
from wds_pipeline_tests.defs.test_location import dagster, write
from wds_pipeline_tests.defs.test_sync import badges
from wds_pipeline_tests.defs.upkeep import beside, flip, observed, run, said, tar_of, values


@pytest.fixture
def built(edge: Edge) -> Edge:
    """The edge with a published version that is in the catalogue."""
    edge.build()
    return edge


@pytest.mark.parametrize("level", ["stat", "digest", "samples", "decode"])
def test_a_sound_version_passes(built: Edge, level: str) -> None:
    files, counts = built.project.shard_files(), built.counts()
    result = run(built, "verify", {"level": level})
    manifest = built.project.latest()
    (observation,) = observed(built, keys.PUBLISHED_VERSION)
    found = values(observation)
    assert found["passed"] and found["level"] == level
    assert found["version"] == 1
    assert found["shards"] == len(manifest.shards)
    assert found["samples"] == manifest.total_samples == 30
    assert found["bytes"] == manifest.total_bytes
    assert (found["errors"], found["damaged shards"]) == (0, 0)
    assert found["bytes read"] == (0 if level == "stat" else manifest.total_bytes)
    assert {"seconds", "bytes read per second"} <= found.keys()
    assert observed(built, keys.SHARDS) == []
    assert said(built, result)[-1].endswith(f": passed ({level})")
    assert built.project.shard_files() == files
    assert built.counts() == counts
    assert badges(built) == {}


def truncate(project: Project, path: Path) -> None:
    os.truncate(path, path.stat().st_size - 512)


def delete(project: Project, path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("ending", "harm", "level", "code"),
    [
        (seal.TAR, truncate, "stat", "wrong_size"),
        (seal.TAR, delete, "digest", "missing_tar"),
        (seal.MEMBERS, delete, "stat", "missing_index"),
        (seal.SEAL, delete, "stat", "bad_seal"),
        (seal.SEAL, truncate, "samples", "bad_seal"),
    ],
)
def test_damage_fails_the_run(
    built: Edge, ending: str, harm: Callable[[Project, Path], None], level: str, code: str
) -> None:
    shard = built.project.latest().shards[1]
    path = beside(built.project, shard, ending)
    if ending == seal.SEAL and harm is truncate:
        path.write_bytes(path.read_bytes()[:-20])
    else:
        harm(built.project, path)
    result = run(built, "verify", {"level": level}, fails=True)
    message = failure_of(result)
    assert message.startswith("small: version 1 is not as it was published: failed")
    assert f"{shard.partition}: {code}: " in message
    assert "Run small_repair" in message
    assert "Traceback" not in message
    (observation,) = observed(built, keys.SHARDS)
    assert observation.partition == shard.partition
    assert values(observation)["verification"].startswith(f"damaged: {code}: ")
    assert values(observed(built, keys.PUBLISHED_VERSION)[-1])["damaged shards"] == 1


def test_the_log_names_shard_member_and_finding(built: Edge) -> None:
    one, other = built.project.latest().shards[:2]
    members = {shard.partition: flip(built.project, shard, 1) for shard in (one, other)}
    result = run(built, "verify", fails=True)
    lines = said(built, result)
    for partition, member in members.items():
        assert any(line.startswith(f"{partition}: wrong_digest: ") for line in lines)
        (line,) = [each for each in lines if each.startswith(f"{partition}: wrong_content: ")]
        assert (
            f"{member}: its content has the digest" in line
            and "it was published with xxh3-128:" in line
        )
        assert member in failure_of(result)
    assert members[one.partition] in values(observed(built, keys.SHARDS)[0])["findings"]
    table = values(observed(built, keys.PUBLISHED_VERSION)[-1])["findings"]
    counts = {row.data["finding"]: row.data["count"] for row in table.records}
    assert counts["wrong_digest"] == counts["wrong_content"] == 2


def test_a_digest_level_does_not_name_members(built: Edge) -> None:
    flip(built.project, built.project.latest().shards[0])
    message = failure_of(run(built, "verify", {"level": "digest"}, fails=True))
    assert "wrong_digest" in message and "wrong_content" not in message
    run(built, "verify", {"level": "stat"})


def test_a_shard_that_is_sound_again_is_observed_to_be(built: Edge) -> None:
    shard = built.project.latest().shards[0]
    data = tar_of(built.project, shard).read_bytes()
    flip(built.project, shard)
    run(built, "verify", fails=True)
    tar_of(built.project, shard).write_bytes(data)
    run(built, "verify")
    run(built, "verify")
    passed = [(each.partition, values(each)["passed"]) for each in observed(built, keys.SHARDS)]
    assert passed == [(shard.partition, False), (shard.partition, True)]


def test_what_a_deep_reading_found_a_shallow_one_does_not_lift(built: Edge) -> None:
    shard = built.project.latest().shards[0]
    flip(built.project, shard)
    run(built, "verify", {"level": "samples"}, fails=True)
    shallow = run(built, "verify", {"level": "stat"})
    assert "a deeper reading found damage that level stat cannot see" in "".join(
        said(built, shallow)
    )
    assert statuses(built)[VERIFICATION_PASSED] == "failed"
    assert values(observed(built, keys.SHARDS)[-1])["passed"] is False
    run(built, "repair")
    assert statuses(built) == PASSED


def test_an_old_version_s_shard_says_nothing_of_the_newest_s(built: Edge) -> None:
    for number in range(30):
        built.project.write(f"a/{number:04d}.txt", f"another caption of {number}")
    built.build()
    new = built.project.latest().shards[0]
    assert new.since == 2
    flip(built.project, new)
    run(built, "verify", fails=True)
    run(built, "verify", {"version": 1})
    assert values(observed(built, keys.SHARDS)[-1])["passed"] is False


def test_damage_of_an_old_version_alone(built: Edge) -> None:
    built.project.write("a/0007.txt", "another caption")
    before = {shard.name: shard for shard in built.project.latest().shards}
    built.build()
    (old,) = before.keys() - {shard.name for shard in built.project.latest().shards}
    flip(built.project, before[old])
    run(built, "verify")
    message = failure_of(run(built, "verify", {"version": 1}, fails=True))
    assert "Not in the newest version, 2, any more: 1 damaged shard. Restore the files" in message
    assert "Run small_repair" not in message


def test_an_error_that_is_no_damage(built: Edge) -> None:
    """The same content in two splits, since the dataset wants that to be an error."""
    places = {s.split for s in built.project.latest().shards}
    assert places == {"train", "val"}
    source = built.project.source
    for number in range(30, 60):  # by one of these, the copies of one picture are in both splits
        built.project.add(number, 1)
        built.project.write(f"a/{number:04d}.png", (source / "a/0000.png").read_bytes())
    built.build()
    result = run(built, "verify", {"level": "samples"}, fails=True, verify={"on_leak": "error"})
    assert "no shard damaged" in failure_of(result)
    assert "Mend the source or the configuration, and run small_build" in failure_of(result)
    assert any(line.startswith("leak: ") for line in said(built, result))
    assert observed(built, keys.SHARDS) == []


def test_the_asset_checks_know(built: Edge) -> None:
    """What was read back, and that it is mended, is what the checks say."""
    run(built, "verify")
    assert statuses(built) == PASSED
    one, other = built.project.latest().shards[:2]
    flip(built.project, one)
    flip(built.project, other)
    run(built, "verify", fails=True)
    assert statuses(built)[VERIFICATION_PASSED] == "failed"
    key = seal.read_member_index(built.project.storage, one.name)["key"][0].as_py()
    found = (built.project.source / f"{key}.txt").stat()
    built.project.write(f"{key}.txt", "another caption")
    run(built, "repair", fails=True)
    assert statuses(built)[VERIFICATION_PASSED] == "failed"
    built.project.write(f"{key}.txt", f"caption of {key}")
    os.utime(built.project.source / f"{key}.txt", ns=(found.st_atime_ns, found.st_mtime_ns))
    run(built, "repair")
    assert statuses(built) == PASSED
    run(built, "verify")
    assert statuses(built) == PASSED


def test_a_version_whose_own_files_are_gone(built: Edge) -> None:
    (built.project.destination / version.folder(1) / version.LEDGER).unlink()
    message = failure_of(run(built, "verify", fails=True))
    assert "ledger.parquet: missing from version 1 of small" in message
    assert statuses(built)[VERIFICATION_PASSED] == "failed"


def test_nothing_is_published(edge: Edge) -> None:
    for verb in ("verify", "repair"):
        message = failure_of(run(edge, verb, fails=True))
        assert message == (
            f"small: {edge.project.destination}: no version is published; build it first"
        )


def test_the_version_is_not_there(built: Edge) -> None:
    message = failure_of(run(built, "verify", {"version": 7}, fails=True))
    assert "version 7 is not published; there are 1" in message


@pytest.mark.parametrize("sample", [-0.1, 7])
def test_a_share_that_is_none(built: Edge, sample: float) -> None:
    message = failure_of(run(built, "verify", {"sample": sample}, fails=True))
    assert f"sample: found {sample:g}; expected a share from 0 to 1" in message


@pytest.mark.parametrize("verb", ["verify", "repair"])
def test_a_level_that_is_none_is_refused_with_those_that_are(edge: Edge, verb: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as caught:
        run(edge, verb, {"level": "deep"})
    assert "(stat, digest, samples, decode) got deep" in str(caught.value)


def test_two_datasets(built: Edge, tmp_path: Path) -> None:
    """Damage of one is none of the other."""
    (tmp_path / "other" / "raw").mkdir(parents=True)
    other = Project(tmp_path / "other", {"name": "other"})
    other.add(0, 12)
    other.build()
    flip(other, other.latest().shards[0])
    run(built, "verify")
    message = failure_of(run(built, "verify", fails=True, project=other))
    assert message.startswith("other: version 1") and "other_repair" in message
    assert observed(built, keys.SHARDS) == []
    assert len(observed(built, keys.SHARDS, "other")) == 1
    jobs = [*build_upkeep_jobs(built.project.config()), *build_upkeep_jobs(other.config())]
    dg.Definitions.validate_loadable(dg.Definitions(jobs=jobs))


def test_cancelling_ends_the_workers(built: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster raises this in the op, from its signal handler."""
    started: list[Any] = []

    def stop(*_: object) -> None:
        started.extend(multiprocessing.active_children())
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(job_verify, "progress_lines", lambda _: stop)
    run(built, "verify", compute={"kind": "processes", "workers": 2}, fails=True)
    assert started
    assert not any(process.is_alive() for process in started)


def test_progress_is_said_now_and_then() -> None:
    with dg.build_op_context() as context:
        lines: list[str] = []
        context.log.info = lines.append  # type: ignore[method-assign,assignment]
        always, seldom = progress_lines(context, 0), progress_lines(context, 3600)
        for done in (0, 500, 2000):
            always("verify", done, 2000)
            seldom("verify", done, 2000)
    assert lines == [
        "verify: 0 B of 2.0 kB done (0%)",
        "verify: 500 B of 2.0 kB done (25%)",
    ]


def test_fields_are_documented(edge: Edge) -> None:
    """In the Launchpad, each field says what it is for, and what it is if it is left out."""
    config = edge.project.config(verify={"level": "digest", "sample": 0.5})
    defaults: dict[str, dict[str, Any]] = {}
    for job in build_upkeep_jobs(config):
        assert job.description and job.tags[keys.DATASET_TAG] == "small"
        assert job.config_mapping is not None
        fields = job.config_mapping.config_schema.config_type.fields  # type: ignore[union-attr]
        assert all(field.description for field in fields.values()), job.name
        defaults[job.name] = {
            name: field.default_value for name, field in fields.items() if field.default_provided
        }
    assert defaults == {
        "small_verify": {"level": "digest", "sample": 0.5, "version": None},
        "small_repair": {"level": "samples"},
        "small_gc": {"dry_run": True, "grace_hours": 24.0},
        "small_repack": {},
    }


def test_job_execute(project: Project) -> None:
    """In a terminal, with worker processes: the exit code, and the message alone."""
    project.options["compute"] = {"kind": "processes", "workers": 2}
    project.add(0, 12)
    project.build()
    flip(project, project.latest().shards[0])
    (project.folder / "config.yaml").write_text("{level: digest}\n")
    command = ["job", "execute", "-j", "small_verify", "-c", "config.yaml"]
    done = dagster(project, write(project), *command)
    assert done.returncode != 0
    assert "read_back: small: version 1 is not as it was published" in done.stderr, done
    assert "at level digest" in done.stderr
    assert "Traceback" not in done.stderr and "Stack Trace" not in done.stderr
