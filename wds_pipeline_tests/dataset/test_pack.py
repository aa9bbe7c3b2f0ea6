"""Packing: the same bytes everywhere, in bounded memory, and never from a file that changed."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from wds_pipeline.compute import open_pool, run_all
from wds_pipeline.config import ComputeConfig
from wds_pipeline.dataset import pack, seal, tar
from wds_pipeline.dataset.pack import PackJob
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.errors import DestinationError
from wds_pipeline.storage import CONTENT, LocalStorage, open_storage
from wds_pipeline_tests.conftest import Project, read_tar

MB = 1024 * 1024
BUFFER = LocalStorage.window_bytes
NAME = "train-000000-" + "0123456789abcdef" * 2


def recipe_of(source: Path, paths: Sequence[str], content: bool = False) -> Recipe:
    """A recipe of files as they are now."""
    rows = []
    for path in paths:
        found = (source / path).stat()
        mark = str(found.st_mtime_ns)
        if content:
            mark = CONTENT + xxhash.xxh3_128_hexdigest((source / path).read_bytes())
        field = path.rpartition("/")[2].partition(".")[2]
        rows.append((path, path, found.st_size, mark, field))
    columns = list(zip(*rows, strict=True))
    types = (pa.large_string(), pa.large_string(), pa.int64(), pa.large_string(), pa.string())
    names = ("name", "path", "size", "fingerprint", "field")
    members = pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=names)
    keys = {path[: path.index(".", path.rfind("/") + 1)] for path in paths}
    return Recipe(NAME, "train", 0, NAME[-32:], len(keys), members)


def fill(source: Path, sizes: dict[str, int], seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    for path, size in sizes.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(rng.randbytes(size))
    return list(sizes)


def job_of(project: Project, recipe: Recipe, **more: Any) -> PackJob:
    return PackJob(recipe, str(project.source), str(project.destination), **more)


def stored(project: Project, ending: str = seal.TAR) -> Path:
    return project.destination / seal.path(NAME, ending)


def nothing_sealed(project: Project) -> None:
    """No seal, and nothing half written."""
    assert not list(project.destination.rglob("*.seal.json"))
    assert not project.stray()
    assert not stored(project).exists()


PLAIN = {
    "a/1.jpg": 10_000, "a/1.txt": 17, "a/1.json": 0, "b c/ü.jpg": 512, "b c/ü.txt": 513,
    f"{'d' * 60}/{'e' * 60}.jpg": 511, f"{'d' * 120}/{'e' * 120}/{'f' * 60}.jpg": 1025,
}  # fmt: skip


def check_shard(project: Project, paths: Sequence[str]) -> seal.Seal:
    """The tar, its index and its seal against the source files."""
    path = stored(project)
    assert [n for n, _ in read_tar(path)] == list(paths)
    for name, data in read_tar(path):
        assert data == (project.source / name).read_bytes(), name
    sealed = seal.read_seal(project.storage, NAME)
    assert sealed is not None
    data = path.read_bytes()
    algorithm, _, value = sealed.digest.partition(":")
    if algorithm == "sha256":
        assert hashlib.sha256(data).hexdigest() == value
    else:
        assert xxhash.xxh3_128(data).hexdigest() == value
    assert (sealed.bytes, sealed.members) == (len(data), len(paths))
    index = seal.read_member_index(project.storage, NAME)
    assert index.schema == seal.MEMBER_INDEX
    with path.open("rb") as file:
        for row, name in zip(index.to_pylist(), paths, strict=True):
            assert f"{row['key']}.{row['field']}" == name
            found = os.pread(file.fileno(), row["size"], row["offset"])
            assert found == (project.source / name).read_bytes()
    return sealed


@pytest.mark.parametrize("digest", ["xxh3-128", "sha256"])
@pytest.mark.parametrize("content", [False, True])
def test_the_shard_is_what_the_recipe_says(project: Project, digest: str, content: bool) -> None:
    paths = fill(project.source, PLAIN)
    recipe = recipe_of(project.source, paths, content)
    packed = pack.run(job_of(project, recipe, digest=digest))
    sealed = check_shard(project, paths)
    assert packed.seal == sealed
    assert sealed.digest.startswith(digest + ":")
    assert sealed.samples == recipe.samples == 4
    assert sum(1 for _ in (project.destination / "shards").iterdir()) == 3
    if digest == "sha256" and shutil.which("sha256sum"):
        told = subprocess.run(["sha256sum", stored(project)], capture_output=True, text=True)
        assert told.stdout.split()[0] == sealed.digest[7:]


def test_the_bytes_never_change(project: Project) -> None:
    """A golden digest: what two releases or Python versions pack is the same."""
    sealed = pack.run(job_of(project, recipe_of(project.source, fill(project.source, PLAIN)))).seal
    assert sealed is not None
    assert sealed.digest == "xxh3-128:de7e56f6be2bc024b39eda0b97dd1bd6"


def test_the_same_bytes_in_two_places_and_by_any_worker(tmp_path: Path) -> None:
    found = set()
    for place, kind in (("here", "threads"), ("elsewhere", "processes")):
        project = Project(tmp_path / place)
        paths = fill(project.source, PLAIN)
        os.umask(os.umask(0o022))
        for path in paths:
            os.chmod(project.source / path, 0o600 if place == "here" else 0o644)
        recipe = recipe_of(project.source, paths)
        with open_pool(ComputeConfig(kind=kind, workers=1)) as pool:  # type: ignore[arg-type]
            ((_, packed),) = run_all(pool, pack.run, [job_of(project, recipe)])
        assert packed.seal is not None
        found.add(
            (packed.seal, stored(project).read_bytes(), stored(project, seal.MEMBERS).read_bytes())
        )
    assert len(found) == 1


BORDERS = [BUFFER + by for by in (-1537, -1024, -1023, -513, -512, -511, -1, 0, 1, 511, 512, 513)]


@pytest.mark.parametrize("size", [*BORDERS, 2 * BUFFER, 3 * BUFFER + 7])
def test_members_about_the_size_of_the_buffer(project: Project, size: int) -> None:
    """Alone, behind small ones, and with a PAX header that does not fit any more."""
    long = f"{'d' * 120}/{'e' * 120}/{'f' * 60}"
    sizes = {"a.bin": size, "b.txt": 3, "c.bin": size, f"{long}.bin": size, "d.txt": 700}
    paths = fill(project.source, sizes)
    assert pack.run(job_of(project, recipe_of(project.source, paths))).seal
    check_shard(project, paths)


def test_many_small_members_fill_the_buffer_to_the_brim(project: Project) -> None:
    each = BUFFER // 8 - tar.BLOCK
    sizes = {f"{number:02d}.bin": each for number in range(17)}  # eight fill it exactly
    paths = fill(project.source, sizes)
    assert pack.run(job_of(project, recipe_of(project.source, paths))).seal
    check_shard(project, paths)


def test_generated_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any mixture of sizes, with a small buffer so that its borders are met all the time."""
    monkeypatch.setattr(LocalStorage, "window_bytes", 8192)
    rng = random.Random(3)
    for turn in range(60):
        project = Project(tmp_path / str(turn))
        sizes = {
            f"{'x' * rng.choice((1, 90, 130))}/{number}.bin": rng.choice(
                (0, 1, 511, 512, 3000, 9000)
            )
            + rng.randint(0, 600)
            for number in range(rng.randint(1, 30))
        }
        paths = fill(project.source, sizes, turn)
        assert pack.run(job_of(project, recipe_of(project.source, paths))).seal
        check_shard(project, paths)


# ------------------------------------------------------------------------------------ changed files


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "grown": (append, "were scanned"),
    "shrunk": (lambda p: os.truncate(p, 1), "1 bytes could be read"),
    "vanished": (os.unlink, "cannot be read: No such file"),
    "edited": (rewrite, "it was modified after the scan"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [1000, 2 * BUFFER])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_file_that_changed_since_the_scan(
    project: Project, change: str, size: int, which: int
) -> None:
    paths = fill(project.source, {"a.txt": 10, "b.bin": size, "c.txt": 10})
    recipe = recipe_of(project.source, paths)
    time.sleep(0.02)
    act, reason = CHANGES[change]
    act(project.source / paths[which])
    packed = pack.run(job_of(project, recipe))
    assert packed.seal is None
    assert packed.name == NAME
    assert [path for path, _ in packed.changed] == [paths[which]]
    assert reason in packed.changed[0][1]
    nothing_sealed(project)


def test_all_files_that_changed_are_named_at_once(project: Project) -> None:
    paths = fill(project.source, {f"{n}.txt": 10 for n in range(6)})
    recipe = recipe_of(project.source, paths)
    time.sleep(0.02)
    (project.source / "1.txt").unlink()
    append(project.source / "3.txt")
    rewrite(project.source / "5.txt")
    packed = pack.run(job_of(project, recipe))
    assert [path for path, _ in packed.changed] == ["1.txt", "3.txt", "5.txt"]
    nothing_sealed(project)


def test_files_that_may_not_be_read(
    project: Project, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    paths = fill(project.source, {f"{n}.txt": 10 for n in range(4)})
    recipe = recipe_of(project.source, paths)
    project.destination.mkdir(mode=0o777)
    os.chmod(project.destination, 0o777)
    for folder in (project.folder, *project.folder.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o711)
    os.chmod(project.source / "1.txt", 0)
    os.chmod(project.source / "3.txt", 0)

    def work() -> None:
        raise RuntimeError(pack.run(job_of(project, recipe)).changed)

    denied = "cannot be read: Permission denied"
    assert unprivileged(work) == f"RuntimeError: (('1.txt', '{denied}'), ('3.txt', '{denied}'))"
    nothing_sealed(project)


@pytest.mark.parametrize("size", [BUFFER // 2, 3 * BUFFER])
def test_a_file_that_grows_while_it_is_packed(project: Project, size: int) -> None:
    paths = fill(project.source, {f"{n}.bin": size for n in range(6)})
    recipe = recipe_of(project.source, paths)
    stop = threading.Event()

    def grow() -> None:
        with (project.source / paths[-1]).open("ab") as file:
            while not stop.wait(0.0005):
                file.write(b"x" * 100)
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        time.sleep(0.01)
        packed = pack.run(job_of(project, recipe))
    finally:
        stop.set()
        thread.join()
    assert packed.seal is None
    assert [path for path, _ in packed.changed] == [paths[-1]]
    nothing_sealed(project)


@pytest.mark.parametrize("size", [1000, BUFFER // 2, 3 * BUFFER])
def test_an_edit_at_any_moment_is_either_seen_or_not_in_the_shard(
    project: Project, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer strikes after each read in turn: the shard holds the old bytes, or does not exist."""
    paths = fill(project.source, {"a.bin": size, "b.bin": size})
    old = {path: (project.source / path).read_bytes() for path in paths}
    recipe = recipe_of(project.source, paths)
    real = os.readv
    outcomes = set()
    for strike in range(12):
        for path in paths:
            (project.source / path).write_bytes(old[path])
        recipe = recipe_of(project.source, paths)
        time.sleep(0.02)
        calls = [0]

        def readv(fd: int, views: Any, calls: Any = calls, strike: int = strike) -> int:
            got = real(fd, views)
            if calls[0] == strike:
                with (project.source / "b.bin").open("r+b") as file:
                    file.write(bytes(size))
            calls[0] += 1
            return got

        monkeypatch.setattr(os, "readv", readv)
        packed = pack.run(job_of(project, recipe))
        monkeypatch.setattr(os, "readv", real)
        outcomes.add(packed.seal is not None)
        if packed.seal is None:
            assert packed.changed[0][0] == "b.bin"
            nothing_sealed(project)
        else:
            assert dict(read_tar(stored(project))) == old
            shutil.rmtree(project.destination)
    assert False in outcomes


# ------------------------------------------------------------------------------------ repairs


def test_a_repair_with_other_bytes_replaces_nothing(project: Project) -> None:
    paths = fill(project.source, {"a.txt": 100, "b.txt": 100})
    recipe = recipe_of(project.source, paths)
    first = pack.run(job_of(project, recipe)).seal
    assert first is not None
    before = project.shard_files()
    assert pack.run(job_of(project, recipe, published=first.digest)).seal == first
    assert project.shard_files() != before
    before = project.shard_files()
    times = (project.source / "a.txt").stat()
    (project.source / "a.txt").write_bytes(bytes(100))
    os.utime(project.source / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    again = pack.run(job_of(project, recipe, published=first.digest))
    assert again.seal is None
    assert re.search(r"published with.*touch it and build.*fingerprint: content", again.refused)
    assert project.shard_files() == before
    assert not project.stray()


def test_a_repair_is_digested_as_it_was_published(project: Project) -> None:
    recipe = recipe_of(project.source, fill(project.source, {"a.txt": 100}))
    first = pack.run(job_of(project, recipe, digest="sha256")).seal
    assert first is not None
    again = pack.run(job_of(project, recipe, digest="xxh3-128", published=first.digest)).seal
    assert again == first


def test_what_is_repaired_is_verified_anew(project: Project) -> None:
    recipe = recipe_of(project.source, fill(project.source, {"a.txt": 100}))
    first = pack.run(job_of(project, recipe)).seal
    assert first is not None
    project.storage.put(seal.path(NAME, seal.REPORT), b"an older file's")
    pack.run(job_of(project, recipe, published=first.digest))
    assert not stored(project, seal.REPORT).exists()


# ------------------------------------------------------------------------------------ limits

MEMORY = """
import os, sys
from pathlib import Path
from wds_pipeline.dataset import pack
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.test_pack import job_of, recipe_of
write, zeros = os.write, bytes(4 * 1024 * 1024)
def sparse(fd, data):  # a hole for zeros, so that the disk has no part in it
    if len(data) == len(zeros) and bytes(data) == zeros:
        os.lseek(fd, len(data), os.SEEK_CUR)
        return len(data)
    return write(fd, data)
os.write = sparse
project = Project(Path(sys.argv[1]))
recipe = recipe_of(project.source, ["a.mp4", "b.txt"])
assert pack.run(job_of(project, recipe)).seal
# Not ru_maxrss, which starts with what the parent held when it forked.
print(int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) // 1024)
"""


def test_memory_is_bounded_whatever_the_sizes(project: Project) -> None:
    """1.5 GB in, and a worker of less than 256 MB; both files sparse, so the disk is not used."""
    with (project.source / "a.mp4").open("wb") as file:
        file.truncate(1536 * MB)
    (project.source / "b.txt").write_text("after the large one")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(project.folder)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    path = stored(project)
    try:
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < 256
        index = seal.read_member_index(project.storage, NAME).to_pylist()
        assert [row["size"] for row in index] == [1536 * MB, 19]
        with path.open("rb") as file:
            file.seek(index[1]["offset"])
            assert file.read(19) == b"after the large one"
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A filesystem of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small filesystem")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(project: Project, small_disk: Path) -> None:
    paths = fill(project.source, {"a.bin": 300_000})
    recipe = recipe_of(project.source, paths)
    large = replace(
        recipe_of(project.source, fill(project.source, {"b.bin": 900_000})),
        name="train-000001-" + "f" * 32,
    )
    destination = open_storage(str(small_disk))
    first = pack.pack(recipe, LocalStorage(project.source), destination)
    before = sorted(path.name for path in small_disk.rglob("*"))
    with pytest.raises(DestinationError, match=r"train-000001.*the disk is full.*free some space"):
        pack.run(PackJob(large, str(project.source), str(small_disk)))
    assert sorted(path.name for path in small_disk.rglob("*")) == before
    assert seal.read_seal(destination, NAME) == first
    # Room was made: the same job succeeds.
    (small_disk / seal.path(NAME, seal.TAR)).unlink()
    assert pack.run(PackJob(large, str(project.source), str(small_disk))).seal


@pytest.mark.parametrize("failing", range(12))
def test_a_write_that_fails_leaves_nothing_half(
    project: Project, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Every write, fsync and rename in turn finds the disk full."""
    recipe = recipe_of(project.source, fill(project.source, {"a.bin": 300_000}))
    calls = [0]

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def limited(*arguments: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] == failing + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, limited)

    for name in ("write", "fsync", "replace"):
        wrap(name)
    with pytest.raises(DestinationError, match="the disk is full"):
        pack.run(job_of(project, recipe))
    monkeypatch.undo()
    assert not project.stray()
    sealed = project.destination / seal.path(NAME, seal.SEAL)
    assert not sealed.exists() or failing == 11, "after the rename, only its fsync is left to fail"
    assert pack.run(job_of(project, recipe)).seal
    check_shard(project, ["a.bin"])
