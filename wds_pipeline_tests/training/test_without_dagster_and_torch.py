"""Reading needs neither Dagster nor torch: it goes on where they cannot be imported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import stored

PROGRAM = """
import importlib.abc, json, sys

class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchdata") or name.startswith("dagster"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refused())
try:
    import dagster
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("dagster was not refused")
from wds_pipeline.training import open_dataset
dataset = open_dataset(sys.argv[1], split="train")
found = {
    "all": [sample["__key__"] for sample in dataset],
    "one": dataset[3]["__key__"],
    "by key": dataset.by_key(dataset[4]["__key__"])["__index__"],
    "selected": len(dataset.select("png.width >= 10")),
    "streamed": sorted(sample["__key__"] for sample in dataset.stream(seed=1)),
    "webdataset": sum(1 for _ in dataset.webdataset().decode("pil")),
    "loaded": sorted(set(sys.modules) & {"dagster", "torch"}),
}
print(json.dumps(found))
"""


def test_without_them(published: Project) -> None:
    check(sys.executable, PROGRAM, published)


def check(python: str, program: str, published: Project) -> None:
    done = subprocess.run(
        [python, "-W", "ignore", "-c", program, str(published.destination)],
        capture_output=True,
        text=True,
        cwd=published.folder,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("selected") > 0
    keys = [key for key, _ in stored(published, "train")]
    assert found == {
        "all": keys,
        "one": keys[3],
        "by key": 4,
        "streamed": sorted(keys),
        "webdataset": len(keys),
        "loaded": [],
    }


def test_an_environment_without_them(published: Project, tmp_path: Path) -> None:
    """What docs/how-to/training.md says to install is enough, and brings neither."""
    root = Path(__file__).parents[2]
    page = root / "docs" / "how-to" / "training.md"
    if not page.exists():
        pytest.skip("an installed package has no docs beside it")
    block = re.search(r"installs these -->\n```bash\n(.*?)```", page.read_text(), re.DOTALL)
    assert block is not None
    clone = tmp_path / "clone"  # building leaves files beside what it builds
    clone.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, clone)
    shutil.copytree(root / "wds_pipeline", clone / "wds_pipeline")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    for line in block[1].splitlines():
        command = line.partition("#")[0].split()
        assert command[:2] == ["pip", "install"]
        done = subprocess.run(
            [python, "-m", "pip", "--disable-pip-version-check", *command[1:]],
            cwd=clone,
            capture_output=True,
            text=True,
        )
        if done.returncode and "Could not find a version" in done.stderr:
            pytest.skip("packages cannot be installed here")
        assert not done.returncode, done.stderr
    absent = "import importlib.util as u; print(u.find_spec('dagster'), u.find_spec('torch'))"
    none = subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True)
    assert none.stdout.split() == ["None", "None"]
    check(python, PROGRAM.replace("sys.meta_path.insert(0, Refused())", ""), published)
