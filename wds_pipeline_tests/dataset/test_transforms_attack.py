"""Transforms that go wrong: what the user is told, what is not published, and what a next build does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.pack_transformed import _rename
from wds_pipeline.dataset.share import build_share
from wds_pipeline.errors import ConfigError, DataError, DestinationError
from wds_pipeline.transforms import registry
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.test_build_crash import ROOT

HERE = "wds_pipeline_tests.dataset.bad_transforms"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("exit", "SystemExit: usage"),
        ("panic", "Panic: index out of bounds"),
        ("generator", "GeneratorExit"),
        ("mute", "Mute"),
        ("long", "x" * 400),
        ("terminal", "a\\x1b[31mred\\x00 \\u202e b"),
        ("surrogate", "\\ud800"),
    ],
)
def test_whatever_is_raised_costs_one_sample(project: Project, what: str, reason: str) -> None:
    project.add(0, 1)
    project.add(1, 1, "b")
    step = {f"{HERE}:raises": {"what": what}, "keys": "a/**"}
    manifest = project.build(transforms=[step]).manifest
    assert project.published().keys() == {"b/0001"}
    row = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()[0]
    assert row["detail"].startswith(f"{HERE}:raises: {reason}")
    assert len(row["detail"]) <= 500


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("exits", "Stream: train-000000: SystemExit: 2"),
        ("unknown", "it rejected the key 'no/such', which none of its samples has"),
        (
            "late",
            r"the sample 'a/000\d' is rejected \(.*too late\), and yet 'a/000\d' was made of it",
        ),
        (
            "foreign",
            "made the key 'z/a/000.'; expected one that goes on behind the shard's name or",
        ),
        ("dot", r"a/000\d-0.5': a dot in a key's last part begins a field's name"),
    ],
)
def test_what_a_transform_of_shards_may_not_do(project: Project, what: str, message: str) -> None:
    """A shard must be what it would be without the samples that are rejected."""
    project.add(0, 3)
    with pytest.raises(DataError, match=message):
        project.build(transforms=[{f"{HERE}:Stream": {"what": what}}])
    assert version.latest(project.storage) is None
    assert project.stray() == []


def test_inputs_that_a_transform_of_shards_does_not_read_are_counted(project: Project) -> None:
    project.add(0, 6)
    manifest = project.build(transforms=[{f"{HERE}:Stream": {"what": "nothing"}}]).manifest
    assert manifest.total_samples == 0
    assert manifest.left_out == {"not read by a transform of shards": 6}


def test_a_transform_of_shards_with_keys_decides_over_all(project: Project) -> None:
    """It leaves out what is not for it, in shards too that have nothing else."""
    project.add(0, 3)
    project.add(0, 3, "b")
    project.options = {"split": {"by": "directory"}}
    project.build()
    step = {"wds_pipeline_tests.dataset.some_transforms:Blocks": {}, "keys": "a/**"}
    project.build(transforms=[step])
    assert project.published().keys() == {"a-000000/0000"}


# ------------------------------------------------------------------------------ what the samples cannot help


def needing(project: Project, tool: Path, **more: Any) -> dict[str, Any]:
    step = {f"{HERE}:needs": {"tool": str(tool)}, "keys": "**/*[37]"}
    return {"transforms": [step], "samples": {"max_quarantined": 0.05}, **more}


@pytest.mark.parametrize("count", [4, 20])
def test_what_failed_for_want_of_a_program_is_tried_again(
    project: Project, tmp_path: Path, count: int
) -> None:
    """Nothing was published: that the samples were rejected is not held against them for ever."""
    project.add(0, count)
    tool = tmp_path / "tool"
    options = needing(project, tool)
    if count == 4:
        options["transforms"][0]["keys"] = "**"
    for _ in range(2):
        with pytest.raises(DataError, match="unusable.*" if count == 20 else "all 4 samples"):
            project.build(**options)
    config = project.config(**options)
    if count == 20:
        build_share(
            config, 1, 2
        )  # a task does not know of the others, and leaves it to the last build
        with pytest.raises(DataError, match="No such file"):
            project.build(**options)
    tool.touch()
    assert project.build(**options).manifest.quarantined == {}
    assert project.published() == project.raw()


def test_a_transform_that_cannot_be_made(project: Project) -> None:
    project.add(0, 1)
    with pytest.raises(ConfigError, match=r"NoLuck: RuntimeError: no device"):
        project.build(transforms=[f"{HERE}:NoLuck"])
    with pytest.raises(ConfigError, match="a class without __call__ or stream"):
        project.build(transforms=[f"{HERE}:NotCalled"])
    with pytest.raises(ConfigError, match="found 65; expected 64 at most"):
        project.build(transforms=[{"drop": {"fields": ["x"]}}] * 65)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "exit",
            "something in it ended it with the exit code 5; it was at train-000000, {}, sample 'a/0000'",
        ),
        (
            "crash",
            "SIGSEGV: a crash in a library's machine code; it was at train-000000, {}, sample",
        ),
        ("not", ""),
    ],
)
def test_a_worker_that_dies_is_told_with_its_sample(
    project: Project, how: str, message: str
) -> None:
    project.add(0, 1)
    values = {
        "source": {"url": str(project.source)},
        "destination": {"url": str(project.destination)},
        "compute": {"kind": "processes", "workers": 1},
        "transforms": [{f"{HERE}:dies": {"how": how}}],
    }
    (project.folder / "datasets").mkdir()
    (project.folder / "datasets" / "small.yaml").write_text(
        yaml.safe_dump({"name": "small", **values})
    )
    done = subprocess.run(
        [sys.executable, "-m", "wds_pipeline.cli", "build", "small", "--json"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "this is at a/0000" in done.stderr, "what is printed is no part of the output"
    if how == "not":
        assert json.loads(done.stdout)["status"] == "published"
    else:
        assert done.returncode == 1
        assert message.format(f"{HERE}:dies") in done.stderr
        assert done.stdout == ""


def test_another_build_may_have_renamed_the_shard(project: Project) -> None:
    """Two builds find the same samples rejected; the one gives the tar its name and removes the other one."""
    storage = project.storage
    with pytest.raises(DestinationError):
        _rename(storage, "shards/planned.tar", "shards/without.tar", 3)
    storage.put("shards/without.tar", b"tar")
    _rename(storage, "shards/planned.tar", "shards/without.tar", 3)
    with pytest.raises(DestinationError):
        _rename(storage, "shards/planned.tar", "shards/without.tar", 4)


# ------------------------------------------------------------------------------ which code it is


@pytest.fixture
def package(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A package whose `__init__` has the functions of its modules, by relative imports."""
    files = {
        "__init__": "from .inner import Child as Kid, change\n",
        "inner/__init__": "try:\n    from .code import *\nexcept ImportError:\n    raise\n",
        "inner/code": "from functools import partial\nfrom .. import base\nfrom ..around import around\n"
        "@around\ndef change(sample, by='!'):\n    return {**sample, 'txt': by}\n"
        "class Child(base.Base):\n    pass\npart = partial(change, by='?')\n",
        "base": "class Base:\n    def __call__(self, sample):\n        return sample\n",
        "around": "def around(function):\n    return function\n",
        "other": "x = 1\n",
    }
    name = "attacked_package"
    for path, text in files.items():
        target = project.folder / name / f"{path}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    monkeypatch.syspath_prepend(str(project.folder))
    monkeypatch.setattr(registry, "_loaded", {})
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, each)
    yield project
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


def edit(project: Project, module: str, text: str) -> None:
    with (project.folder / "attacked_package" / f"{module}.py").open("a") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("target", "modules"),
    [
        ("attacked_package:change", {"inner/code", "around", "inner/__init__", "__init__"}),
        ("attacked_package:Kid", {"inner/code", "base", "inner/__init__", "__init__"}),
        ("attacked_package.inner.code:Child", {"inner/code", "base"}),
        ("attacked_package.inner.code:part", {"inner/code", "around"}),
    ],
)
def test_all_that_defines_a_transform_is_its_code(
    package: Project, target: str, modules: set[str]
) -> None:
    config = TransformConfig(name=target)
    for module in ("__init__", "inner/__init__", "inner/code", "base", "around", "other"):
        before = registry.declared(config), registry.load([config], "x")[0].digest
        edit(package, module, "# a comment\n")
        assert (registry.declared(config), registry.load([config], "x")[0].digest) == before
        edit(package, module, "more = 2\n")
        after = registry.declared(config), registry.load([config], "x")[0].digest
        assert (after[0] != before[0], after[1] != before[1]) == (module in modules,) * 2, module


def test_what_is_declared_runs_nothing_of_the_users(package: Project) -> None:
    edit(package, "__init__", "raise SystemExit('run')\n")
    assert registry.declared(TransformConfig(name="attacked_package.inner:change"))
    assert not [each for each in sys.modules if each.startswith("attacked_package")]
    with pytest.raises(ConfigError, match="importing attacked_package failed: SystemExit: run"):
        registry.load([TransformConfig(name="attacked_package:change")], "x")


def test_code_that_was_edited_is_read_anew(package: Project) -> None:
    """In a process that lives long: a notebook, or a worker of a cluster."""
    package.add(0, 2)
    step = "attacked_package:change"
    package.build(transforms=[step])
    assert {each["txt"] for each in package.published().values()} == {b"!"}
    edit(package, "inner/code", "def change(sample):\n    return {**sample, 'txt': 'new'}\n")
    package.build(transforms=[step])
    assert {each["txt"] for each in package.published().values()} == {b"new"}


def test_code_that_is_edited_while_a_build_runs(
    package: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker imports later would be other code than the shards' names say."""
    step = registry.load([TransformConfig(name="attacked_package:change")], "small")[0]
    edit(package, "inner/code", "def change(sample):\n    return {**sample, 'txt': 'new'}\n")
    assert step.make()({})["txt"] == "!", "a worker that has it goes on"
    monkeypatch.setattr(registry, "_loaded", {})
    with pytest.raises(
        ConfigError, match=r"is not what it was when this build began: it was edited"
    ):
        step.make()


def test_parameters_that_only_yaml_tells_apart(package: Project) -> None:
    values = [
        "2026-01-01",
        date(2026, 1, 1),
        b"2026-01-01",
        1,
        "1",
        True,
        None,
        {1: "x"},
        {"1": "x"},
    ]
    found = [
        registry.load(
            [TransformConfig(name="attacked_package:change", parameters={"by": each})], "x"
        )
        for each in values
    ]
    assert len({step.digest for (step,) in found}) == len(values)
