"""docs/how-to/transforms.md is true: its examples load and run, its tables have all parameters."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wds_pipeline.config_transforms import TransformConfig
from wds_pipeline.transforms.filter import _MEASURES
from wds_pipeline.transforms.picture_options import PictureOptions
from wds_pipeline.transforms.registry import BUILT_IN, load

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "transforms.md"
OURS = {
    name: target
    for name, target in BUILT_IN.items()
    if target.startswith("wds_pipeline.transforms")
}


@pytest.fixture(scope="module")
def page() -> str:
    if not PAGE.exists():
        pytest.skip("an installed package has no pages beside it")
    return PAGE.read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_python_runs_and_yaml_loads(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, alone = blocks(page, "python")
    path = tmp_path / own.splitlines()[0].removeprefix("# ")
    path.parent.mkdir()
    path.write_text(own)
    subprocess.run([sys.executable, "-c", alone], check=True, timeout=60)
    monkeypatch.syspath_prepend(tmp_path)
    named = set()
    for text in blocks(page, "yaml"):
        steps = yaml.safe_load(text)["transforms"]
        named |= {
            step.name
            for step in load([TransformConfig.model_validate(each) for each in steps], "page")
        }
    assert {name for name in named if ":" not in name} == OURS.keys()
    captions = importlib.import_module("my_package.captions")
    sample = {"__key__": "1", "txt": b" one. two "}
    cleaned = captions.clean(dict(sample))
    assert (cleaned["txt"], captions.clean({**sample, "txt": b"untitled"})) == ("one. two", None)
    found = list(captions.Sentences()({**cleaned, "txt": cleaned["txt"].encode()}))
    assert [each["txt"] for each in found] == ["one", "two"]


@pytest.mark.parametrize("name", OURS)
def test_tables_have_all_parameters(name: str, page: str) -> None:
    section = re.search(rf"^#+ {name}\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert section, name
    rows = [line.split("|")[1] for line in section[1].splitlines() if line.startswith("|")]
    told = {each for row in rows for each in re.findall(r"`(\w+)`", row)}
    module, _, attribute = OURS[name].partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    known = {each.name for each in parameters.values() if each.kind is not each.VAR_KEYWORD}
    if name == "filter":
        known |= {f"{bound}_{measure}" for bound in ("min", "max") for measure in _MEASURES}
    assert told == known


def test_the_table_of_pictures_has_all_options(page: str) -> None:
    table = page.partition("| also for resize")[2].partition("\n\n")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert told == {each.name for each in dataclasses.fields(PictureOptions)}
