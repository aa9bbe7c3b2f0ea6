"""The fast walk over headers finds what tarfile and GNU tar find, and says what is wrong."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset import tar_headers
from wds_pipeline.dataset.tar_scan import walk
from wds_pipeline_tests.dataset.foreign_tars import (
    PLAIN,
    by_gnu_tar,
    by_tarfile,
    by_us,
    codes,
    gnu_tar,
    make,
)

FORMATS = [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
WINDOWS = [2048, 4096, 1 << 22]
LONG = "folder/" * 30 + "name.jpg"
needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no GNU tar")

names = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=120
).filter(lambda name: not name.endswith("/"))


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.tuples(names, st.binary(max_size=1600)), min_size=1, max_size=12),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    window=st.sampled_from(WINDOWS),
    times=st.booleans(),
)
def test_any_names_and_sizes(
    members: list[tuple[str, bytes]], format: int, window: int, times: bool
) -> None:
    data = make(members, format, mtime=1.5 if times else 7)
    found, walked = by_us(data, window)
    assert found == by_tarfile(data)
    assert codes(walked) == []


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("window", WINDOWS)
def test_many_members(format: int, window: int) -> None:
    members = [(f"f{n % 7}/{n:06d}.{end}", bytes([n % 251]) * (n * 37 % 1500)) for n in range(300)
               for end in ("jpg", "txt")]  # fmt: skip
    data = make(members, format, mtime=3.25)
    found, walked = by_us(data, window)
    assert found == by_tarfile(data)
    assert codes(walked) == []
    assert walked.extended == ({"pax": 600} if format == tarfile.PAX_FORMAT else {})


@pytest.mark.parametrize("window", WINDOWS)
def test_ustar_prefix_pax_and_gnu_long_names(window: int) -> None:
    prefix = "p" * 90 + "/" + "q" * 90 + ".txt"
    for format, name, kind in (
        (tarfile.USTAR_FORMAT, prefix, {}),
        (tarfile.PAX_FORMAT, LONG, {"pax": 1}),
        (tarfile.GNU_FORMAT, LONG, {"gnu": 1}),
        (tarfile.GNU_FORMAT, LONG * 20, {"gnu": 1}),
        (tarfile.PAX_FORMAT, "über/" * 300 + "é.txt", {"pax": 1}),
    ):
        data = make([("a.txt", b"1"), (name, b"x" * 600), ("b.txt", b"2")], format)
        found, walked = by_us(data, window)
        assert found == by_tarfile(data)
        assert walked.extended == kind
        assert found[1].name == name


def test_pax_size_and_global_headers() -> None:
    info = tarfile.TarInfo("big.bin")
    info.size = 5
    info.pax_headers = {"size": "5", "comment": "none"}
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}
    ) as tar:
        tar.addfile(info, io.BytesIO(b"12345"))
    found, walked = by_us(sink.getvalue())
    assert found == by_tarfile(sink.getvalue())
    assert codes(walked) == []


def test_sizes_in_other_notations() -> None:
    data = bytearray(make([("a.txt", b"12345"), ("b.txt", b"6")]))
    for field in (
        b"\x80" + bytes(10) + b"\x05",
        b"         5 \0",
        b"5 \0" + bytes(9),
        b"000000000005",
    ):
        data[124:136] = field
        total = sum(data[:148]) + sum(data[156:512]) + 256
        data[148:156] = b"%06o\0 " % total
        found, walked = by_us(bytes(data))
        assert found == by_tarfile(bytes(data)), field
        assert codes(walked) == [], field


def test_old_headers_without_magic_and_with_other_checksums() -> None:
    data = bytearray(make([("a.txt", b"12345"), ("é.txt", b"6")]))
    data[257:265] = bytes(8)
    data[156] = 0
    data[148:156] = b"%07o\0" % (sum(data[:148]) + sum(data[156:512]) + 256)
    second = 1024
    header = bytes(data[second : second + 512])
    data[second + 148 : second + 156] = b"%06o\0 " % tar_headers.checksums(header)[1]  # signed
    found, walked = by_us(bytes(data))
    assert found == by_tarfile(bytes(data))
    assert codes(walked) == []


def test_members_that_are_no_files() -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for kind, name in (
            (tarfile.DIRTYPE, "a"),
            (tarfile.LNKTYPE, "a/l.jpg"),
            (tarfile.SYMTYPE, "s"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/1.jpg"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("a/1.jpg"), io.BytesIO(b""))
    found, walked = by_us(sink.getvalue())
    assert found == by_tarfile(sink.getvalue())
    assert walked.others == {"folders": 1, "hard links": 1, "symbolic links": 1}


@needs_tar
@pytest.mark.parametrize("format", ["ustar", "pax", "posix", "gnu", "oldgnu", "v7"])
def test_what_gnu_tar_writes(tmp_path: Path, format: str) -> None:
    for name, data in PLAIN:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    os.link(tmp_path / "a/1.jpg", tmp_path / "a/3.jpg")
    if format not in ("v7", "ustar"):
        (tmp_path / ("n" * 120 + ".txt")).write_bytes(b"long")
    data = gnu_tar(tmp_path, f"--format={format}", "--sort=name")
    for window in WINDOWS:
        found, walked = by_us(data, window)
        assert found == by_tarfile(data)
        assert codes(walked) == []
        assert sum(walked.others.values()) >= 1
    links = walked.others["hard links"]
    assert links == 1
    listed = by_gnu_tar(data)
    assert len(found) == len(listed) - links
    assert {each.name.removeprefix("./") for each in found} <= {
        n.removeprefix("./") for n in listed
    }


@needs_tar
@pytest.mark.parametrize("format", ["gnu", "pax", "oldgnu"])
def test_sparse_files_are_refused(tmp_path: Path, format: str) -> None:
    with (tmp_path / "1.bin").open("wb") as file:
        for hole in range(40):  # more pieces than the first header has room for
            file.seek(hole * 1_000_000)
            file.write(b"data" * 2048)
    (tmp_path / "2.txt").write_bytes(b"whole")
    data = gnu_tar(tmp_path, "--sparse", f"--format={format}", "--sort=name")
    assert len(data) < 5_000_000, "tar found no holes"
    for window in (4096, 1 << 22):
        found, walked = by_us(data, window)
        assert codes(walked) == ["sparse"]
        assert "1.bin" in walked.problems[0].text
        assert [each.name for each in found] == ["./2.txt"]
        assert found[0] in by_tarfile(data)


@pytest.mark.parametrize("format", FORMATS)
def test_cut_at_every_block_and_near_it(format: int) -> None:
    data = make([*PLAIN, (LONG if format != tarfile.USTAR_FORMAT else "z.bin", b"z" * 900)], format)
    whole = by_tarfile(data)
    end = whole[-1].offset + 1024
    for cut in sorted({at + by for at in range(0, end + 1, 512) for by in (0, 1, 511)}):
        for window in (2048, 1 << 22):
            found, walked = by_us(data[:cut], window)
            there = [each for each in whole if each.offset + each.size <= cut]
            if cut >= end + 512:
                continue
            assert found == there, (cut, window)
            (code,) = codes(walked)
            boundary = cut % 512 == 0 and cut in {0, end, *(each.start for each in whole)}
            expected = "not_a_tar" if cut < 512 else "no_end" if boundary else "truncated"
            assert code == expected, (cut, window)


def test_the_end() -> None:
    data = make()
    end = by_tarfile(data)[-1].offset + 512
    assert codes(by_us(data[: end + 1024])[1]) == []
    assert codes(by_us(data[: end + 512])[1]) == ["lone_zero_block"]
    assert codes(by_us(data + bytes(100_000))[1]) == []
    assert by_us(data)[1].end == end


@pytest.mark.parametrize("window", WINDOWS)
def test_what_follows_the_end(window: int) -> None:
    data = make()
    found, walked = by_us(data + make([("b.txt", b"2")]), window)
    assert codes(walked) == ["concatenated"]
    assert walked.problems[0].offset == len(data)
    assert found == by_tarfile(data)
    found, walked = by_us(data + bytes(5000) + b"junk", window)
    assert codes(walked) == ["trailing_data"]


@pytest.mark.parametrize("window", WINDOWS)
def test_damaged_headers(window: int) -> None:
    members = [(f"{n:04d}.txt", b"x" * 300) for n in range(20)]
    data = make(members)
    for where in (1024 * 7 + 3, 1024 * 7 + 124, 1024 * 7 + 150, 1024 * 7 + 156, 1024 * 7 + 300):
        broken = bytearray(data)
        broken[where] ^= 0x15
        found, walked = by_us(bytes(broken), window)
        assert codes(walked) == ["bad_header"], where
        assert walked.problems[0].offset == 1024 * 7
        assert found == by_tarfile(data)[:7]


def test_an_extended_header_without_bounds() -> None:
    data = bytearray(make([(LONG, b"1")], tarfile.PAX_FORMAT))
    data[124:136] = b"77777777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 256)
    _, walked = by_us(bytes(data))
    assert codes(walked) == ["not_a_tar"]
    assert "extended header" in walked.problems[0].text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "0 bytes"),
        (b"\xff\xd8" * 2000, "size field"),
        (gzip.compress(make(), mtime=0) + bytes(512), "gzip"),
        (bytes(range(256)) * 8, ""),
    ],
)
def test_what_is_no_tar(data: bytes, text: str) -> None:
    found, walked = by_us(data)
    assert not found
    assert codes(walked) == ["not_a_tar"]
    assert text in walked.problems[0].text


def test_an_archive_of_nothing() -> None:
    found, walked = by_us(make([]))
    assert not found and codes(walked) == []


def test_a_file_that_comes_in_small_parts() -> None:
    class Slow(io.BytesIO):
        def readinto(self, view: memoryview) -> int:  # type: ignore[override]
            return super().readinto(view[:700])

    data = make(PLAIN, tarfile.PAX_FORMAT)
    assert walk(Slow(data), 4096).names == [name.encode() for name, _ in PLAIN]
