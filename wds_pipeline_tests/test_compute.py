"""The door to workers: all results, bounded look-ahead, and no worker that outlives its driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wds_pipeline.compute import _run, open_pool, run_all, worker_count
from wds_pipeline.config import ComputeConfig
from wds_pipeline.errors import SourceChanged, WorkerError

THREADS = ComputeConfig(kind="threads", workers=2)
PROCESSES = ComputeConfig(kind="processes", workers=2)
kinds = pytest.mark.parametrize("config", [THREADS, PROCESSES], ids=["threads", "processes"])


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise SourceChanged("some/file", "gone")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def pid(_: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def hold_a_temporary(folder: str) -> None:
    """Works as packing does: writes, and would remove what it wrote if it failed."""
    from wds_pipeline.storage import open_storage

    with open_storage(folder).create("file") as file:
        file.write(b"x")
        Path(folder, f"pid-{os.getpid()}").touch()
        time.sleep(60)


def alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def test_worker_count() -> None:
    assert worker_count(ComputeConfig(workers=3)) == 3
    assert worker_count(ComputeConfig()) == len(os.sched_getaffinity(0))


@kinds
def test_every_job_has_its_result(config: ComputeConfig) -> None:
    with open_pool(config) as pool:
        assert sorted(run_all(pool, square, range(200))) == [(n, n * n) for n in range(200)]
        assert list(run_all(pool, square, [])) == []


def test_jobs_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with open_pool(THREADS) as pool:
        results = run_all(pool, square, jobs(), ahead=8)
        next(results)
        assert len(drawn) <= 8
        assert len(list(results)) == 99


@kinds
def test_an_error_arrives_as_it_was(config: ComputeConfig) -> None:
    with pytest.raises(SourceChanged) as caught, open_pool(config) as pool:
        list(run_all(pool, fail_at_three, range(10)))
    assert (caught.value.path, caught.value.reason) == ("some/file", "gone")


def test_a_worker_that_dies_is_explained() -> None:
    message = r"a worker process died.*sealed so far are kept.*lower"
    with pytest.raises(WorkerError, match=message), open_pool(PROCESSES) as pool:
        list(run_all(pool, die_at_three, range(10)))


def test_threads_of_the_caller_do_not_matter() -> None:
    """Plain fork under threads may hang; workers come from a clean server."""
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with open_pool(PROCESSES) as pool:
            assert len(list(run_all(pool, square, range(20)))) == 20
    finally:
        stop.set()


def test_leaving_by_an_error_ends_the_workers_and_their_temporaries(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_pool(PROCESSES) as pool:
        for _ in range(4):
            pool.submit(_run, hold_a_temporary, str(tmp_path))
        assert wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        raise KeyboardInterrupt
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert wait_until(lambda: not any(map(alive, workers)))
    assert len(list(tmp_path.glob("pid-*"))) == 2, "work that had not begun was dropped"
    assert not list(tmp_path.glob(".tmp-*"))


DRIVER = """
import sys
from wds_pipeline.compute import open_pool, run_all
from wds_pipeline_tests.test_compute import PROCESSES, hold_a_temporary
if __name__ == "__main__":
    with open_pool(PROCESSES) as pool:
        list(run_all(pool, hold_a_temporary, [sys.argv[1]] * 2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_their_driver(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    folder = tmp_path / "work"
    folder.mkdir()
    root = str(Path(__file__).parents[1])
    driver = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": root},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: len(list(folder.glob("pid-*"))) == 2, 30)
        workers = [int(path.name[4:]) for path in folder.glob("pid-*")]
        os.kill(driver.pid, how)
        assert driver.wait(timeout=10) != 0
        assert wait_until(lambda: not any(map(alive, workers))), "a worker lives on"
        assert not list(folder.glob(".tmp-*"))
    finally:
        driver.kill()
