"""The training example: trains on the demo, stops, goes on with other workers, in the same order."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wds_pipeline import demo
from wds_pipeline_tests.conftest import Project

EXAMPLE = Path(__file__).parents[2] / "examples" / "stop_and_resume.py"
FIELDS = {"jpg": ["jpg", "jpeg", "png", "webp"], "txt": ["txt"], "json": ["json"]}


def test_it_trains_stops_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    if not EXAMPLE.exists():
        pytest.skip("an installed package has no examples beside it")
    demo.generate(tmp_path / "raw", samples=400)
    options = {
        "samples": {
            "fields": FIELDS,
            "required": list(FIELDS),
            "on_missing": "quarantine",
            "on_invalid": "quarantine",
        },
        "split": {"train": 0.9, "val": 0.1},
        "shards": {"max_samples": 50},
        "verify": {"level": "decode"},
    }
    project = Project(tmp_path, options)
    assert project.build().status == "published"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--url", str(project.destination), "--batch-size", "16"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped after step 27, with 2 workers" in done.stdout
    assert "goes on at step 27 with 0 workers" in done.stdout
    assert "goes on at step 61 with 3 workers" in done.stdout
    assert re.search(r"both trained on the same [\d,]+ samples in the same order", done.stdout)
    right = [int(each) for each in re.findall(r"(\d+)% are right", done.stdout)]
    assert len(right) == 2 and min(right) > 40  # of seven scenes: it learns
