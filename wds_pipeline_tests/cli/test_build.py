"""plan, build, repack: what they say, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline_tests.cli.conftest import TRACEBACK, Cli


def test_the_plan_says_what_the_build_then_does(cli: Cli) -> None:
    planned = cli.json("plan", "small")
    assert planned["outcome"] == "publish"
    assert planned["changed"]
    assert not cli.project.destination.exists()
    done = cli.json("build", "small")
    assert done["status"] == "published"
    assert done["packed"] == len(planned["shards"])
    assert done["causes"] == {each["partition"]: each["cause"] for each in planned["shards"]}
    assert planned["bytes_added"] == planned["bytes_written"]


def test_nothing_to_do(built: Cli) -> None:
    assert "nothing to do" in built("plan", "small").stdout
    assert "small" not in built("plan", "small").stderr
    assert "train-000000" in built("plan", "small", "--all").stdout
    assert built.json("plan", "small")["outcome"] == "nothing"
    assert "nothing changed: version 1" in built("build", "small").stdout
    assert built.json("build", "small")["status"] == "unchanged"


def test_the_plan_says_why_each_shard_is_built(built: Cli) -> None:
    built.project.write("a/0003.txt", "another caption")
    built.project.add(20, 1)
    planned = built.json("plan", "small")
    causes = sorted(each["cause"] for each in planned["shards"] if each["action"] == "pack")
    assert causes in (["1 edited", "1 new"], ["1 new, 1 edited"])
    assert planned["bytes_written"] > planned["bytes_added"] > 0
    text = built("plan", "small").stdout
    assert "1 edited" in text
    assert "bytes written for each" in text
    assert built.json("build", "small")["version"] == 2


def test_the_plan_names_damage(built: Cli) -> None:
    shard = built.project.latest().shards[0]
    (built.project.destination / shard.path).unlink()
    assert built.json("plan", "small")["outcome"] == "repair"
    assert "a build repairs them" in built("plan", "small").stdout
    assert "repaired 1 shard" in built("build", "small").stdout
    assert "nothing to do" in built("plan", "small").stdout


def test_the_plan_takes_up_what_a_stopped_build_left(cli: Cli) -> None:
    cli.project.build()
    for path in (cli.project.destination / "versions").rglob("*"):
        path.unlink() if path.is_file() else None
    planned = cli.json("plan", "small")
    assert {each["action"] for each in planned["shards"]} == {"sealed"}
    assert planned["bytes_written"] == 0


def test_a_plan_that_would_fail_says_why(built: Cli) -> None:
    built.configure(samples={"max_quarantined": 0.01})
    built.project.write("a/9999.png", b"")
    result = built("plan", "small", code=1)
    assert "the build would fail" in result.stdout
    assert "max_quarantined" in result.stdout
    assert built.json("plan", "small", code=1)["outcome"] == "fail"
    error = built("build", "small", code=1).stderr
    assert error.startswith("error: small: ")
    assert "Nothing was published" in error


def test_what_is_left_out_is_shown_with_an_example(built: Cli) -> None:
    built.project.write("a/0007.txt", b"")
    built.project.write("a/lonely.txt", "no picture")
    planned = built.json("plan", "small")
    assert {each["reason"]: each["count"] for each in planned["quarantined"]} == {
        "empty_file": 1,
        "missing_field": 1,
    }
    text = built("build", "small").stdout
    assert "quarantine: 2 samples of 21 left out" in text
    assert "e.g. a/0007.txt" in text


def test_the_build_ends_with_how_to_read_it(cli: Cli) -> None:
    text = cli("build", "small").stdout
    assert "published version 1" in text
    assert "report.html" in text
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("import webdataset"))
    code = "\n".join(line.strip() for line in lines[start : start + 3])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.count("'png'") == 20, done.stderr
    command = next(line for line in lines if "wds-pipeline show small" in line).split()
    cli("show", "small", command[command.index("show") + 2])


def test_the_summary_is_the_same_afterwards(cli: Cli) -> None:
    built = cli("build", "small").stdout
    assert cli("versions", "small", "--summary").stdout in built


def test_repack(built: Cli) -> None:
    before = {shard.name for shard in built.project.latest().shards}
    built.configure(shards={"max_bytes": 24_000})
    assert "--yes" in built("repack", "small", code=2).stderr
    assert built.project.latest().version == 1
    assert built.json("plan", "small", "--repack")["outcome"] == "publish"
    assert built.json("repack", "small", "--yes")["version"] == 2
    assert not before & {shard.name for shard in built.project.latest().shards}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_keeps_what_is_sealed(cli: Cli, number: signal.Signals, code: int) -> None:
    cli.project.add(0, 400)
    cli.configure(shards={"max_samples": 1}, compute={"kind": "processes", "workers": 2})
    process = cli.start("build", "small")
    shards = cli.project.destination / "shards"
    wait_for(lambda: any(shards.glob("train-*.seal.json")))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert TRACEBACK not in errors
    assert "the shards sealed so far are kept" in errors
    assert not output
    assert not group_members(process.pid)
    assert not cli.project.stray()
    sealed = len(list(shards.glob("train-*.seal.json")))
    assert 0 < sealed < 400
    cli.configure(shards={"max_samples": 1})
    assert cli.json("build", "small")["packed"] == 400 - sealed


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group_members(group: int) -> list[int]:
    """The live processes of a process group, after those that are ending had a moment."""
    for _ in range(50):
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(path.parent.name))
        if not found:
            break
        time.sleep(0.1)
    return found


def test_an_interrupt_before_the_workers_are_up_is_clean_too(cli: Cli) -> None:
    cli.configure(compute={"kind": "processes", "workers": 2})
    marker = cli.project.destination / "wds_pipeline.json"
    for delay in (0.0, 0.2, 0.4):
        shutil.rmtree(cli.project.destination, ignore_errors=True)
        process = cli.start("build", "small")
        wait_for(marker.exists)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert TRACEBACK not in errors
        assert process.returncode in (0, 130)
        assert not group_members(process.pid)


def test_a_destination_that_is_read_only(
    built: Cli, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    folder = built.project.folder
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o711)
    for path in (built.project.destination, *built.project.destination.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def read() -> None:
        for command in ("verify", "show", "urls", "versions", "plan", "gc"):
            built(command, "small")

    def write() -> None:
        assert "not writable" in built("view", "small", code=1).stderr
        assert "not writable" in built("build", "small", code=1).stderr

    read()  # so that all modules are loaded while they can be
    built("build", "small")
    built.project.write("a/0001.txt", "edited").chmod(0o444)
    assert unprivileged(read) == ""
    assert unprivileged(write) == ""
    for path in (built.project.destination, *built.project.destination.rglob("*")):
        path.chmod(0o755)
