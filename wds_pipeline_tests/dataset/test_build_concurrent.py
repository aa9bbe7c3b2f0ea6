"""Builds, gc and readers at the same time, in processes of their own: a linear history, no loss.

`WDS_PIPELINE_TEST_ROUNDS=100` repeats what by default is done a few times.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config import RetentionConfig
from wds_pipeline.dataset import retain, seal, version
from wds_pipeline.dataset.build import BuildResult
from wds_pipeline.errors import VersionError, WdsPipelineError
from wds_pipeline_tests.conftest import Project, png

ROUNDS = int(os.environ.get("WDS_PIPELINE_TEST_ROUNDS", 20))
# Nothing of a build is older than this; in life it is a day.
GRACE = 30.0


def fill(project: Project) -> None:
    project.add(0, 12)
    project.write("a/0005.png", b"broken")


def mutate(project: Project, rng: random.Random, number: int) -> None:
    """A small change, as a user makes it; each file is replaced as a whole."""
    for _ in range(rng.randint(1, 3)):
        act = rng.choice(("add", "edit", "delete", "break"))
        key = f"{rng.randint(0, 11):04d}"
        if act == "add":
            project.add(100 + 7 * number, rng.randint(1, 2))
        elif act == "edit":
            replace(project.source / f"a/{key}.txt", f"caption {rng.random()}".encode())
        elif act == "break":
            replace(project.source / f"a/{key}.png", rng.choice((b"broken", png(int(key)))))
        else:
            for field in ("png", "txt", "json"):
                (project.source / f"a/{key}.{field}").unlink(missing_ok=True)


def replace(path: Path, data: bytes) -> None:
    path.with_name(f".{path.name}").write_bytes(data)
    os.replace(path.with_name(f".{path.name}"), path)


def good(project: Project) -> dict[str, dict[str, bytes]]:
    """The samples of the source that can be published."""
    return {
        key: sample
        for key, sample in project.raw().items()
        if {"png", "txt"} <= sample.keys() and sample["png"].startswith(b"\x89PNG")
    }


def build_many(folder: Path, go: Any, results: Any, rounds: int) -> None:
    project = Project(folder)
    try:
        for _ in range(rounds):
            go.wait()
            result = project.build()
            results.put((result.status, result.manifest.version, result.manifest.write_id))
    except BaseException as error:
        results.put((type(error).__name__, str(error), ""))
        raise


def check_history(project: Project) -> list[int]:
    """Parents chain, no number is missing, every version is whole."""
    numbers = version.list_versions(project.storage)
    for number in numbers:
        manifest = version.read(project.storage, number, "small")
        assert manifest.parent == number - 1
        assert project.published(manifest)
        ledger = version.read_table(project.storage, manifest, version.LEDGER)
        assert sorted(ledger["key"].to_pylist()) == sorted(project.published(manifest))
    return numbers


def test_two_builds_at_once_while_the_source_changes(project: Project) -> None:
    """Rounds in step: both builds start together, and the source changes under them."""
    fill(project)
    context = multiprocessing.get_context("spawn")
    go, results = context.Barrier(3), context.Queue()
    builders = [
        context.Process(target=build_many, args=(project.folder, go, results, ROUNDS))
        for _ in range(2)
    ]
    for each in builders:
        each.start()
    rng = random.Random(7)
    committed: dict[int, set[str]] = {}
    conflicts = 0
    try:
        for number in range(ROUNDS):
            if number % 2:
                mutate(project, rng, number)
            go.wait(60)
            if number % 4 == 2:  # under the running builds
                time.sleep(rng.random() * 0.05)
                mutate(project, rng, number)
            published = []
            for _ in builders:
                status, at, write_id = results.get(timeout=60)
                assert status in ("published", "unchanged", "repaired"), (status, at)
                committed.setdefault(at, set()).add(write_id)
                published += [at] if status == "published" else []
            assert len(set(published)) == len(published), "two builds committed one number"
            conflicts += len(published) == 2
    finally:
        for each in builders:
            each.join(20)
            each.kill()
    project.build()
    assert project.published() == good(project)
    numbers = check_history(project)
    assert numbers == list(range(1, numbers[-1] + 1))
    for at, write_ids in committed.items():
        manifest = version.read(project.storage, at, "small")
        assert write_ids == {manifest.write_id}, "a version was lost or overwritten"
    assert project.stray() == []
    assert not list(project.destination.glob("versions/*/build-*/*"))


def loop_builds(folder: Path, stop: Any, errors: Any) -> None:
    project, rng, number = Project(folder), random.Random(11), 0
    project.add(9000, 1)
    there_and_back = project.source / "a/9000.txt"
    try:
        while not stop.is_set():
            number += 1
            mutate(project, rng, number)
            project.build()
            if number % 3 == 0:  # there and back: shards of earlier versions are taken up again
                before = there_and_back.stat()
                text = there_and_back.read_bytes()
                replace(there_and_back, b"other")
                project.build()
                replace(there_and_back, text)
                os.utime(there_and_back, ns=(before.st_atime_ns, before.st_mtime_ns))
                project.build()
    except BaseException as error:
        errors.put(f"build: {type(error).__name__}: {error}")


def loop_gc(folder: Path, stop: Any, errors: Any) -> None:
    project = Project(folder)
    keep = RetentionConfig(versions=2, days=0)
    try:
        while not stop.is_set():
            if project.destination.exists():
                found = retain.find_garbage(project.storage, keep, GRACE)
                retain.collect(project.storage, found, GRACE)
            time.sleep(0.005)
    except BaseException as error:
        errors.put(f"gc: {type(error).__name__}: {error}")


def loop_ageing(folder: Path, stop: Any, errors: Any) -> None:
    """Makes shards that no version within reach holds look old, so that gc has work to do."""
    project = Project(folder)
    while not stop.is_set():
        time.sleep(0.05)
        try:
            needed = {
                shard.name
                for number in version.list_versions(project.storage)
                for shard in version.read(project.storage, number, "").shards
            }
        except VersionError:
            continue  # gc was quicker
        now = time.time()
        for path in project.destination.glob("shards/*"):
            try:
                # What is neither in a version nor was touched in the last two seconds.
                if path.name.partition(".")[0] not in needed and now - path.stat().st_mtime > 2:
                    os.utime(path, (now - 100, now - 100))
            except FileNotFoundError:
                continue


def in_processes(
    project: Project, versions: int, *loops: Callable[[Path, Any, Any], None]
) -> tuple[list[str], list[str]]:
    """Runs loops in processes, and readers in threads until they have seen so many versions.

    Returns errors and what was read.
    """
    context = multiprocessing.get_context("spawn")
    stop, errors = context.Event(), context.Queue()
    processes = [
        context.Process(target=loop, args=(project.folder, stop, errors)) for loop in loops
    ]
    for process in processes:
        process.start()
    failed: list[str] = []
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            time.sleep(0.001)
            try:
                manifest = version.latest(project.storage)
                assert manifest is not None
                for shard in manifest.shards:
                    data = (project.destination / shard.path).read_bytes()
                    assert len(data) == shard.bytes
                    assert seal.read_seal(project.storage, shard.name)
                version.read_table(project.storage, manifest, version.LEDGER)
                seen.append(hashlib.md5(manifest.dump()).hexdigest())
            except BaseException as error:
                newest = version.latest(project.storage)
                # A reader that took longer than two versions to read one may find it collected.
                if newest and manifest and newest.version <= manifest.version + 1:
                    failed.append(f"reader: {type(error).__name__}: {error}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    end = time.monotonic() + 90
    while len(set(seen)) < versions and not failed and errors.empty() and time.monotonic() < end:
        time.sleep(0.02)
    stop.set()
    for reader in readers:
        reader.join(30)
    for process in processes:
        process.join(30)
        process.kill()
    while not errors.empty():
        failed.append(errors.get())
    return failed, seen


@pytest.mark.parametrize("with_gc", [False, True])
def test_readers_never_miss_a_file(project: Project, with_gc: bool) -> None:
    """Readers loop over the newest version while it is replaced and, with gc, while others go."""
    fill(project)
    project.build()
    loops = (loop_builds, loop_gc, loop_ageing) if with_gc else (loop_builds,)
    failed, seen = in_processes(project, ROUNDS // 2, *loops)
    assert not failed
    assert len(set(seen)) >= ROUNDS // 2, "hardly anything happened"
    numbers = version.list_versions(project.storage)
    if with_gc:
        assert numbers[0] > 1, "gc removed nothing"
        for number in numbers:
            assert project.published(version.read(project.storage, number, ""))
    else:
        assert check_history(project) == list(range(1, numbers[-1] + 1))
    project.build()
    assert project.published() == good(project)


def test_first_builds_of_two_datasets_into_one_folder(project: Project) -> None:
    """Whoever writes the marker first owns the folder; the other one is told."""
    fill(project)
    barrier, told = threading.Barrier(2), list[str]()

    def work(name: str) -> None:
        barrier.wait()
        try:
            told.append(project.build(name=name).status)
        except WdsPipelineError as error:
            told.append(str(error))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("small", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "published" in told
    told.remove("published")
    assert "give each dataset a folder of its own" in told[0] or "other files" in told[0]


@pytest.mark.parametrize("turn", range(3))
def test_two_first_builds_in_threads(project: Project, turn: int) -> None:
    fill(project)
    barrier, told = threading.Barrier(3), list[BuildResult]()

    def work() -> None:
        barrier.wait()
        told.append(project.build())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.status for each in told) == ["published", "unchanged", "unchanged"]
    assert {each.manifest.version for each in told} == {1}
    assert project.published() == good(project)
