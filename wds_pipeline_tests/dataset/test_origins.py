"""Members are read from wherever they are, byte for byte, and never what the scan did not see."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset import origins
from wds_pipeline.dataset.origins import GONE, ORIGINS, OriginReader, Origins
from wds_pipeline.errors import SourceChanged
from wds_pipeline.storage import CONTENT, LocalStorage, Place, Read, open_storage

FILES = {
    name: np.random.default_rng(n).bytes(60_000) for n, name in enumerate(("a.tar", "b/c.tar"))
}
Row = tuple[int, str | None, int | None, bytes | None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of random bytes."""
    folder = tmp_path_factory.mktemp("origins")
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def table(rows: list[Row]) -> pa.Table:
    """The origins of these rows, and their paths: 0, 1, …"""
    columns = [[row[n] for row in rows] for n in range(4)]
    arrays = [
        pa.array(columns[0], pa.int16()),
        pa.array(columns[1], pa.large_string()).dictionary_encode(),
        pa.array(columns[2], pa.int64()),
        pa.array(columns[3], pa.large_binary()),
    ]
    found = pa.Table.from_arrays(arrays, schema=ORIGINS)
    return found.add_column(0, "path", pa.array(map(str, range(len(rows))), pa.large_string()))


def reader(root: Path, rows: list[Row], place: Place | None = None) -> OriginReader:
    return OriginReader([place or Place(url=str(root), part="source")], table(rows))


def fingerprint(data: bytes) -> str:
    return CONTENT + xxhash.xxh3_128_hexdigest(data)


RANGES = st.lists(
    st.tuples(st.sampled_from(list(FILES)), st.integers(0, 59_000), st.integers(0, 5000)),
    max_size=30,
)


@pytest.mark.parametrize("scheme", ["", "memory"])
@settings(max_examples=60)
@given(ranges=RANGES, vectors=st.integers(1, 6), gap=st.sampled_from([0, 500, 16_384]))
def test_ranges_are_read_as_they_are(
    root: Path, scheme: str, ranges: list[tuple[str, int, int]], vectors: int, gap: int
) -> None:
    """In any order, apart and side by side, one in the other, twice; on a disk and in a store."""
    place = memory() if scheme else None
    rows: list[Row] = [(0, name, begin, None) for name, begin, _ in ranges]
    wanted = [FILES[name][begin : begin + size] for name, begin, size in ranges]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origins, "_VECTORS", vectors)
        patch.setattr(origins, "_GAP", gap)
        source = reader(root, rows, place)
        views = [memoryview(bytearray(len(data))) for data in wanted]
        reads = [
            Read(str(number), view, fingerprint(data))
            for number, (view, data) in enumerate(zip(views, wanted, strict=True))
        ]
        source.start_reads(reads)()
    assert [bytes(view) for view in views] == wanted
    for number, data in enumerate(wanted):
        chunks = source.read_chunks(str(number), len(data), fingerprint(data))
        assert b"".join(map(bytes, chunks)) == data


def memory() -> Place:
    """The same files in a store."""
    place = Place(url="memory://origins", part="source")
    storage = open_storage(Place(url="memory://origins"))
    for name, data in FILES.items():
        storage.put(name, data)
    return place


def test_whole_files_and_bytes_beside_ranges(root: Path) -> None:
    (root / "whole").write_bytes(b"whole file")
    time = str((root / "whole").stat().st_mtime_ns)
    rows: list[Row] = [(0, "whole", None, None), (-1, None, None, b"inline"), (0, "a.tar", 7, None)]
    wanted = [b"whole file", b"inline", FILES["a.tar"][7:20]]
    prints = [time, fingerprint(b"inline"), fingerprint(wanted[2])]
    source = reader(root, rows)
    views = [memoryview(bytearray(len(data))) for data in wanted]
    reads = [Read(str(n), view, prints[n]) for n, view in enumerate(views)]
    source.start_reads(reads)()
    assert [bytes(view) for view in views] == wanted
    for number, data in enumerate(wanted):
        source.check_source(str(number), len(data), prints[number])
        chunks = source.read_chunks(str(number), len(data), prints[number])
        assert b"".join(map(bytes, chunks)) == data


OTHERS: dict[str, tuple[Row, int, str]] = {
    "gone from the source": ((GONE, "a.tar", 0, None), 5, "the source has it no more"),
    "another content": ((0, "a.tar", 1, None), 5, "a.tar: its content is not what was scanned"),
    "behind the end": ((0, "a.tar", 59_998, None), 5, "a.tar: found 60,000 bytes"),
    "no such file": ((0, "x.tar", 0, None), 5, "/x.tar is gone"),
    "other bytes": ((-1, None, None, b"other"), 5, "its content is not what was scanned"),
    "fewer bytes": ((-1, None, None, b"few"), 5, "found 3 bytes; 5 were scanned"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_what_was_scanned(root: Path, what: str) -> None:
    row, size, message = OTHERS[what]
    source = reader(root, [row])
    wanted = fingerprint(FILES["a.tar"][:size])
    with pytest.raises(SourceChanged, match=message) as caught:
        source.start_reads([Read("0", memoryview(bytearray(size)), wanted)])()
    assert caught.value.path == "0"
    if row[0] >= 0:
        with pytest.raises(SourceChanged) as caught:
            source.check_source("0", size, wanted)
        assert caught.value.path == "0"
        with pytest.raises(SourceChanged):
            for _ in source.read_chunks("0", size, wanted):
                pass


def test_a_tar_that_ends_within_neighbours(tmp_path: Path) -> None:
    """A call that reads less than it was asked for is not taken for all."""
    (tmp_path / "a.tar").write_bytes(FILES["a.tar"][:1000])
    rows: list[Row] = [(0, "a.tar", 0, None), (0, "a.tar", 900, None)]
    prints = [fingerprint(FILES["a.tar"][:500]), fingerprint(FILES["a.tar"][900:1200])]
    views = [memoryview(bytearray(500)), memoryview(bytearray(300))]
    reads = [Read(str(n), views[n], prints[n]) for n in range(2)]
    with pytest.raises(SourceChanged, match="found 1,000 bytes; more were scanned"):
        reader(tmp_path, rows).start_reads(reads)()


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number in range(origins._OPEN + 40):
        (tmp_path / f"{number}.tar").write_bytes(FILES["a.tar"][:100])
        rows.append((0, f"{number}.tar", 10, None))
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    source = reader(tmp_path, rows)
    data = FILES["a.tar"][10:30]
    views = [memoryview(bytearray(20)) for _ in rows]
    for _ in range(2):
        reads = [Read(str(n), view, fingerprint(data)) for n, view in enumerate(views)]
        source.start_reads(reads)()
    assert all(bytes(view) == data for view in views)
    if before:
        assert len(set(os.listdir("/proc/self/fd")) - before) <= origins._OPEN + 1
        del source
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 1


def test_a_recipe_has_only_the_names_that_it_needs() -> None:
    """Each job is sent to a worker: with all names in it, thousands of jobs would be gigabytes."""
    count = 1000
    names = pa.array([f"shards/{n:06d}.tar" for n in range(count)], pa.large_string())
    codes = pa.array(np.arange(count, dtype=np.int32))
    whole = pa.table(
        [
            pa.array(np.zeros(count, np.int16)), pa.DictionaryArray.from_arrays(codes, names),
            pa.array(np.arange(count)), pa.nulls(count, pa.large_binary()),
        ],
        schema=ORIGINS,
    )  # fmt: skip
    some = Origins((), whole).take(pa.array([7, 3, 7]))
    assert some["file"].to_pylist() == [
        "shards/000007.tar",
        "shards/000003.tar",
        "shards/000007.tar",
    ]
    assert len(some["file"].chunk(0).dictionary) == 2
    assert Origins((), whole).take(pa.array([], pa.int64())).num_rows == 0
    inline: Any = table([(-1, None, None, b"x"), (0, "a", 1, None)]).drop_columns(["path"])
    assert Origins((), inline).take(pa.array([0, 1])).to_pylist() == inline.to_pylist()


def test_a_large_member_is_never_in_memory(tmp_path: Path) -> None:
    size = 400_000_000
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(size + 512)
    state = xxhash.xxh3_128()
    for _ in range(size // 1_000_000):
        state.update(bytes(1_000_000))
    source = reader(tmp_path, [(0, "a.tar", 512, None)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunks = source.read_chunks("0", size, CONTENT + state.hexdigest())
    assert sum(map(len, chunks)) == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert LocalStorage(tmp_path).stat("a.tar") is not None
