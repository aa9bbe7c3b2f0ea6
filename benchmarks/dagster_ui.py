"""What the UI takes to answer when a dataset has many shards: its questions, to the real web server.

A dataset of one-sample shards is built through Dagster; then a `dagster-webserver` on the same
storage is asked what the pages of the UI ask (their GraphQL, cut to what takes the time).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import HERE, Section, Settings, Table, log
from wds_pipeline.defs import keys

_SECONDS_TO_START = 120.0
_PATH = {"path": ["bench", keys.SHARDS]}
_STATUSES = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
  partitionKeys assetPartitionStatuses { ... on DefaultPartitionStatuses {
    materializedPartitions failedPartitions unmaterializedPartitions } } } } }"""
_ONE = """query($key: AssetKeyInput!, $partitions: [String!]) { assetOrError(assetKey: $key) {
  ... on Asset { assetMaterializations(partitions: $partitions, limit: 1) { timestamp
    metadataEntries { label ... on IntMetadataEntry { intValue }
      ... on MarkdownMetadataEntry { mdStr } } } } } }"""
_PLOT = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 120) { timestamp partition
    metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"""
_LINEAGE = """{ assetNodes { id groupName staleStatus
  partitionStats { numMaterialized numPartitions numFailed }
  assetMaterializations(limit: 1) { timestamp } } }"""


def run(settings: Settings) -> Section:
    shards = 1000 if settings.quick else 10_000
    folder = settings.folder / "dagster-ui"
    environment = _project(folder, shards)
    log(f"{shards} shards")
    start = time.perf_counter()
    command = [sys.executable, "-m", "dagster", "job", "execute"]
    command += ["-m", "wds_pipeline.definitions", "-j", keys.job_name("bench")]
    subprocess.run(command, cwd=HERE, env=environment, capture_output=True, check=True)
    built = time.perf_counter() - start
    table = Table(f"{shards:,} shards of one sample", ["the UI's question", "s", "answer, kB"])
    partition = {"key": _PATH, "partitions": ["train-000007"]}
    with _web_server(folder, environment) as url:
        for what, query, variables in (
            ("lineage: all assets with badges", _LINEAGE, {}),
            ("list of partitions with statuses", _STATUSES, {"key": _PATH}),
            ("one partition's page", _ONE, partition),
            ("plots of the last 120 materializations", _PLOT, {"key": _PATH}),
        ):
            took, size = _ask(url, query, variables, settings.rounds)
            table.rows.append([what, took, size / 1000])
    size = sum(path.stat().st_size for path in (folder / "home").rglob("*") if path.is_file())
    notes = [
        f"The build: {built:.1f} s with the start of Dagster, {built / shards * 1000:.1f} ms a shard. "
        f"Dagster's storage after it: {size / 1e6:.0f} MB, {size / shards / 1000:.1f} kB a shard. "
        "Each question was asked several times; the best counts."
    ]
    return Section("The UI over many shards", [table], notes)


def _project(folder: Path, shards: int) -> dict[str, str]:
    """A dataset, and the environment in which Dagster finds it."""
    for number in range(shards):
        path = folder / "raw" / f"{number // 1000:03d}" / f"{number:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"caption {number}")
    for name in ("home", "datasets"):
        (folder / name).mkdir()
    (folder / "home/dagster.yaml").write_text((HERE / "dagster.yaml").read_text())
    values: dict[str, Any] = {
        "name": "bench",
        "source": {"url": str(folder / "raw")},
        "destination": {"url": str(folder / "published")},
        "shards": {"max_samples": 1},
    }
    (folder / "datasets/bench.yaml").write_text(yaml.safe_dump(values))
    return {
        **os.environ,
        "DAGSTER_HOME": str(folder / "home"),
        "WDS_PIPELINE_DATASETS": str(folder / "datasets"),
    }


@contextlib.contextmanager
def _web_server(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "dagster_webserver", "-m", "wds_pipeline.definitions"]
    command += ["-h", "127.0.0.1", "-p", port]
    with (folder / "webserver.log").open("wb") as output:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}/graphql"
    try:
        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            with contextlib.suppress(OSError):
                _ask(url, "{ version }", {}, 1)
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "webserver.log").read_text()[-4000:])
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _ask(url: str, query: str, variables: dict[str, Any], rounds: int) -> tuple[float, int]:
    """The seconds of the quickest answer, and its bytes."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    times = []
    for _ in range(rounds):
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            data = answer.read()
        times.append(time.perf_counter() - start)
        if "errors" in json.loads(data):
            raise RuntimeError(data[:4000])
    return min(times), len(data)
