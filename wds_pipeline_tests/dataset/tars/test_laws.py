"""Whatever goes in comes out, and nothing else: of cat, split, sort and shuffle."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from wds_pipeline.dataset import tar
from wds_pipeline.dataset.tar_members import read_members
from wds_pipeline.dataset.tar_scan import Walked, walk
from wds_pipeline.dataset.tars.cat import cat
from wds_pipeline.dataset.tars.sample import key_and_field
from wds_pipeline.dataset.tars.shuffle import permutation, shuffle
from wds_pipeline.dataset.tars.sort import Order, sort
from wds_pipeline.dataset.tars.split import split
from wds_pipeline_tests.dataset.foreign_tars import by_gnu_tar, by_tarfile
from wds_pipeline_tests.dataset.tars import archives
from wds_pipeline_tests.dataset.tars.archives import Archive, keys, renamed, samples

SAME = [Archive((("a.jpg", b"1"), ("a.jpg", b"2"), ("b.txt", b""), ("a.jpg", b"1")))]


@given(archives.archives(), st.integers(0, 3))
@example(SAME, 0)
@settings(max_examples=40)
def test_nothing_is_lost_or_repeated(tars: list[Archive], seed: int) -> None:
    wanted = renamed(samples(*tars))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = archives.write(folder, tars)
        out = folder / "out.tar"
        done = cat(paths, str(out), duplicates="rename")
        assert samples(out) == wanted
        assert (done.read, done.written) == (len(samples(*tars)), len(wanted))
        whole = out.read_bytes()
        assert len(whole) == done.bytes
        _check_canonical(whole)

        _, parts = split([str(out)], str(folder / "part-%d.tar"), max_samples=2)
        assert samples(*map(Path, parts)) == wanted
        assert max(len(samples(Path(part))) for part in parts) <= 2

        shuffle(paths, str(folder / "shuffled.tar"), seed=seed, duplicates="rename")
        shuffled = samples(folder / "shuffled.tar")
        assert Counter(shuffled) == Counter(wanted)
        order = permutation(len(wanted), seed).tolist()
        assert shuffled == [wanted[number] for number in order]

        sort([str(folder / "shuffled.tar")], str(folder / "sorted.tar"))
        assert samples(folder / "sorted.tar") == sorted(wanted, key=lambda each: each[0])


def _check_canonical(data: bytes) -> None:
    """A tar of ours: again the same, whoever wrote it first; and read by others as by us."""
    found = by_tarfile(data)
    assert by_gnu_tar(data) == [each.name for each in found]
    assert walk(io.BytesIO(data)).problems == []
    members = [(each.name, data[each.offset : each.offset + each.size]) for each in found]
    again = b"".join(
        tar.header(name, len(content)) + content + bytes(tar.padding(len(content)))
        for name, content in members
    )
    assert again + tar.end(len(again)) == data


@given(archives.archives(), st.integers(1_000, 40_000))
@settings(max_examples=20)
def test_a_split_is_no_larger_than_it_may_be(tars: list[Archive], size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = archives.write(Path(name), tars)
        pattern = str(Path(name) / "part-%03d.tar")
        _, parts = split(paths, pattern, max_bytes=size, duplicates="rename")
        found = [samples(Path(part)) for part in parts]
        assert [each for some in found for each in some] == renamed(samples(*tars))
        for part, some in zip(parts, found, strict=True):
            assert len(some) == 1 or not some or Path(part).stat().st_size <= size
        for one, following in pairwise(found):  # none has room for the next one's first sample
            assert _size([*one, following[0]]) > size


def _size(found: archives.Found) -> int:
    """Of a tar with these samples."""
    position = sum(
        tar.member_size(archives.name(key, field), len(data))
        for key, content in found
        for field, data in content
    )
    return position + len(tar.end(position))


@given(archives.archives())
@settings(max_examples=20)
def test_webdataset_reads_the_same(tars: list[Archive]) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out.tar"
        cat(archives.write(Path(name), tars), str(out), duplicates="rename")
        with out.open("rb") as stream:
            members = tar_file_expander([{"url": "out.tar", "stream": stream}])
            read = [
                (each["__key__"], {k: v for k, v in each.items() if not k.startswith("__")})
                for each in group_by_keys(members)
            ]
        assert read == [
            (key, {field.lower(): data for field, data in content})
            for key, content in renamed(samples(*tars))
        ]


@given(st.text(st.sampled_from("a._/_M\nACOSX"), min_size=1, max_size=12) | st.text(max_size=8))
@example("d/.hidden")
@example("__MACOSX/a.txt")
@example("a/__b__/c.txt")
def test_names_are_read_as_the_index_reads_them(name: str) -> None:
    if "\0" in name or any("\ud800" <= each <= "\udfff" for each in name):
        return
    walked = Walked([name.encode()], [0], [512], [0])
    table = read_members(walked, "x.tar").table.to_pylist()
    found = key_and_field(name)
    if isinstance(found, str):
        assert not table
    else:
        assert [(each["key"], each["extension"]) for each in table] == [found]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20), st.booleans())
def test_sorting_is_stable(values: list[tuple[int, int]], reverse: bool) -> None:
    members = [
        (f"{number:03d}.json", f'{{"a": {{"b": {value}}}, "c": {other}}}'.encode())
        for number, (value, other) in enumerate(values)
    ]
    with tempfile.TemporaryDirectory() as name:
        paths = archives.write(Path(name), [Archive(tuple(members))])
        out = Path(name) / "out.tar"
        sort(paths, str(out), Order("json:a.b", reverse=reverse))
        numbers = sorted(range(len(values)), key=lambda n: values[n][0], reverse=reverse)
        assert keys(samples(out)) == [f"{number:03d}" for number in numbers]


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_an_order_is_a_permutation(count: int) -> None:
    found = [permutation(count, seed).tolist() for seed in (0, 1, -1, 2**64 - 1, 12345)]
    assert all(sorted(each) == list(range(count)) for each in found)
    assert found[2] == found[3]  # the same 64 bits
    if count == 1000:
        assert found[0] != found[1] != found[4]
        assert abs(sum(a < b for a, b in zip(found[0], found[0][1:], strict=False)) - 500) < 50


def test_an_order_is_the_same_for_ever() -> None:
    assert permutation(10, 0).tolist() == [0, 3, 5, 7, 9, 6, 2, 8, 1, 4]


def test_gnu_tar_unpacks_what_went_in(tmp_path: Path) -> None:
    members = [
        (f"d/{n}.{field}", bytes([n]) * n * 40) for n in range(30) for field in ("jpg", "txt")
    ]
    paths = archives.write(tmp_path, [Archive(tuple(members), tarfile.GNU_FORMAT)])
    shuffle(paths, str(tmp_path / "out.tar"))
    (tmp_path / "x").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "out.tar", "-C", tmp_path / "x"], check=True)
    for name, data in members:
        assert (tmp_path / "x" / name).read_bytes() == data
