"""A Dask scheduler and workers in processes of their own, and what is done at the workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from wds_pipeline.config import ComputeConfig
from wds_pipeline_tests.test_compute import alive, wait_until

ROOT = Path(__file__).parents[1]
_HOLD = "WDS_TEST_HOLD"

# Read by Python itself when a process starts: another release of the package, or none.
OTHER_VERSION = "import wds_pipeline\nwds_pipeline.__version__ = '0.0.1'\n"
NO_PACKAGE = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "wds_pipeline":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Nothing())
"""


@dataclass
class Cluster:
    """A scheduler, and the workers that were started beside it."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    @property
    def config(self) -> ComputeConfig:
        return ComputeConfig(kind="dask", address=self.address)

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the scheduler."""
        file = self.folder / "scheduler.json"
        scheduler = self._run(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)
        )
        assert wait_until(lambda: self._read(file), 30), self.log()
        return scheduler

    def _read(self, file: Path) -> str:
        try:
            self.address = json.loads(file.read_text())["address"]
        except (FileNotFoundError, ValueError):
            return ""
        return self.address

    def start_worker(self, *, nanny: bool = False, site: str = "") -> subprocess.Popen[bytes]:
        """Starts a worker of one thread; `site` is what its Python does first."""
        number = len(self.processes)
        folder = self.folder / f"site-{number}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(site)
        return self._run(
            "worker", self.address, "--nthreads", "1", "--host", "127.0.0.1",
            "--nanny" if nanny else "--no-nanny", "--name", f"worker-{number}",
            "--local-directory", str(self.folder / "scratch"), "--death-timeout", "60",
            "--preload", "wds_pipeline_tests.dask_cluster" if not site else "",
            path=folder,
        )  # fmt: skip

    def _run(self, what: str, *arguments: str, path: Path = ROOT) -> subprocess.Popen[bytes]:
        options = [each for each in arguments if each]
        if options[-1] == "--preload":
            options.pop()
        environment = {
            **os.environ,
            **self.environment,
            "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
            _HOLD: str(self.folder),
        }
        with (self.folder / f"{what}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", "--no-dashboard", *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    # Workers that stop in the middle of packing.

    def hold(self, where: str = "middle") -> None:
        """From now on, workers stop in the middle of packing a shard, or when it is `sealed`."""
        (self.folder / f"hold-{where}").touch()

    def held(self) -> list[int]:
        """The ids of the processes that stopped."""
        return [int(path.name[5:]) for path in self.folder.glob("held-*")]

    def release(self) -> None:
        for path in self.folder.glob("hold-*"):
            path.unlink()

    def packed(self) -> list[str]:
        """A name for each time that a shard's last byte was written."""
        return sorted(path.name for path in self.folder.glob("packed-*"))

    def forget(self) -> None:
        for path in [*self.folder.glob("held-*"), *self.folder.glob("packed-*")]:
            path.unlink()

    def close(self) -> None:
        for process in self.processes:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started."""
    found = []
    if process.poll() is None:
        found = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.kill()
    for pid in found:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)


def dask_setup(worker: Any) -> None:
    """Dask calls this in each worker that preloads this module."""
    from wds_pipeline.dataset import pack, tar

    folder = Path(os.environ[_HOLD])
    end, run, count = tar.end, pack.run, 0

    def hold(where: str) -> None:
        while (folder / f"hold-{where}").exists():
            (folder / f"held-{os.getpid()}").touch()
            time.sleep(0.02)

    def held_end(position: int) -> bytes:
        nonlocal count
        hold("middle")
        count += 1
        (folder / f"packed-{os.getpid()}-{count}").touch()
        return end(position)

    def held_run(job: pack.PackJob) -> pack.Packed:
        done = run(job)
        hold("sealed")
        return done

    tar.end, pack.run = held_end, held_run


def tasks(dask_scheduler: Any) -> int:
    """How many tasks a scheduler knows; runs there."""
    return len(dask_scheduler.tasks)
