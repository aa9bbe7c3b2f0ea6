"""Reading needs neither Dagster nor torch: it goes on where they cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys

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
    "webdataset": sum(1 for _ in dataset.webdataset().decode("pil")),
    "loaded": sorted(set(sys.modules) & {"dagster", "torch"}),
}
print(json.dumps(found))
"""


def test_without_them(published: Project) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(published.destination)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    keys = [key for key, _ in stored(published, "train")]
    assert found.pop("selected") > 0
    assert found == {
        "all": keys,
        "one": keys[3],
        "by key": 4,
        "webdataset": len(keys),
        "loaded": [],
    }
