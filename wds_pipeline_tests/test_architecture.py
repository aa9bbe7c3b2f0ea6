"""The floors of the house: each imports only from below; the library runs without Dagster and torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import wds_pipeline

ROOT = Path(wds_pipeline.__file__).parent

# A module imports from its own floor, or from those with smaller numbers.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "config_values": 0,
    "config_automation": 0,
    "config_storage": 0,
    "config_source": 0,
    "config_split": 0,
    "config_transforms": 0,
    "config_combine": 0,
    "config_compute": 0,
    "config_overlay": 0,
    "config": 1,
    "config_file": 2,
    "config_reference": 2,
    "storage": 2,
    "compute": 2,
    "demo": 2,
    "demo_s3": 3,
    "dataset": 3,
    "transforms": 3,
    "tokens": 4,
    "training": 5,
    "cli": 6,
    "defs": 7,
    "definitions": 8,
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@cache
def imports(module: str) -> list[tuple[str, bool]]:
    """What a module imports, by full name, and whether importing it alone does so."""
    tree = ast.parse(MODULES[module].read_text())
    inside = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(outer, ast.If) and ast.unparse(outer.test).endswith("TYPE_CHECKING"))
        for node in ast.walk(outer)
    }
    return [
        (name, id(node) not in inside) for node in ast.walk(tree) for name in named(node, module)
    ]


def named(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}: line {node.lineno}: a relative import"
        for alias in node.names:
            yield f"{node.module}.{alias.name}"


def ours(module: str, *, at_once: bool = False) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name, now in imports(module):
        if name.startswith("wds_pipeline.") and (now or not at_once):
            inner = name.removeprefix("wds_pipeline.")
            while inner not in MODULES and "." in inner:
                inner = inner.rpartition(".")[0]
            found.add(inner if inner in MODULES else "__init__")
    return found


def floor(module: str) -> int:
    return FLOORS[module.partition(".")[0]]


def test_every_module_has_a_floor() -> None:
    assert {module.partition(".")[0] for module in MODULES} <= FLOORS.keys()
    assert len(MODULES) > 20, ROOT


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_floor_and_below(module: str) -> None:
    above = {each for each in ours(module) if floor(each) > floor(module)}
    assert not above


@pytest.mark.parametrize("module", MODULES)
def test_dagster_and_torch_stay_where_they_belong(module: str) -> None:
    packages = {name.partition(".")[0] for name, _ in imports(module)}
    at_once = {name.partition(".")[0] for name, now in imports(module) if now}
    if floor(module) < FLOORS["defs"]:
        assert not {name for name in packages if name.startswith("dagster")}
    if module == "training.torch_stream":  # imported when a stream is asked for
        assert "torch" in at_once
    elif module.partition(".")[0] in ("tokens", "training"):
        assert "torch" not in at_once
    elif floor(module) < FLOORS["training"] and not module.startswith("transforms"):
        assert "torch" not in packages


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {module: ours(module, at_once=True) - {module} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("wds_pipeline.cli.main", ("dagster", "torch", "webdataset")),
        ("wds_pipeline.dataset.build", ("dagster", "torch", "webdataset")),
        ("wds_pipeline.training", ("dagster", "torch")),
    ],
)
def test_what_is_loaded_when_it_is_imported(module: str, without: tuple[str, ...]) -> None:
    if module.partition(".")[2].partition(".")[0] not in {m.partition(".")[0] for m in MODULES}:
        pytest.skip("not there yet")
    assert find_spec(module)
    code = f"import sys, {module}; print(*sorted(set({without!r}) & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.split() == []
