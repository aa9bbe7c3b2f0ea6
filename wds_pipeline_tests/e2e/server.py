"""Dagster's web server and daemon as they run on a machine: processes of their own, a home of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil
import yaml

PROJECT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds: for a machine that is busy with other things
# How often the daemons look: a test need not wait for half a minute to see what a daemon does.
QUICK = {
    "run_queue": {"dequeue_interval_seconds": 1},
    "run_monitoring": {"poll_interval_seconds": 2},
}
_HOME_MARK = "WDS_PIPELINE_TEST_HOME"  # in the environment of all that a server has started
Found = TypeVar("Found")


def wait_for(
    what: str, look: Callable[[], Found | None], *, seconds: float = PATIENCE, every: float = 0.2
) -> Found:
    """What `look` returns as soon as that is true. Raises AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}; found {found!r}")
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        number: int = listener.getsockname()[1]
        return number


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `more`, section by section."""
    both = dict(base)
    for key, value in more.items():
        both[key] = merged(both.get(key, {}), value) if isinstance(value, dict) else value
    return both


class Server:
    """A web server and a daemon over one home. Both load the project's own workspace.yaml."""

    def __init__(
        self,
        home: Path,
        datasets: Path,
        *,
        project: Path = PROJECT,
        settings: Mapping[str, Any] = QUICK,
    ) -> None:
        self.home = home
        self.port = free_port()
        self._project = project
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        home.mkdir(parents=True, exist_ok=True)
        self._output = home / "output"  # what is in `logs` is removed, for it is Dagster's
        self._output.mkdir(exist_ok=True)
        own = yaml.safe_load((project / "dagster.yaml").read_text())
        (home / "dagster.yaml").write_text(yaml.safe_dump(merged(own, settings)))
        self._environment = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "WDS_PIPELINE_DATASETS": str(datasets),
            "PYTHONUNBUFFERED": "1",
            _HOME_MARK: str(home),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts both, and waits until they answer."""
        # Two programs that make the tables of one new SQLite home at once disturb each other.
        with dg.DagsterInstance.from_config(str(self.home)):
            pass
        self.start_daemon()
        port = str(self.port)
        self._start("dagster-webserver", "-h", "127.0.0.1", "-p", port, "-w", "workspace.yaml")
        wait_for("the web server", self._answers)

    def start_daemon(self) -> None:
        self._start("dagster-daemon", "run", "-w", "workspace.yaml")

    def kill_daemon(self, *, with_its_runs: bool = False) -> None:
        """As a machine that has no memory left does it: at once, and without a word.

        The daemon's code server and the runs that it started live on, unless they are killed too.
        """
        daemon = self._processes.pop("dagster-daemon")
        if with_its_runs:
            _kill(psutil.Process(daemon.pid).children(recursive=True))
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        """Ends both and all that they started."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
        _kill(self.processes())

    def processes(self, word: str = "") -> list[psutil.Process]:
        """What runs on this home and has this word in its command line."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get(_HOME_MARK) == str(self.home)
                if ours and word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def logs(self, characters: int = 6_000) -> str:
        """The last of what each process wrote."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-characters:]}"
            for path in sorted(self._output.iterdir())
        )

    def _start(self, program: str, *arguments: str) -> None:
        path = Path(sys.executable).parent / program
        with (self._output / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [path, *arguments],
                cwd=self._project,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        for program, process in self._processes.items():
            if process.poll() is not None:
                raise AssertionError(f"{program} ended with {process.returncode}\n{self.logs()}")
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/server_info", timeout=5):
            return True
        return False


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
