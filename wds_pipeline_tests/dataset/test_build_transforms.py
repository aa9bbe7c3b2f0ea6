"""Builds with transforms: what comes out, what is counted, what is packed again, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.dataset import accounts, audit, repair, seal, version
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.share import build_share
from wds_pipeline.dataset.show import read_sample
from wds_pipeline.errors import ConfigError, DataError, VersionError
from wds_pipeline.training import open_dataset
from wds_pipeline_tests.conftest import Project, Sample
from wds_pipeline_tests.dataset.test_build_crash import ROOT, at

HERE = "wds_pipeline_tests.dataset.some_transforms"
MIXED = f"{HERE}:mixed"
COUNT = 42


@pytest.fixture
def mixed(project: Project) -> Project:
    """42 samples, of which `mixed` makes others; each call is in calls.txt."""
    project.add(0, COUNT)
    log = str(project.folder / "calls.txt")
    project.options = {"transforms": [{MIXED: {"log": log}}]}
    return project


def calls(project: Project) -> Counter[str]:
    """How often the transform was called, by key; forgets it."""
    log = project.folder / "calls.txt"
    found = (
        Counter(line.split()[1] for line in log.read_text().splitlines()) if log.exists() else {}
    )
    log.unlink(missing_ok=True)
    return Counter(found)


def expected(project: Project) -> Sample:
    """What `mixed` makes of the raw files."""
    found: Sample = {}
    for key, fields in project.raw().items():
        kind = int(key[-4:]) % 7
        if kind == 5:
            found |= {f"{key}-{part}": fields for part in range(3)}
        elif kind not in (3, 4):
            found[key] = {**fields, "txt": fields["txt"].upper()}
    return found


def test_one_several_none_and_rejected(mixed: Project) -> None:
    result = mixed.build()
    manifest = result.manifest
    assert mixed.published() == expected(mixed)
    assert manifest.quarantined == {"transform_failed": 6}
    assert manifest.left_out == {MIXED: 6}
    assert manifest.transforms == [MIXED]
    assert manifest.splits["train"].inputs == COUNT - 6
    assert manifest.total_samples == 24 + 6 * 3
    assert calls(mixed) == Counter(list(mixed.raw())), "each sample once, whatever the others did"
    quarantine = version.read_table(mixed.storage, manifest, version.QUARANTINE).to_pylist()
    assert quarantine[0]["key"] == "a/0003"
    assert quarantine[0]["detail"] == f"{MIXED}: number 3"
    report = json.loads(version.read_file(mixed.storage, manifest, version.REPORT_JSON))
    assert report["passed"]
    assert report["samples"]["in"] == COUNT
    assert report["samples"]["inputs_published"] == COUNT - 6
    assert report["samples"]["left_out"] == {MIXED: 6}
    recounted = accounts.recount(
        version.read_table(mixed.storage, manifest, version.INVENTORY),
        version.read_table(mixed.storage, manifest, version.LEDGER),
        version.read_table(mixed.storage, manifest, version.QUARANTINE),
        {name: each.of_source for name, each in manifest.splits.items()},
    )
    assert recounted.problems == []


def test_nothing_changed_and_one_edit(mixed: Project) -> None:
    mixed.build()
    calls(mixed)
    before = mixed.shard_files()
    assert mixed.build().status == "unchanged"
    assert not calls(mixed)
    mixed.write("a/0001.txt", "edited")
    result = mixed.build()
    assert len(result.causes) == 1
    assert list(result.causes.values()) == ["1 edited"]
    assert mixed.published() == expected(mixed)
    ledger = version.read_table(mixed.storage, result.manifest, version.LEDGER).to_pylist()
    slot = next(row["slot"] for row in ledger if row["key"] == "a/0001")
    assert set(calls(mixed)) == {row["key"] for row in ledger if row["slot"] == slot}
    assert before.items() <= mixed.shard_files().items()


def test_a_rejected_sample_comes_back_when_it_is_mended(mixed: Project) -> None:
    mixed.build()
    mixed.write("a/0003.txt", "still number 3")
    assert mixed.build().status == "published", "its content is another, so it was tried"
    assert version.read_table(mixed.storage, mixed.latest(), version.QUARANTINE).num_rows == 6
    mixed.options = {"transforms": [f"{HERE}:upper"]}
    result = mixed.build()
    assert result.manifest.quarantined == {}
    assert mixed.published().keys() == mixed.raw().keys()


def test_two_builds_give_the_same_bytes(mixed: Project, tmp_path: Path) -> None:
    other = mixed.copy(tmp_path / "other")
    mixed.build()
    other.build(compute={"kind": "processes", "workers": 2})
    names = [(shard.name, shard.digest) for shard in mixed.latest().shards]
    assert names == [(shard.name, shard.digest) for shard in other.latest().shards]
    assert mixed.published() == other.published()


def test_samples_of_many_become_one(project: Project) -> None:
    project.add(0, 20)
    project.options = {"transforms": [f"{HERE}:upper", {f"{HERE}:Blocks": {"size": 4}}]}
    manifest = project.build().manifest
    assert manifest.quarantined == {"transform_failed": 1}
    found = project.published()
    texts = "\n".join(fields["txt"].decode() for fields in found.values()).splitlines()
    wanted = [
        fields["txt"].decode().upper() for key, fields in project.raw().items() if key != "a/0006"
    ]
    assert sorted(texts) == sorted(wanted)
    assert {key.partition("/")[0] for key in found} == {
        shard.partition for shard in manifest.shards
    }
    dataset = open_dataset(str(project.destination))
    assert [sample["__key__"] for sample in dataset] == list(found)
    assert dataset.by_key("train-000000/0000")["txt"] == found["train-000000/0000"]["txt"]


def test_samples_that_were_made_are_found_by_their_keys(mixed: Project) -> None:
    manifest = mixed.build().manifest
    made = read_sample(mixed.storage, manifest, "a/0005-1")
    assert [member.field for member in made.members] == ["json", "png", "txt"]
    assert read_sample(mixed.storage, manifest).key in mixed.published()
    with pytest.raises(VersionError, match=r"the transforms \(.*mixed\) left it out"):
        read_sample(mixed.storage, manifest, "a/0004")
    with pytest.raises(VersionError, match="in the quarantine: transform_failed"):
        read_sample(mixed.storage, manifest, "a/0003")
    with pytest.raises(VersionError, match="the nearest keys: 'a/00"):
        read_sample(mixed.storage, manifest, "a/001")
    dataset = open_dataset(str(mixed.destination))
    assert len(dataset) == len(expected(mixed))
    assert dataset.by_key("a/0005-1")["__key__"] == "a/0005-1"


# ------------------------------------------------------------------- what is packed again, and when


@pytest.fixture
def own(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a module of transforms of its own, in a file."""
    project.add(0, 10)
    project.add(0, 10, "b")
    monkeypatch.syspath_prepend(str(project.folder))
    return project


def write_module(project: Project, body: str) -> None:
    name = "transforms_of_my_own"
    (project.folder / f"{name}.py").write_text(body)
    sys.modules.pop(name, None)
    cache = project.folder / "__pycache__"
    for each in cache.glob("*") if cache.exists() else ():  # a second write within a second
        each.unlink()


CODE = '''"""About."""
def change(sample, by="!"):
    """What it does."""
    return {**sample, "txt": sample["txt"] + by.encode()}  # a comment
'''
CHANGE = "transforms_of_my_own:change"


def test_code_parameters_and_version_decide(own: Project) -> None:
    write_module(own, CODE)
    assert own.build(transforms=[CHANGE]).status == "published"
    write_module(own, CODE.replace("About", "Other words").replace("a comment", "another"))
    assert own.build(transforms=[CHANGE]).status == "unchanged"
    write_module(own, CODE.replace("+ by.encode()", '+ b"?"'))
    result = own.build(transforms=[CHANGE])
    assert set(result.causes.values()) and all("config" in each for each in result.causes.values())
    assert own.published()["a/0000"]["txt"].endswith(b"?")
    shards = len(result.manifest.shards)
    for options in ({CHANGE: {"by": "x"}}, {CHANGE: {"by": "x"}, "version": 2}):
        assert len(own.build(transforms=[options]).causes) == shards
    assert own.build(transforms=[]).status == "published"
    assert own.published() == own.raw()


def test_a_transform_of_some_keys_touches_no_other_shard(own: Project) -> None:
    write_module(own, CODE)
    layout = {"split": {"by": "directory"}}  # so that no shard has samples of both folders
    own.build(**layout)
    before = own.shard_files()
    result = own.build(transforms=[{CHANGE: None, "keys": "a/**"}], **layout)
    assert result.causes and all(each.startswith("a-") for each in result.causes)
    assert before.items() <= own.shard_files().items()
    found = own.published()
    assert found["a/0001"]["txt"].endswith(b"!")
    assert found["b/0001"] == own.raw()["b/0001"]


# ------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["no_such"], r"transforms\[0\]: no_such: there is no such transform; expected one of"),
        (["no_such_module:x"], "No module named 'no_such_module'; install the package"),
        ([f"{HERE}:uper"], "found nothing of that name in .*; did you mean 'upper'"),
        ([f"{HERE}:not_a_function"], "found no function or class"),
        ([{MIXED: {"lgo": 1}}], "unknown parameter 'lgo'; it takes log; did you mean 'log'"),
        ([{f"{HERE}:gives": {}}], "the parameter 'what' is required"),
        ([f"{HERE}:upper", {MIXED: {"x": 1}}], r"transforms\[1\]: .*mixed: unknown parameter"),
    ],
)
def test_what_is_wrong_with_the_list(project: Project, transforms: Any, message: str) -> None:
    project.add(0, 2)
    with pytest.raises(ConfigError, match=f"small: {message}" if "[" in message[:14] else message):
        project.build(transforms=transforms)
    assert version.latest(project.storage) is None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("number", "gave int; expected None, a sample"),
        ("no key", "expected a dict with `__key__`"),
        (
            "other key",
            "made the key 'za/0000' of 'a/0000'; expected the same one, or one that goes on",
        ),
        ("longer key", "made the key 'a/00000' of 'a/0000'; expected the same one"),
        ("dotted key", "a dot in a key's last part"),
        ("one key twice", "made the key 'a/0000' twice"),
        ("no field", "without a field; return None to leave a sample out"),
        ("upper case", "a field is in lower case"),
        ("a folder", "gave the name"),
        ("no encoder", "gave object for the field 'bin', which cannot be encoded"),
    ],
)
def test_what_a_transform_may_not_give(project: Project, what: str, message: str) -> None:
    project.add(0, 1)
    project.add(1, 1, "b")
    step = {f"{HERE}:gives": {"what": what}, "keys": "a/**"}
    manifest = project.build(transforms=[step]).manifest
    assert manifest.quarantined == {"transform_failed": 1}
    row = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()[0]
    assert message in row["detail"]
    assert project.published().keys() == {"b/0001"}


def test_all_samples_of_a_shard_are_rejected(project: Project) -> None:
    project.add(0, 4)
    project.add(4, 4, "b")
    step = {f"{HERE}:fails": None, "keys": "a/**"}
    manifest = project.build(transforms=[step], split={"by": "directory"}).manifest
    assert manifest.quarantined == {"transform_failed": 4}
    assert list(manifest.splits) == ["b"]
    row = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()[0]
    assert row["detail"] == f"{HERE}:fails: RuntimeError: no way: 4"
    with pytest.raises(DataError, match=r"all 8 samples are unusable; the first: .*no way"):
        project.build(transforms=[f"{HERE}:fails"])


def test_the_policy_may_be_an_error(project: Project) -> None:
    project.add(0, 8)
    with pytest.raises(DataError, match=r"transform_failed: 1, for example\n.*a/0003: .*number 3"):
        project.build(transforms=[MIXED], samples={"on_invalid": "error"})
    with pytest.raises(DataError, match="max_quarantined allows 1"):
        project.build(transforms=[MIXED], samples={"max_quarantined": 0.01})
    assert version.latest(project.storage) is None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fails", "train-000000: RuntimeError: out of memory"),
        ("same key", "the key 'train-000000/same' twice"),
    ],
)
def test_a_transform_of_whole_shards_that_fails(project: Project, what: str, message: str) -> None:
    project.add(0, 4)
    with pytest.raises(DataError, match=message):
        project.build(transforms=[{f"{HERE}:Stream": {"what": what}}])
    assert version.latest(project.storage) is None
    assert project.stray() == []


# ------------------------------------------------------------------------------- verifying, repair, shares


def run_repair(project: Project, damaged: list[str]) -> repair.Repair:
    config = project.config()
    with open_pool(config.compute) as pool:
        return repair.repair(config, project.storage, project.latest(), damaged, pool)


def test_a_damaged_shard_is_made_again(mixed: Project) -> None:
    manifest = mixed.build().manifest
    shard = manifest.shards[0]
    path = mixed.destination / shard.path
    path.write_bytes(path.read_bytes()[:-700] + bytes(700 - 512) + b"x" * 512)
    config = mixed.config()
    with open_pool(config.compute) as pool:
        found = audit.audit(
            config, mixed.storage, manifest, audit.audit_rules(config, manifest), pool
        )
    assert list(found.damaged) == [shard.name]
    done = run_repair(mixed, [shard.name])
    assert done.failed == {}
    assert mixed.published() == expected(mixed)
    with open_pool(config.compute) as pool:
        again = audit.audit(
            config, mixed.storage, manifest, audit.audit_rules(config, manifest), pool
        )
    assert not again.damaged and again.report.passed


def test_what_does_not_come_out_the_same_is_no_repair(project: Project) -> None:
    project.add(0, 4)
    project.options = {"transforms": [f"{HERE}:unseeded"]}
    shard = project.build().manifest.shards[0]
    stored = (project.destination / shard.path).read_bytes()
    done = run_repair(project, [shard.name])
    assert "packed anew it would have the digest" in done.failed[shard.partition]
    assert (project.destination / shard.path).read_bytes() == stored


def test_shares_of_an_array_job(mixed: Project, tmp_path: Path) -> None:
    whole = mixed.copy(tmp_path / "whole")
    whole.build()
    wanted = [(shard.name, shard.digest) for shard in whole.latest().shards]
    calls(mixed)
    config = mixed.config()
    shares = [build_share(config, number, 3) for number in (1, 2, 3)]
    assert calls(mixed) == Counter(list(mixed.raw())), "no share did what another did"
    shards = [name for share in shares for name in share.shards]
    assert (
        len(shards) == len(set(shards)) == len(Build(config).plan(Build(config).scan()).plan.shards)
    )
    assert sum(share.rejected for share in shares) == 6
    assert version.latest(mixed.storage) is None
    assert build_share(config, 2, 3).packed == 0, (
        "a task that is started again finds what is sealed"
    )
    assert not calls(mixed)
    result = mixed.build()
    assert not calls(mixed), "the last build packs none of them"
    assert [(shard.name, shard.digest) for shard in result.manifest.shards] == wanted
    assert build_share(config, 1, 3).status == "unchanged"


def test_a_task_that_is_killed_loses_the_shard_under_way(mixed: Project) -> None:
    """Several processes, one of which is killed in the middle of a shard."""
    kill = mixed.folder / "kill.py"
    kill.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from wds_pipeline.dataset.share import build_share\n"
        "from wds_pipeline.transforms import chain\n"
        "from wds_pipeline_tests.conftest import Project\n"
        f"project = Project(Path({str(mixed.folder)!r}), {mixed.options!r})\n"
        "real, seen = chain._apply, []\n"
        "def apply(*arguments):\n"
        "    seen.append(1)\n"
        "    os._exit(9) if len(seen) == int(sys.argv[1]) else None\n"
        "    return real(*arguments)\n"
        "chain._apply = apply\n"
        "build_share(project.config(), 1, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, str(kill), "17"], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 9
    sealed = {path.name for path in (mixed.destination / seal.FOLDER).glob("*" + seal.SEAL)}
    assert sealed
    before = calls(mixed)
    mixed.build()
    both = before + calls(mixed)
    assert set(both) == set(mixed.raw())
    again = {key for key, count in both.items() if count > 1}
    ledger = version.read_table(mixed.storage, mixed.latest(), version.LEDGER).to_pylist()
    left = version.read_table(mixed.storage, mixed.latest(), version.QUARANTINE).to_pylist()
    slot = {row["key"]: row["slot"] for row in ledger + left}
    assert len({slot[key] for key in again}) == 1, "of one shard alone"
    assert mixed.published() == expected(mixed)


def test_a_crash_leaves_what_was_found_out(mixed: Project, tmp_path: Path) -> None:
    """A build that is killed before it publishes has noted which samples its transforms reject."""
    config = mixed.config()
    build_share(config, 1, 1)
    calls(mixed)
    (tmp_path / "elsewhere").mkdir()
    here = at(tmp_path / "elsewhere" / "here", mixed)
    here.options = mixed.options
    here.build()
    assert not calls(mixed)
    assert here.latest().quarantined == {"transform_failed": 6}
