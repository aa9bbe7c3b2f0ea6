"""Reading local shards: by number, key, field; in threads and processes; what is damaged raises."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline.training import Dataset, open_dataset, shard_checks
from wds_pipeline.training.local import LocalReader
from wds_pipeline.training.reading import in_turn
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.training.conftest import plain, stored, write_samples


@pytest.fixture
def train(published: Project) -> Dataset:
    return open_dataset(str(published.destination), split="train")


def test_by_number(published: Project, train: Dataset) -> None:
    expected = stored(published, "train")
    count = len(expected)
    for number in range(-count, count):
        assert plain(train[number]) == expected[number]
        assert plain(train[np.int32(number)]) == expected[number]
    assert train[-1]["__index__"] == count - 1


@pytest.mark.parametrize("number", [76, -77, 10**30])
def test_a_number_that_is_not_there(train: Dataset, number: int) -> None:
    assert len(train) == 76
    with pytest.raises(IndexError, match=r"small: version 1, split train: there is no sample"):
        train[number]


@pytest.mark.parametrize("which", [1.0, "a", None])
def test_what_is_no_number(train: Dataset, which: Any) -> None:
    with pytest.raises(TypeError):
        train[which]


@pytest.mark.parametrize(
    "part",
    [slice(None), slice(3, 9), slice(70, 500), slice(None, None, -1), slice(-5, None), slice(9, 3)],
)
def test_slices(published: Project, train: Dataset, part: slice) -> None:
    assert [plain(each) for each in train[part]] == stored(published, "train")[part]


def test_many_at_once_in_any_order(published: Project, train: Dataset) -> None:
    expected = stored(published, "train")
    numbers = random.Random(0).choices(range(-len(train), len(train)), k=300)
    assert [plain(each) for each in train.__getitems__(numbers)] == [expected[n] for n in numbers]


def test_by_key(published: Project, train: Dataset) -> None:
    for number, (key, fields) in enumerate(stored(published, "train")):  # by scans, then sorted
        assert train.index_of(key) == number
        assert plain(train.by_key(key)) == (key, fields)


def test_a_key_that_is_not_there(published: Project, train: Dataset) -> None:
    key, other = stored(published, "train")[0][0], stored(published, "val")[0][0]
    for _ in range(2):
        with pytest.raises(VersionError, match=f"no sample '{key}x'; the nearest keys: '{key}'"):
            train.by_key(f"{key}x")
        with pytest.raises(VersionError, match=f"did you mean '{key}'"):
            train.by_key(f"{key}.txt")
        with pytest.raises(VersionError, match=f"'{other}': it is in the split val"):
            train.by_key(other)
        for each in train:  # so many look-ups that the keys are sorted
            train.index_of(each["__key__"])
    with pytest.raises(VersionError, match="a key is text"):
        train.by_key(7)  # type: ignore[arg-type]


def test_a_key_in_the_quarantine(project: Project) -> None:
    project.add(0, 3)
    project.write("a/0009.png", png(9))
    project.build()
    with pytest.raises(VersionError, match="'a/0009': it is in the quarantine: missing"):
        open_dataset(str(project.destination)).by_key("a/0009")


def test_only_some_fields(published: Project) -> None:
    for fields in (["txt"], {"seg.png", "txt"}, "json"):
        dataset = open_dataset(str(published.destination), fields=fields)
        wanted = {fields} if isinstance(fields, str) else set(fields)
        expected = [
            (key, {name: data for name, data in sample.items() if name in wanted})
            for key, sample in stored(published)
        ]
        assert [plain(each) for each in dataset] == expected
        assert [plain(dataset[number]) for number in range(len(dataset))] == expected


def test_other_fields_are_not_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.options = {"samples": {"required": ["bin", "txt"]}, "shards": {"max_bytes": 3_000_000}}
    for number in range(20):
        project.write(f"{number:03d}.bin", random.Random(number).randbytes(100_000 - number))
        project.write(f"{number:03d}.txt", f"caption {number}")
    project.build()
    got: list[int] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        got.append(size)
        return pread(fd, size, offset)

    dataset = open_dataset(str(project.destination), fields=["txt"])
    assert dataset[0]["__key__"]  # opens the shard
    monkeypatch.setattr(os, "pread", counted)
    assert sum(len(each["txt"]) for each in dataset) == sum(got)
    assert len(got) == 20
    got.clear()
    everything = open_dataset(str(project.destination))
    assert all(set(plain(each)[1]) == {"bin", "txt"} for each in everything)
    assert sum(got) < 20 * 101_000


def test_samples_without_a_wanted_field_are_there_without_it(published: Project) -> None:
    dataset = open_dataset(str(published.destination), fields=["seg.png"])
    with_it = [each["__key__"] for each in dataset if "seg.png" in each]
    assert len(dataset) == 120
    assert with_it == [key for key, sample in stored(published) if "seg.png" in sample]


def test_decode_is_applied_everywhere(published: Project) -> None:
    dataset = open_dataset(str(published.destination), fields=["txt"], decode=caption_of)
    expected = [sample["txt"].decode() for _, sample in stored(published)]
    assert [*dataset] == dataset[:] == [dataset[n] for n in range(len(dataset))] == expected


def caption_of(sample: dict[str, Any]) -> str:
    return str(sample["txt"].decode())


def test_a_kept_sample_keeps_no_other_in_memory(train: Dataset) -> None:
    for sample in train:
        assert all(type(value) in (bytes, str, int) for value in sample.values())


# Threads and processes.


def test_threads_at_once(published: Project) -> None:
    dataset = open_dataset(str(published.destination))
    expected = stored(published)

    def read(seed: int) -> bool:
        for number in random.Random(seed).choices(range(len(expected)), k=200):
            if plain(dataset[number]) != expected[number]:
                return False
            if number % 50 == 0:
                dataset.close()  # under the others' hands
        return [plain(each) for each in dataset] == expected

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(16)))


def read_part(dataset: Dataset, numbers: list[int]) -> list[tuple[str, dict[str, bytes]]]:
    return [plain(dataset[number]) for number in numbers]


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_worker_processes(published: Project, method: str) -> None:
    expected = stored(published)
    dataset = open_dataset(str(published.destination))
    assert plain(dataset[7]) == expected[7]  # files are open
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as workers:
        parts = [list(range(start, 120, 4)) for start in range(4)]
        found = list(workers.map(read_part, [dataset] * 4, parts))
    assert found == [[expected[number] for number in part] for part in parts]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_goes_on_with_what_is_open(published: Project) -> None:
    expected = stored(published)
    dataset = open_dataset(str(published.destination))
    list(dataset)
    assert isinstance(dataset.reader, LocalReader)
    locks = [dataset.reader._shards._lock, dataset.catalog._members._lock, dataset._lock]
    for lock in locks:  # as a thread may, at the fork
        lock.__enter__()
    child = os.fork()
    if child == 0:
        try:
            same = [plain(each) for each in dataset] == expected
            dataset.catalog._members._items.clear()
            dataset.close()
            os._exit(0 if same and plain(dataset[-1]) == expected[-1] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_goes_to_another_process_small(published: Project) -> None:
    dataset = open_dataset(str(published.destination))
    list(dataset)
    assert len(pickle.dumps(dataset)) < 3000
    assert len(pickle.dumps(dataset.catalog)) < 2000


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_files_are_closed(published: Project) -> None:
    before = open_files()
    dataset = open_dataset(str(published.destination))
    list(dataset)
    assert open_files() > before
    dataset.close()
    assert open_files() == before
    with dataset:
        assert dataset[0]["__key__"]
    assert open_files() == before
    list(dataset)
    del dataset
    assert open_files() == before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_only_so_many_files_are_open(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    before = open_files()
    dataset = open_dataset(str(published.destination))
    assert len(dataset.urls) > 16
    assert [plain(each) for each in dataset] == stored(published)
    assert 0 < open_files() - before <= 16
    asked = []
    other_digest = shard_checks.other_digest

    def counted(file: BinaryIO, digest: str) -> str | None:
        asked.append(digest)
        return other_digest(file, digest)

    monkeypatch.setattr(shard_checks, "other_digest", counted)
    verified = open_dataset(str(published.destination), verify=True)
    for _ in range(2):
        assert [plain(each) for each in verified] == stored(published)
    assert len(asked) == len(verified.urls), "once each, however often they are opened"
    others = [open_dataset(str(published.destination)) for _ in range(4)]
    for each in others:  # as a mixture does
        assert [plain(sample) for sample in each] == stored(published)
    assert 0 < open_files() - before <= 16


# What is not what the version says.


@pytest.fixture
def damaged(project: Project) -> Project:
    project.options = {"shards": {"max_bytes": 1_000_000}}
    write_samples(project, range(40))
    project.build()
    return project


def the_shard(project: Project) -> Path:
    (shard,) = project.latest().shards
    return project.destination / shard.path


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def overwritten(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def of_other_members(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[1024:-10240] + bytes(1024) + data[-10240:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: cut(path, path.stat().st_size - 512), r"found [\d,]+ bytes; expected [\d,]+"),
        (lambda path: cut(path, 0), r"found 0 bytes; expected"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(512)), r"cut short or replaced"),
        (overwritten, "found no tar header .* it was replaced or overwritten"),
        (of_other_members, "found no tar header"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read|found .* bytes"),
    ],
)
def test_damage_is_noticed_when_a_shard_is_opened(
    damaged: Project, damage: Callable[[Path], Any], message: str
) -> None:
    dataset = open_dataset(str(damaged.destination))
    damage(the_shard(damaged))
    with pytest.raises(VerificationError, match=message) as caught:
        list(dataset)
    for part in ("small: version 1", str(the_shard(damaged)), "wds-pipeline verify small --repair"):
        assert part in str(caught.value)
    with pytest.raises(VerificationError, match=message):
        dataset[3]


def test_a_shard_that_is_cut_while_it_is_read(damaged: Project) -> None:
    dataset = open_dataset(str(damaged.destination))
    samples = iter(dataset)
    next(samples)
    dataset[39]
    cut(the_shard(damaged), 5000)
    with pytest.raises(VerificationError, match=r"cut short while it was read: found 5,000 bytes"):
        dataset[39]
    cut(the_shard(damaged), 0)
    with pytest.raises(VerificationError, match="found 0 bytes"):
        list(dataset)


def test_one_changed_byte_is_noticed_by_choice(damaged: Project) -> None:
    path, (_, first) = the_shard(damaged), stored(damaged)[0]
    data = bytearray(path.read_bytes())
    data[data.index(first["png"]) + 20] ^= 1
    path.write_bytes(data)
    assert open_dataset(str(damaged.destination))[0]["png"] != first["png"]
    with pytest.raises(
        VerificationError, match=r"found the digest xxh3-128:.*; expected xxh3-128:"
    ):
        open_dataset(str(damaged.destination), verify=True)[0]


def test_a_member_index_that_is_not_the_shards(damaged: Project) -> None:
    path = the_shard(damaged)
    index = path.with_suffix(".members.parquet")
    manifest: Manifest = damaged.latest()
    index.write_bytes(index.read_bytes()[:-5])
    with pytest.raises(VerificationError, match="damaged"):
        open_dataset(str(damaged.destination))[0]
    damaged.add(100, 3)
    damaged.build(shards={"max_bytes": 1_000_000})
    other = damaged.latest().shards
    newer = next(each for each in other if each.name != manifest.shards[0].name)
    index.write_bytes(
        (damaged.destination / newer.path).with_suffix(".members.parquet").read_bytes()
    )
    with pytest.raises(VerificationError, match=r"its member index is not right: found"):
        open_dataset(str(damaged.destination), 1)[0]


def test_reads_that_come_in_parts(published: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(str(published.destination))
    expected = stored(published)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 37), at))
    assert [plain(each) for each in dataset] == expected
    assert plain(dataset[5]) == expected[5]


def test_the_reader_takes_what_it_is_asked_for(published: Project) -> None:
    dataset = open_dataset(str(published.destination))
    reader, expected = dataset.reader, stored(published)
    assert isinstance(reader, LocalReader)
    numbers = [5, 6, 7, 7, 3, 119, 0]
    for asked in (numbers, np.array(numbers), iter(numbers), np.array(numbers, np.uint8)):
        found = in_turn(reader, asked)  # type: ignore[arg-type]
        assert [plain(each) for each in found] == [expected[n] for n in numbers]
    assert [each["__index__"] for each in reader.read(range(119, -1, -1))] == list(
        range(119, -1, -1)
    )
    assert reader.read([]) == []
    for wrong in (-1, 120):
        with pytest.raises(IndexError):
            reader.read([wrong])
        with pytest.raises(IndexError):
            list(in_turn(reader, [0] * 10 + [wrong]))
