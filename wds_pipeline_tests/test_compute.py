"""The door to workers: all results, bounded look-ahead, and no worker that outlives its driver."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wds_pipeline.compute import open_pool, parcel, run_all, worker_count
from wds_pipeline.compute.processes import run_here
from wds_pipeline.compute.versions import compare
from wds_pipeline.config import ComputeConfig
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    SourceChanged,
    WorkerError,
    may_pass,
)

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


def fail_as_storage_does(_: int) -> None:
    raise DestinationError("away") from TimeoutError()


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
            pool.submit(run_here, hold_a_temporary, str(tmp_path))
        assert wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        raise KeyboardInterrupt
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert wait_until(lambda: not any(map(alive, workers)))
    assert len(list(tmp_path.glob("pid-*"))) == 2, "work that had not begun was dropped"
    assert not list(tmp_path.glob(".tmp-*"))


DRIVER = """
import sys
import textwrap
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


# --- what may be said of workers -----------------------------------------------------------------


def test_an_address_is_a_schedulers() -> None:
    with pytest.raises(ValueError, match="found with `kind: threads`; write `kind: dask`"):
        ComputeConfig(kind="threads", address="tcp://host:8786")
    with pytest.raises(ValueError, match="`address` and `workers` exclude each other"):
        ComputeConfig(kind="dask", address="tcp://host:8786", workers=2)
    with pytest.raises(ValueError, match=r"found 'host:8786'; expected .* tcp://host:8786"):
        ComputeConfig(kind="dask", address="host:8786")
    with pytest.raises(ValueError, match="found '…@host'") as caught:
        ComputeConfig(kind="dask", address="user:hunter2@host")
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]


CLUSTER = ComputeConfig(kind="dask", address="tcp://host:8786")


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        (PROCESSES, {}, PROCESSES),
        (PROCESSES, {"kind": "threads"}, THREADS),
        (PROCESSES, {"kind": None, "workers": 5}, ComputeConfig(workers=5)),
        (PROCESSES, {"kind": "dask"}, ComputeConfig(kind="dask")),
        (PROCESSES, {"kind": "dask", "address": "tcp://host:8786"}, CLUSTER),
        (CLUSTER, {"kind": "threads"}, ComputeConfig(kind="threads")),
        (CLUSTER, {"workers": 2}, ComputeConfig(kind="dask", workers=2)),
        (CLUSTER, {"address": "tls://other:1"}, CLUSTER.model_copy(update={"address": "tls://other:1"})),
    ],
)  # fmt: skip
def test_one_runs_own_choice(
    file: ComputeConfig, given: dict[str, Any], expected: ComputeConfig
) -> None:
    assert file.instead(given, "small") == expected


def test_one_runs_choice_that_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"^small: compute: address: tcp://host:8786 .*run's"):
        PROCESSES.instead({"address": "tcp://host:8786"}, "small")
    with pytest.raises(ConfigError, match=r"^small: compute\.workers: .*greater"):
        PROCESSES.instead({"workers": 0}, "small")


HERE = {"wds_pipeline": "1.0", "python": "3.11.7", "numpy": "2.0", "obstore": "0.5"}


def test_the_same_versions_are_not_spoken_of() -> None:
    assert compare(HERE, {}, "c") == ""
    assert compare(HERE, {"a": dict(HERE), "b": dict(HERE)}, "c") == ""
    assert compare({**HERE, "obstore": None}, {"a": dict(HERE)}, "c") == ""


def test_other_versions_of_what_we_use_are_one_warning() -> None:
    others = {f"w{n}": {**HERE, "numpy": "1.9"} for n in range(7)}
    others["w0"]["python"] = "3.12.1"
    assert compare(HERE, others, "c").splitlines() == [
        "c: other versions than here, which may give other bytes:",
        "  numpy: found 1.9, expected 2.0, at w0, w1, w2, w3, w4 and 2 more",
        "  python: found 3.12.1, expected 3.11.7, at w0",
    ]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({**HERE, "wds_pipeline": "0.9"}, "wds_pipeline: found 0.9, expected 1.0, at w"),
        ({**HERE, "obstore": None}, "obstore: found none, expected 0.5, at w"),
        (ImportError("No module named 'x'"), r"found none .*\(No module named 'x'\), expected 1.0"),
    ],
)
def test_workers_that_cannot_do_our_work(found: Any, line: str) -> None:
    with pytest.raises(WorkerError, match=line) as caught:
        compare(HERE, {"ok": HERE, "w": found}, "c")
    assert not may_pass(caught.value), "trying again would not help"


def test_a_job_of_another_version_is_not_begun() -> None:
    version, size, data = parcel.wrap(square, 3)
    assert parcel.run(version, size, data) == 9
    assert parcel.run("0.0.1", size, data) == parcel.OtherVersion(version)


def test_an_error_at_a_worker_elsewhere_is_a_result() -> None:
    failed = parcel.run(*parcel.wrap(fail_as_storage_does, 1))
    assert isinstance(failed, parcel.Failed)
    assert str(failed.error) == "away"
    again = pickle.loads(pickle.dumps(failed.error))
    assert may_pass(again), "though its cause stays behind"


@pytest.mark.parametrize("page", ["workers", "k8s_job_executor"])
def test_the_how_tos_examples_are_valid(page: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / "how-to" / f"{page}.md").read_text()
    found = [yaml.safe_load(each) for each in re.findall(r"(?s)```yaml\n(.*?)```", text)]
    examples = [each["compute"] for each in found if "compute" in each]
    examples += [yaml.safe_load(each) for each in re.findall(r"compute: (\{kind: [^`{}]*\})", text)]
    assert len(examples) > 3 or page != "workers"
    for each in examples:
        ComputeConfig.model_validate(each)
    for code in re.findall(r"(?s)```python\n(.*?)```", text):
        compile(textwrap.dedent(code), page, "exec")
