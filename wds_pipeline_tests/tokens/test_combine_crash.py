"""Killed at any point, and run again: the same bytes as without, and never sealed before it is whole.

A fork runs `combine` for the points at which it can die: before each call that changes the disk, and within
each write. Every third of them; with WDS_PIPELINE_TEST_SECONDS=60 or more, all.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.errors import VerificationError
from wds_pipeline.tokens import combined, target
from wds_pipeline.tokens.combine import combine
from wds_pipeline.tokens.merge import merge
from wds_pipeline_tests.tokens.handmade import block, plain, tree, version
from wds_pipeline_tests.tokens.results import save

CALLS = ("pwrite", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir")
STEP = 1 if float(os.environ.get("WDS_PIPELINE_TEST_SECONDS", 8)) >= 60 else 3
pytestmark = pytest.mark.usefixtures("no_fsync", "all_is_synced_at_once")


@pytest.fixture
def all_is_synced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard is noted by itself, as large ones are."""
    monkeypatch.setattr(target, "_SYNC_BYTES", 1)


def calls(work: Callable[[], Any], die_at: int) -> int:
    """Runs `work` in a fork that is killed at a call that changes the disk; returns how many it made, or -1
    when it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            made = [0]
            for name in CALLS:
                _wrap(name, made, die_at)
            work()
            os.close(reader)
            os.fdopen(writer, "wb").write(made[0].to_bytes(4, "little"))
        finally:
            os._exit(3)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return -1
    assert data, "the fork failed"
    return int.from_bytes(data, "little")


def _wrap(name: str, made: list[int], die_at: int) -> None:
    real = getattr(os, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if name in ("write", "pwrite") and len(arguments[1]) == 4 and made[0] != die_at:
            return real(*arguments, **named)  # the report to the parent
        made[0] += 1
        if made[0] - 1 == die_at:
            if name in ("write", "pwrite"):
                fd, data, *at = arguments
                real(fd, bytes(data)[: len(data) // 2], *at)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)

    setattr(os, name, call)


def is_whole(folder: Path) -> bool:
    """Whether it is sealed; then all of it must be there."""
    try:
        combined.check(folder)
    except VerificationError as error:
        assert "not combined" in str(error), error
        return False
    return True


@pytest.mark.parametrize("case", ["first", "again"])
def test_killed_anywhere_and_run_again(tmp_path: Path, case: str) -> None:
    shards = plain(3, blocks=1, rows=3)
    start = tmp_path / "start"
    if case == "again":
        combine([version(tmp_path / "in", shards)], start)
        shards[1] = [block(["x", "y", "z"])]
        shards += plain(1, blocks=1, rows=4, name="more")
    source = version(tmp_path / "in", shards, number=2)
    combine([source], tmp_path / "wanted")
    wanted = tree(tmp_path / "wanted")
    out, point, copied = tmp_path / "out", 0, []
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, out)
        if calls(lambda: combine([source], out, workers=1), point) >= 0:
            break
        sealed = is_whole(out) if out.exists() else False
        if sealed and case == "first":
            assert {**tree(out), **wanted} == tree(out)
        result = combine([source], out, workers=1)
        copied.append(result.copied)
        assert tree(out) == wanted, point
        point += STEP
    assert tree(out) == wanted
    assert point > 30
    # What was noted is not copied again.
    assert (copied[0], copied[-1]) == (3 if case == "first" else 2, 0)
    assert 1 in copied


def test_a_shard_is_noted_when_its_rows_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = version(tmp_path / "in", plain(2, blocks=1, rows=3))
    order: list[str] = []
    names: dict[int, str] = {}

    def note(what: str, name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = real(*arguments, **named)
            if name == "open":
                names[result] = os.path.basename(arguments[0])
            else:
                order.append(f"{what} {names.get(arguments[0], arguments[-1])}")
            return result

        return call

    for what, name in (("", "open"), ("rows", "pwrite"), ("sync", "fsync"), ("line", "write")):
        monkeypatch.setattr(os, name, note(what, name))
    combine([source], tmp_path / "out", workers=1)
    columns = ("idx", "input_ids", "modality", "write_flag")
    lines = [at for at, what in enumerate(order) if what == "line journal.jsonl"]
    assert len(lines) == 2
    for number, end in enumerate(lines):
        for column in columns:
            # The next shard's rows may be written before this one's line.
            rows = [at for at, what in enumerate(order) if what == f"rows {column}.memmap"]
            assert len(rows) == 2
            assert f"sync {column}.memmap" in order[rows[number] : end]
        assert "sync journal.jsonl" in order[end:]
    sealing = order[lines[-1] :]
    assert sealing.index("line .tmp-meta.json") < sealing.index("line .tmp-combined.json")


def test_moved_results_are_never_lost(tmp_path: Path) -> None:
    """Killed while results are moved: each row is in its result or in a folder that is sealed, and right."""
    kept = tmp_path / "kept"
    for at in range(3):
        save(kept / f"part{at}", range(at * 4, at * 4 + 4))
    shutil.copytree(kept, tmp_path / "copied")
    merge([tmp_path / "copied"], tmp_path / "wanted")
    wanted = _rows(tmp_path / "wanted")
    out, work, point = tmp_path / "out", tmp_path / "work", 0
    while True:
        for folder in (out, work):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, work)
        if calls(lambda: merge([work], out, move=True), point) >= 0:
            break
        if not is_whole(out):
            assert tree(work) == tree(kept)
        merge([work], out, move=True)
        assert _rows(out) == wanted
        assert tree(work) == {}
        point += STEP
    assert tree(work) == {} and point > 30


def _rows(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name != "combined.json"}
