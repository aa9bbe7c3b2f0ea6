"""Killed at any point: readers see a whole version, the next build goes on, nothing is done twice.

Most of it runs in a process of its own (`python -m …test_build_crash FOLDER CASE SECONDS`), which
forks a build for every single point at which it can die: before each call that changes the disk,
and within each write.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wds_pipeline.dataset import report_html, retain, seal, version
from wds_pipeline_tests.conftest import Project

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"shards": {"max_bytes": 30_000}}
MIXED = "wds_pipeline_tests.dataset.some_transforms:mixed"
# Whatever changes the disk goes through one of these.
CALLS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "rmdir", "utime")
SECONDS = float(os.environ.get("WDS_PIPELINE_TEST_SECONDS", 8))


def options(case: str) -> dict[str, Any]:
    """With transforms, some samples are rejected, left out, or become several."""
    return {**OPTIONS, "transforms": [MIXED]} if case == "transforms" else OPTIONS


def prepare(folder: Path, case: str) -> Project:
    """A project, and the state that the build which dies finds."""
    project = Project(folder / "start", options(case))
    project.add(0, 14)
    project.write("a/0003.png", b"broken")
    project.write("a/0009.json", b"{broken")
    if case != "first":
        project.build()
        project.add(50, 5)
        project.write("a/0052.png", b"broken as well")
        project.write("a/0001.txt", "edited")
        (project.source / "a/0005.txt").unlink()
    if case == "repair":
        project.build()
        for shard in project.latest().shards[:2]:
            os.truncate(project.destination / shard.path, 777)
    return project


def at(folder: Path, start: Project) -> Project:
    """The state of the start in another destination, on the same source; with its hard links."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / "raw").symlink_to(start.source)
    if start.destination.exists():
        subprocess.run(["cp", "-a", start.destination, folder / "published"], check=True)
    return Project(folder, start.options)


def die_at(point: int, counted: list[str]) -> None:
    """From now on, the process dies at the `point`-th call; a write is half done by then."""

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return real(*arguments, **named)
            if len(counted) == point:
                if name == "write":
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os._exit(9)
            counted.append(name + ":" + os.path.basename(str(arguments[-1]))[-40:])
            if name == "fsync":  # a killed process loses nothing of what it wrote
                return None
            return real(*arguments, **named)

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)


def forked(work: Callable[[], Any]) -> tuple[int, str]:
    """Runs in a child; returns its exit code and, if it failed, why."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            work()
        except BaseException:
            import traceback

            os.write(writer, traceback.format_exc().encode()[-20_000:])
            code = 1
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def state(project: Project) -> Any:
    """What a version is, but for its time and its author."""
    manifest = project.latest()
    tables = [
        version.read_table(project.storage, manifest, name).to_pylist()
        for name in (version.LEDGER, version.QUARANTINE, version.INVENTORY)
    ]
    shards = [(shard.name, shard.digest, shard.samples) for shard in manifest.shards]
    return manifest.version, manifest.quarantined, shards, tables


def check_readable(project: Project, before: int, after: int, damaged: bool) -> int:
    """A reader sees one version, whole: shards, digests, and the files beside the manifest."""
    manifest = version.latest(project.storage)
    if manifest is None:
        assert before == 0
        return 0
    assert manifest.version in (before, after)
    if not damaged:
        assert project.published(manifest)
    for name in (version.LEDGER, version.QUARANTINE, version.INVENTORY, version.REPORT_JSON):
        assert version.read_file(project.storage, manifest, name)
    return manifest.version


def sealed(project: Project) -> dict[str, tuple[int, int]]:
    """Inode and time of each sealed shard's tar."""
    folder = project.destination / seal.FOLDER
    found = {}
    for path in folder.glob("*" + seal.SEAL) if folder.exists() else ():
        tar = path.with_name(path.name.removesuffix(seal.SEAL) + seal.TAR)
        if tar.exists() and tar.stat().st_size == json.loads(path.read_bytes())["bytes"]:
            found[tar.name] = (tar.stat().st_ino, tar.stat().st_mtime_ns)
    return found


def one_point(here: Project, point: int, wanted: Any, case: str) -> bool:
    """Dies at a point, reads, builds again, compares; False when the build had no such point."""

    def dying() -> None:
        die_at(point, [])
        here.build()

    code, text = forked(dying)
    assert code in (0, 9), (point, text)

    def check() -> None:
        os.fsync = lambda fd: None  # type: ignore[assignment]
        before = wanted[0] if case == "repair" else wanted[0] - 1
        seen = check_readable(here, before, wanted[0], case == "repair")
        whole = sealed(here)
        result = here.build()
        assert result.status in ("published", "repaired") or seen == wanted[0]
        assert state(here) == wanted, "not what an undisturbed build gives"
        after = sealed(here)
        names = {shard.name + seal.TAR for shard in here.latest().shards}
        again = {name for name in whole.keys() & names if whole[name] != after[name]}
        assert not again, f"packed twice: {again}"
        here.published()
        assert here.build().status == "unchanged"
        for path, shard in view(here):
            assert os.path.samefile(here.destination / path, here.destination / shard.path)
        # What dying left is known as garbage, and nothing else is.
        found = retain.find_garbage(here.storage, here.config().retention, grace=-1)
        retain.collect(here.storage, found, grace=-1)
        assert here.stray() == []
        assert not list(here.destination.glob("versions/*/build-*/*"))
        left = {path.name.partition(".")[0] for path in (here.destination / "shards").iterdir()}
        kept = [version.read(here.storage, n, "") for n in version.list_versions(here.storage)]
        assert left == {shard.name for manifest in kept for shard in manifest.shards}
        assert state(here) == wanted
        here.published()

    problem, text = forked(check)
    assert problem == 0, f"point {point}:\n{text}"
    return code == 9


def view(project: Project) -> Any:
    from wds_pipeline.dataset.view import view_names

    return view_names(project.latest())


def warm(project: Project, modules: Path) -> None:
    """Builds once, to see what is imported on the way."""
    project.build()
    modules.write_text(json.dumps([name for name in sys.modules if name != "__main__"]))


def main(folder: Path, case: str, seconds: float) -> None:
    modules = folder / "modules.json"
    # This process forks, so it never starts a thread: it never builds.
    code, text = forked(lambda: prepare(folder, case))
    assert code == 0, text
    start = Project(folder / "start", options(case))
    warmed = at(folder / "warm", start)
    code, text = forked(lambda: warm(warmed, modules))
    assert code == 0, text
    for name in json.loads(modules.read_text()):  # once, and not in each child
        with suppress(ImportError):
            importlib.import_module(name)
    Image.init()
    report_html._template()
    calls = folder / "calls.json"
    done = at(folder / "done", start)

    def undisturbed() -> None:
        counted: list[str] = []
        die_at(-1, counted)
        done.build()
        calls.write_text(json.dumps(counted))
        (folder / "wanted.json").write_text(repr(state(done)))

    code, text = forked(undisturbed)
    assert code == 0, text
    wanted = eval((folder / "wanted.json").read_text())
    points = json.loads(calls.read_text())
    # Every point if time allows; first those about the commit, then the others in a random order.
    commit = [n for n, call in enumerate(points) if "manifest.json" in call]
    near = {n for each in commit for n in range(each - 8, each + 12) if 0 <= n < len(points)}
    others = [n for n in range(len(points) + 1) if n not in near]
    random.Random(1).shuffle(others)
    end = time.monotonic() + seconds
    tried = 0
    for point in [*sorted(near), *others]:
        if tried >= max(20, len(near)) and time.monotonic() > end:
            break
        here = at(folder / "here", start)
        died = one_point(here, point, wanted, case)
        assert died == (point < len(points)), point
        tried += 1
    print(json.dumps({"points": len(points), "tried": tried, "near": len(near)}))


@pytest.mark.parametrize("case", ["first", "incremental", "repair", "transforms"])
def test_killed_at_every_point(tmp_path: Path, case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path), case, str(SECONDS)],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["points"] > (40 if case == "repair" else 100)
    assert told["tried"] >= min(20, told["points"])


# ------------------------------------------------------------------------------ real kills of real processes

BUILD = """
import sys
from pathlib import Path
from wds_pipeline_tests.conftest import Project
if __name__ == "__main__":
    print("begin", flush=True)
    project = Project(Path(sys.argv[1]), {"shards": {"max_bytes": 60_000}})
    print(project.build(compute={"kind": "processes", "workers": 2}).status)
"""


def start_build(project: Project) -> subprocess.Popen[str]:
    script = project.folder / "build.py"
    script.write_text(BUILD)
    process = subprocess.Popen(
        [sys.executable, str(script), str(project.folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def workers_of(driver: int) -> list[int]:
    """The pool's workers: children of the fork server, which is a child of the driver."""

    def children(parent: int) -> list[int]:
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(each) for each in text.split()]

    return [worker for child in children(driver) for worker in children(child)]


@pytest.fixture
def large(project: Project) -> Project:
    project.add(0, 300)
    project.write("a/0033.png", b"broken")
    return project


def wait_for_a_shard(project: Project, process: subprocess.Popen[str], count: int) -> None:
    while process.poll() is None:
        if sum(1 for _ in (project.destination / "shards").glob("*.tar")) >= count:
            return
        time.sleep(0.002)


def recover(project: Project) -> None:
    """The next build completes and publishes the source."""
    before = sealed(project)
    assert version.latest(project.storage) is None or project.published()
    project.options = {"shards": {"max_bytes": 60_000}}
    project.build()
    raw = project.raw()
    assert raw.pop("a/0033")
    assert project.published() == raw
    names = {shard.name + seal.TAR for shard in project.latest().shards}
    after = sealed(project)
    assert all(before[name] == after[name] for name in before.keys() & names)


@pytest.mark.parametrize("who", ["worker", "driver"])
@pytest.mark.parametrize("when", [0, 1, 12])
def test_sigkill(large: Project, who: str, when: int) -> None:
    process = start_build(large)
    try:
        wait_for_a_shard(large, process, when)
        if who == "driver":
            process.kill()
            _, errors = process.communicate(timeout=20)
            assert process.returncode == -signal.SIGKILL
        else:
            found: list[int] = []
            while not found and process.poll() is None:
                found = workers_of(process.pid)
            for worker in found[:1]:
                os.kill(worker, signal.SIGKILL)
            _, errors = process.communicate(timeout=20)
            if found and process.returncode:
                assert "WorkerError: a worker process died" in errors
    finally:
        process.kill()
    recover(large)


@pytest.mark.parametrize("to_all", [False, True])
def test_interrupt(large: Project, to_all: bool) -> None:
    """Ctrl-C reaches the whole group; a supervisor's SIGINT only the driver. Both end it soon."""
    process = start_build(large)
    try:
        wait_for_a_shard(large, process, 3)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in errors
        assert "ForkServer" not in errors
    finally:
        process.kill()
    assert large.stray() == []
    recover(large)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
