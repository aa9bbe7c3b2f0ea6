"""`plan` says what a build then asks of its stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from wds_pipeline.dataset.preview import preview
from wds_pipeline.storage import Usage
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

pytestmark = pytest.mark.xdist_group("s3")


def near(estimated: Usage, asked: Usage) -> None:
    """The estimate leaves out what depends on what is found."""
    for name, value in asked.values().items():
        wanted = getattr(estimated, name)
        assert abs(value - wanted) <= max(20 if "bytes" not in name else 500_000, 0.15 * value), (
            name
        )


def test_a_plan_says_what_a_build_asks(rclone_server: S3Server, make_bucket: MakeBucket) -> None:
    project = S3Project(
        rclone_server, make_bucket(rclone_server), destination={"commit": "single_writer"}
    )
    project.add(0, 60)
    config = project.config()
    planned = preview(config).costs
    asked = project.build().costs
    assert asked.source.get == planned.source.get == 180
    assert asked.source.list == planned.source.list
    assert asked.source.bytes_read == planned.source.bytes_read
    near(planned.destination, asked.destination)
    again = project.build().costs
    assert again.source.get == again.destination.put == 0, "nothing changed"
    assert again.destination.requests < 20


def test_the_commands_tell_it(
    rclone_server: S3Server, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    bucket = make_bucket(rclone_server)
    project = S3Project(rclone_server, bucket, destination={"commit": "single_writer"})
    project.add(0, 6)
    values = project.config().model_dump(mode="json", exclude_unset=True)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "prices.yml").write_text("currency: USD\nsource: {get: 1000}\n")
    environment = {**os.environ, "WDS_PIPELINE_DATASETS": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "wds_pipeline.cli", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    priced = run("plan", "small", "--price", str(tmp_path / "prices.yml"))
    assert "source: 2 LIST, 18 GET" in priced
    assert "price: 18 USD (source 18, destination 0)" in priced
    found: dict[str, Any] = json.loads(
        run("plan", "small", "--json", "--price", str(tmp_path / "prices.yml"))
    )
    assert found["costs"]["source"]["get"] == 18
    assert found["price"]["total"] == 18
    built = run("build", "small")
    assert "asked of the stores: source: 2 LIST, 18 GET" in built
    snippet = [line[2:] for line in built.splitlines() if line.startswith("  ")]
    start = snippet.index("import fsspec, webdataset")
    code = "\n".join(snippet[start : start + 5])
    reading = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "AWS_ENDPOINT_URL": rclone_server.endpoint},
        capture_output=True,
        text=True,
        check=False,
    )
    assert reading.returncode == 0, reading.stderr
    assert "raw/a/0000" in reading.stdout or "a/0000" in reading.stdout
