"""A published version, read back: sound, or each kind of damage among the findings; nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.audit import audit, expected_members
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.settle import rules
from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline_tests.conftest import Project


@pytest.fixture
def published(project: Project) -> Project:
    project.options["split"] = {"train": 0.7, "val": 0.3}
    project.add(0, 30)
    project.add(30, 1, "b")
    project.write("b/0030.json", "not json")
    project.write("b/0031.txt", "lonely")
    project.build()
    return project


def run(project: Project, number: int | None = None, **level: Any) -> Report:
    config = project.config(verify=level) if level else project.config()
    manifest = version.read(project.storage, number, "small")
    before = {p: p.stat().st_mtime_ns for p in project.destination.rglob("*")}
    with open_pool(config.compute) as pool:
        report = audit(config, project.storage, manifest, rules(config), pool).report
    assert {p: p.stat().st_mtime_ns for p in project.destination.rglob("*")} == before
    return report


@pytest.mark.parametrize("level", ["stat", "digest", "samples", "decode"])
def test_a_sound_version_passes(published: Project, level: str) -> None:
    report = run(published, level=level)
    assert report.passed
    assert report.samples["published"] == 30
    assert report.samples["in"] == 32
    assert report.samples["quarantined_by_reason"] == {"bad_json": 1, "missing_field": 1}


def test_the_members_are_those_of_the_tars(published: Project) -> None:
    expected = expected_members(published.storage, published.latest())
    for shard in published.latest().shards:
        index = seal.read_member_index(published.storage, shard.name)
        names = [f"{r['key']}.{r['field']}" for r in index.to_pylist()]
        assert expected[shard.partition]["name"].to_pylist() == names
        assert expected[shard.partition]["size"].to_pylist() == index["size"].to_pylist()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[600] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-512])


@pytest.mark.parametrize(
    ("ending", "harm", "level", "code"),
    [
        (seal.TAR, Path.unlink, "stat", "missing_tar"),
        (seal.TAR, cut, "stat", "wrong_size"),
        (seal.TAR, flip, "digest", "wrong_digest"),
        (seal.MEMBERS, Path.unlink, "stat", "missing_index"),
        (seal.MEMBERS, flip, "samples", "bad_index"),
        (seal.SEAL, Path.unlink, "stat", "bad_seal"),
        (seal.SEAL, cut, "stat", "bad_seal"),
    ],
)
def test_damage_is_found(
    published: Project, ending: str, harm: Callable[[Path], None], level: str, code: str
) -> None:
    shard = published.latest().shards[1]
    harm(published.destination / seal.path(shard.name, ending))
    report = run(published, level=level)
    assert not report.passed
    assert {each.shard for each in report.findings if each.severity == "error"} <= {shard.name, ""}
    assert code in {each.code for each in report.findings}


def test_a_shard_with_another_shards_content_is_found(published: Project) -> None:
    one, other = published.latest().shards[:2]
    data = (published.destination / other.path).read_bytes()
    (published.destination / one.path).write_bytes(data)
    assert not run(published, level="digest").passed


def test_a_repair_makes_it_pass_again(published: Project) -> None:
    path = published.destination / published.latest().shards[0].path
    flip(path)
    assert not run(published).passed
    path.unlink()
    assert published.build().status == "repaired"
    assert run(published).passed


def test_old_and_restored_versions_are_verified_by_their_own_ledger(published: Project) -> None:
    published.write("a/0001.txt", "edited")
    published.build()
    assert run(published, 1).passed
    assert run(published, 2).passed


def test_a_version_without_its_ledger_is_an_error(published: Project) -> None:
    path = published.destination / version.folder(1) / version.LEDGER
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(VersionError, match="missing from version 1"):
        run(published)
    path.write_bytes(data[:-20])
    with pytest.raises(VerificationError, match="damaged"):
        run(published)


def test_a_ledger_of_another_version_is_an_error(published: Project) -> None:
    published.add(50, 20)
    published.build()
    ledger = published.destination / version.folder(2) / version.LEDGER
    ledger.write_bytes((published.destination / version.folder(1) / version.LEDGER).read_bytes())
    with pytest.raises(VerificationError, match="its ledger and its manifest differ"):
        run(published, 2)
