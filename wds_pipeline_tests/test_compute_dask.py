"""Dask for real: a scheduler and workers in processes of their own, some of which are killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import dask
import psutil
import pytest
from distributed import Client

from wds_pipeline.compute import open_pool, pool_size, run_all, worker_count
from wds_pipeline.config import ComputeConfig
from wds_pipeline.defs.location import build_defs
from wds_pipeline.errors import ConfigError, SourceChanged, WorkerError
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dask_cluster import NO_PACKAGE, OTHER_VERSION, ROOT, Cluster, kill, tasks
from wds_pipeline_tests.test_compute import alive, fail_at_three, square, wait_until

pytestmark = pytest.mark.xdist_group("dask")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One scheduler for all tests; each starts the workers that it needs."""
    cluster = Cluster(
        tmp_path_factory.mktemp("dask"),
        {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"},
    )
    cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(scheduler: Cluster) -> Iterator[Cluster]:
    """The scheduler, without workers."""
    with Client(scheduler.address, set_as_default=False) as client:
        yield scheduler
        for process in scheduler.processes[1:]:
            kill(process)
        assert wait_until(lambda: not client.nthreads(), 20), "a worker lives on"
    scheduler.forget()


def wait_for(cluster: Cluster, workers: int) -> None:
    """Until the scheduler has so many workers."""
    with Client(cluster.address, set_as_default=False) as client:
        assert wait_until(lambda: len(client.nthreads()) == workers, 30), cluster.log()


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Starts some work; its result, or what it raised, will be in the list."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def shards_of(project: Project) -> dict[str, bytes]:
    """By name, without the unfinished ones that killed workers left."""
    files = project.destination.glob("shards/[!.]*.tar")
    return {path.name: path.read_bytes() for path in files}


def die(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


class Poison:
    """A job that is about a shard."""

    name = "train-000007-abc"


def die_of(job: Poison) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def mark_and_wait(folder: str) -> None:
    Path(folder, f"pid-{os.getpid()}").touch()
    time.sleep(60)


# --- building ------------------------------------------------------------------------------------


@pytest.fixture
def plain(project: Project, tmp_path: Path) -> Project:
    """What threads make of the same sources."""
    project.options["split"] = {"train": 0.7, "val": 0.3}
    project.add(0, 30)
    (tmp_path / "plain").mkdir()
    other = project.copy(tmp_path / "plain")
    other.build()
    assert len(shards_of(other)) > 4
    return other


def test_a_build_survives_its_workers(cluster: Cluster, project: Project, plain: Project) -> None:
    """One is killed in the middle of packing, then all that are left, and a new one joins."""
    first, second = cluster.start_worker(), cluster.start_worker(nanny=True)
    wait_for(cluster, 2)
    cluster.hold()
    thread, found = in_background(lambda: project.build(compute=cluster.config.model_dump()))
    assert wait_until(lambda: len(cluster.held()) == 2, 30), (found, cluster.log())
    assert not list(project.destination.glob("shards/*.seal.json")), "none is sealed yet"
    assert len(project.stray()) == 2
    kill(first)
    kill(second)
    cluster.forget()
    wait_for(cluster, 0)
    cluster.start_worker()
    assert wait_until(lambda: cluster.held(), 30), (found, cluster.log())
    cluster.release()
    thread.join(60)
    (result,) = found
    assert getattr(result, "status", result) == "published"
    assert len(cluster.packed()) == len(shards_of(project)), "each shard was packed once"
    assert shards_of(project) == shards_of(plain)
    assert project.published() == project.raw()


@pytest.mark.parametrize("where", ["middle", "sealed"])
def test_losing_one_worker_of_two(
    cluster: Cluster, project: Project, plain: Project, where: str
) -> None:
    """In the middle of packing, or when the shard is sealed and nobody has been told of it yet."""
    first, _ = cluster.start_worker(), cluster.start_worker(nanny=True)
    wait_for(cluster, 2)
    cluster.hold(where)
    thread, found = in_background(lambda: project.build(compute=cluster.config.model_dump()))
    assert wait_until(lambda: len(cluster.held()) == 2, 30), (found, cluster.log())
    kill(first)
    cluster.release()
    thread.join(60)
    assert getattr(found[0], "status", found[0]) == "published"
    assert len(cluster.packed()) == len(shards_of(project)), "each shard was packed once"
    assert shards_of(project) == shards_of(plain)
    assert worker_count(cluster.config) == 1


def test_a_run_of_dagster_on_a_cluster(
    cluster: Cluster, project: Project, plain: Project, tmp_path: Path
) -> None:
    """Its file says threads; this run goes to the cluster."""
    cluster.start_worker()
    wait_for(cluster, 1)
    job = build_defs([project.config()]).resolve_job_def("small_build")
    choice = {"compute": {"kind": "dask", "address": cluster.address}}
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        assert job.execute_in_process(run_config=choice, instance=instance).success
    assert len(cluster.packed()) == len(shards_of(project)), "by the worker"
    assert shards_of(project) == shards_of(plain)


# --- what goes wrong -----------------------------------------------------------------------------


def test_errors_cancel_what_waits_and_leave_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_worker()
    wait_for(cluster, 1)
    with pytest.raises(SourceChanged) as caught, open_pool(cluster.config) as pool:
        assert pool_size(pool) == 1
        assert sorted(run_all(pool, square, range(200))) == [(n, n * n) for n in range(200)]
        list(run_all(pool, fail_at_three, range(10)))
    assert (caught.value.path, caught.value.reason) == ("some/file", "gone")
    with Client(cluster.address, set_as_default=False) as client:
        assert wait_until(lambda: client.run_on_scheduler(tasks) == 0)
        with pytest.raises(KeyboardInterrupt), open_pool(cluster.config) as pool:
            for _ in range(5):
                pool.submit(mark_and_wait, str(tmp_path))
            assert wait_until(lambda: list(tmp_path.glob("pid-*")))
            raise KeyboardInterrupt
        assert wait_until(lambda: client.run_on_scheduler(tasks) == 0)
        assert len(client.nthreads()) == 1, "it is the user's"
    assert len(list(tmp_path.glob("pid-*"))) == 1, "work that had not begun was dropped"


def test_no_workers_for_too_long(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"distributed.scheduler.no-workers-timeout": "100ms"}
    with dask.config.set(settings), pytest.raises(WorkerError) as caught:  # noqa: SIM117
        with open_pool(cluster.config) as pool:
            list(run_all(pool, square, range(10)))
    assert f"{cluster.address}: no workers for 0.1 s; the shards sealed so far" in str(caught.value)
    assert "Start workers and build again" in str(caught.value)
    assert "no workers; waiting up to 0.1 s" in caplog.text


def test_a_job_that_kills_its_workers(cluster: Cluster) -> None:
    for _ in range(2):
        cluster.start_worker()
    wait_for(cluster, 2)
    with pytest.raises(WorkerError) as caught, open_pool(cluster.config) as pool:
        list(run_all(pool, die_of, [Poison()]))
    assert "train-000007-abc: 2 workers died one after the other" in str(caught.value)
    assert not caught.value.passing


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (OTHER_VERSION, r"wds_pipeline: found 0\.0\.1, expected .*, at tcp://127"),
        (NO_PACKAGE, r"wds_pipeline: found none that this one can use \(.*No module named"),
    ],
    ids=["another version", "none"],
)
def test_a_worker_that_differs(cluster: Cluster, site: str, expected: str) -> None:
    cluster.start_worker(site=site)
    wait_for(cluster, 1)
    with pytest.raises(WorkerError, match=expected) as caught, open_pool(cluster.config):
        pytest.fail("not before anything runs")
    assert not caught.value.passing


def test_a_worker_that_differs_and_comes_late(cluster: Cluster) -> None:
    with pytest.raises(WorkerError, match=r"found 0\.0\.1.* joined"):  # noqa: SIM117
        with open_pool(cluster.config) as pool:
            cluster.start_worker(site=OTHER_VERSION)
            list(run_all(pool, square, range(3)))


def test_the_scheduler_goes_away(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(tmp_path)
    scheduler = cluster.start()
    try:
        with pytest.raises(WorkerError, match="the connection to the scheduler was lost"):  # noqa: SIM117
            with open_pool(cluster.config) as pool:
                pool.submit(square, 1)
                kill(scheduler)
                list(run_all(pool, square, range(3)))
    finally:
        cluster.close()
    assert "Traceback" not in capfd.readouterr().err


def test_nobody_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # which never says a word
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        message = f"compute.address: {address}: no Dask scheduler answered within"
        config = ComputeConfig(kind="dask", address=address)
        with pytest.raises(WorkerError, match=message), open_pool(config):
            pytest.fail("there is none")
    assert capfd.readouterr().err == ""


# --- which cluster -------------------------------------------------------------------------------


def test_what_dask_itself_is_configured_for(cluster: Cluster) -> None:
    anywhere = ComputeConfig(kind="dask")
    with dask.config.set({"scheduler-address": cluster.address}), open_pool(anywhere) as pool:
        assert pool_size(pool) == 0
    nonsense = dask.config.set({"scheduler-address": "nonsense://x"})
    message = r"DASK_SCHEDULER_ADDRESS\): found 'nonsense://x'"
    with nonsense, pytest.raises(ConfigError, match=message), open_pool(anywhere):
        pass
    message = "expected `address: tcp://host:8786`.*`workers: N`.*DASK_SCHEDULER_ADDRESS"
    with pytest.raises(ConfigError, match=message), open_pool(anywhere):
        pass


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r"pip install 'wds-pipeline\[dask\]'"
    config = ComputeConfig(kind="dask", workers=1)
    with pytest.raises(ConfigError, match=message), open_pool(config):
        pass


def test_a_cluster_of_our_own() -> None:
    """Three deaths of the same job are too many; nothing is left."""
    before = set(children())
    config = ComputeConfig(kind="dask", workers=1)
    assert worker_count(config) == 1
    with pytest.raises(WorkerError, match="a job: 3 workers died"), open_pool(config) as pool:
        assert pool_size(pool) == 1
        assert sorted(run_all(pool, square, range(20))) == [(n, n * n) for n in range(20)]
        list(run_all(pool, die, [1]))

    wait_until(lambda: children().keys() <= before, 60)
    left = [command for pid, command in children().items() if pid not in before]
    assert not left


def children() -> dict[int, str]:
    """What runs below this process, but for the servers that `multiprocessing` keeps until its end."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            zombie = child.status() == psutil.STATUS_ZOMBIE
            if not zombie and not re.search(
                r"multiprocessing\.(resource_tracker|forkserver)", command
            ):
                found[child.pid] = command
    return found


DRIVER = """
import sys
from wds_pipeline.compute import open_pool, run_all
from wds_pipeline.config import ComputeConfig
from wds_pipeline_tests.test_compute_dask import mark_and_wait
if __name__ == "__main__":
    with open_pool(ComputeConfig(kind="dask", workers=1)) as pool:
        list(run_all(pool, mark_and_wait, [sys.argv[1]]))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_cluster_of_our_own_ends_with_its_driver(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert wait_until(lambda: list(tmp_path.glob("pid-*")), 30)
        (worker,) = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
        os.killpg(driver.pid, how) if how == signal.SIGINT else driver.kill()
        _, errors = driver.communicate(timeout=20)
        assert driver.returncode != 0
        assert wait_until(lambda: not alive(worker)), "a worker lives on"
        if how == signal.SIGINT:
            assert errors.rstrip().endswith("KeyboardInterrupt")
            assert errors.count("Traceback") == 1, errors
    finally:
        driver.kill()
