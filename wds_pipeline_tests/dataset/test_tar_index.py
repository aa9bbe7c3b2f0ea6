"""Tars of others: found by what users write, indexed in one pass, not read again, never written to."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_iterator

from wds_pipeline.dataset import tar_index, tar_indexing, tar_scan
from wds_pipeline.dataset.seal import MEMBER_INDEX
from wds_pipeline.dataset.tar_index import TarFacts, open_index, read_index
from wds_pipeline.dataset.tar_indexing import Indexed, index_tars
from wds_pipeline.dataset.tar_members import Members, read_members
from wds_pipeline.dataset.tar_paths import find_tars
from wds_pipeline.errors import ConfigError, SourceError, VersionError
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.dataset.foreign_tars import make


def members(number: int, count: int = 3) -> list[tuple[str, bytes]]:
    keys = [f"{number:02d}/{each:04d}" for each in range(count)]
    return [(f"{key}.{end}", f"{end} of {key}".encode()) for key in keys for end in ("jpg", "txt")]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of three samples."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        write(folder / f"cc-{number:04d}.tar", make(members(number)), number)
    return folder


def write(path: Path, data: bytes, time: int) -> None:
    """Writes a tar, with a time of its own: with a fraction, as a filesystem gives it."""
    path.write_bytes(data)
    os.utime(path, ns=(0, 1_700_000_000_123_456_789 + time * 1_000_000))


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*.tar"))
    }


def look(data: bytes) -> Members:
    return read_members(tar_scan.walk(io.BytesIO(data)), "x.tar")


def found_codes(data: bytes) -> dict[str, str]:
    return {each.code: each.severity for each in look(data).findings}


# What users write.


def test_braces_lists_folders_and_patterns(tars: Path) -> None:
    all_of_them = [f"cc-{number:04d}.tar" for number in range(3)]
    for names in (
        [f"{tars}/cc-{{0000..0002}}.tar"],
        [f"{tars}/cc-0000.tar::{tars}/cc-{{0001..0002}}.tar"],
        [str(tars)],
        [f"{tars}/"],
        [f"{tars}/cc-*.tar"],
        [f"file:{tars}/cc-{{0000..0002}}.tar"],
        [f"file://{tars}/cc-{{0000..0002}}.tar"],
        [f"{tars}/{name}" for name in all_of_them] + [f"{tars}/cc-0001.tar"],
    ):
        found = find_tars(names)
        assert [file.path for file in found.files] == all_of_them, names
        assert found.storage.url == str(tars)


def test_relative_names_and_folders_below(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tars / "more").mkdir()
    (tars / ".hidden").mkdir()
    for folder in ("more", ".hidden"):
        shutil.copy(tars / "cc-0000.tar", tars / folder / "d-0.tar")
    monkeypatch.chdir(tars.parent)
    assert [file.path for file in find_tars(["tars"]).files][-1] == "more/d-0.tar"
    assert len(find_tars(["tars"]).files) == 4
    found = find_tars(["tars/more/d-0.tar", "tars/cc-0000.tar"])
    assert [file.path for file in found.files] == ["more/d-0.tar", "cc-0000.tar"]


def test_names_that_cannot_be(tars: Path) -> None:
    with pytest.raises(SourceError, match="7 of 10 tars are not there; fetch them") as error:
        find_tars([f"{tars}/cc-{{0000..0009}}.tar"])
    assert "cc-0003.tar" in str(error.value) and "2 more" in str(error.value)
    with pytest.raises(SourceError, match="no file has such a name"):
        find_tars([f"{tars}/dd-*.tar"])
    (tars / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no file that ends with \.tar"):
        find_tars([f"{tars}/empty"])
    with pytest.raises(ConfigError, match="different stores"):
        find_tars([f"{tars}/cc-0000.tar", "memory://bucket/cc-0001.tar"])
    with pytest.raises(ConfigError, match="pipe"):
        find_tars(["pipe:cat x.tar"])
    with pytest.raises(ConfigError, match="which tars"):
        find_tars([])


# The index.


def check(result: Indexed, tars: Path) -> None:
    """Every sample's bytes are where the index says, and the tars are as they were."""
    for path, samples, size, digest, table in read_index(open_storage(str(tars))):
        data = (tars / path).read_bytes()
        assert size == len(data)
        assert digest.startswith("xxh3-128:")
        assert table.schema == MEMBER_INDEX
        assert len(set(table["key"].to_pylist())) == samples
        for row in table.to_pylist():
            content = data[row["offset"] : row["offset"] + row["size"]].decode()
            assert content == f"{row['field']} of {row['key']}"
    assert [each.path for each in result.index.rows] == [
        each.path for each in open_index(str(tars)).rows
    ]


def test_an_index_beside_the_tars(tars: Path) -> None:
    before = state(tars)
    result = index_tars([f"{tars}/cc-{{0000..0002}}.tar"])
    assert (len(result.read), result.kept, result.index.samples) == (3, 0, 9)
    check(result, tars)
    assert state(tars) == before
    assert open_index(str(tars / ".wds_pipeline")).tars.url == str(tars)
    assert open_index(str(tars)).digest == result.index.digest


def test_many_bytes_go_to_processes(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_threads = index_tars([str(tars)], str(tars.parent / "one")).index.rows
    monkeypatch.setattr(tar_indexing, "_WORTH_PROCESSES", 0)
    result = index_tars([str(tars)], workers=2)
    assert result.index.rows == by_threads
    check(result, tars)


def test_an_index_elsewhere(tars: Path, tmp_path: Path) -> None:
    result = index_tars([str(tars)], str(tmp_path / "index"))
    assert not (tars / ".wds_pipeline").exists()
    index = open_index(str(tmp_path / "index"))
    assert (index.tars.url, index.samples) == (str(tars), 9)
    assert index.read_members(index.rows[0]).num_rows == 6
    assert index.rows == result.index.rows


def test_nothing_changed_nothing_read(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_tars([str(tars)])
    written = (tars / ".wds_pipeline/index.parquet").stat().st_mtime_ns
    monkeypatch.setattr(tar_indexing, "run", None)
    result = index_tars([str(tars)])
    assert (result.read, result.kept) == ([], 3)
    assert (tars / ".wds_pipeline/index.parquet").stat().st_mtime_ns == written
    check(result, tars)


def test_added_changed_removed_and_renamed(tars: Path) -> None:
    index_tars([str(tars)])
    write(tars / "cc-0000.tar", make(members(7)), 7)  # the same size
    write(tars / "cc-0003.tar", make(members(3)), 3)
    (tars / "cc-0001.tar").unlink()
    (tars / "cc-0002.tar").rename(tars / "dd.tar")
    result = index_tars([str(tars)])
    assert result.read == ["cc-0000.tar", "cc-0003.tar"]
    assert (result.removed, result.renamed) == (["cc-0001.tar"], {"cc-0002.tar": "dd.tar"})
    check(result, tars)
    assert index_tars([str(tars)], again=True).read == ["cc-0000.tar", "cc-0003.tar", "dd.tar"]


def test_a_time_of_whole_seconds_is_no_proof_of_a_new_name(tars: Path) -> None:
    os.utime(tars / "cc-0002.tar", (0, 1_700_000_000))
    index_tars([str(tars)])
    (tars / "cc-0002.tar").rename(tars / "dd.tar")
    assert index_tars([str(tars)]).read == ["dd.tar"]
    (tars / "more").mkdir()
    (tars / "dd.tar").rename(tars / "more/dd.tar")
    assert index_tars([str(tars)]).renamed == {"dd.tar": "more/dd.tar"}


def test_more_tars_are_added(tars: Path) -> None:
    index_tars([f"{tars}/cc-0000.tar"])
    result = index_tars([f"{tars}/cc-0002.tar"], add=True)
    assert [each.path for each in result.index.rows] == ["cc-0000.tar", "cc-0002.tar"]
    assert result.read == ["cc-0002.tar"]
    assert index_tars([f"{tars}/cc-0001.tar"]).removed == ["cc-0000.tar", "cc-0002.tar"]


def test_who_opened_the_index_before_reads_on(tars: Path) -> None:
    index_tars([str(tars)])
    before = open_index(str(tars))
    write(tars / "cc-0000.tar", make(members(7)), 7)
    index_tars([str(tars)])
    assert before.read_members(before.rows[0])["key"][0].as_py() == "00/0000"
    write(tars / "cc-0000.tar", make(members(8)), 8)
    index_tars([str(tars)])
    assert len(list((tars / ".wds_pipeline/members").iterdir())) == 4  # the first is gone


def test_a_member_index_that_is_gone_is_made_again(tars: Path) -> None:
    first = index_tars([str(tars)]).index.rows[0]
    (tars / ".wds_pipeline" / first.members_name).unlink()
    result = index_tars([str(tars)])
    assert result.read == ["cc-0000.tar"]
    check(result, tars)


def test_a_tar_that_is_written_meanwhile(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(file: io.BufferedReader) -> tar_scan.Walked:
        found = tar_scan.walk(file)
        write(tars / "cc-0001.tar", make(members(5)), 5)
        return found

    monkeypatch.setattr(tar_indexing, "walk", walk)
    result = index_tars([f"{tars}/cc-0001.tar"])
    assert [each.code for each in result.index.rows[0].errors] == ["changed"]
    monkeypatch.undo()
    result = index_tars([f"{tars}/cc-0001.tar"])
    assert (result.read, result.index.rows[0].errors) == (["cc-0001.tar"], [])
    check(result, tars)


def test_no_index_a_damaged_and_a_newer_one(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VersionError, match="make one with `wds-pipeline index"):
        open_index(str(tars))
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "FORMAT_VERSION", 2)
        index_tars([str(tars)])
    with pytest.raises(VersionError, match="format version 2; this release reads up to 1"):
        open_index(str(tars))
    (tars / ".wds_pipeline/index.parquet").write_bytes(b"junk")
    with pytest.raises(VersionError, match=r"not a readable index.*run `wds-pipeline index` again"):
        open_index(str(tars))


def test_some_of_an_index(tars: Path) -> None:
    index = index_tars([str(tars)]).index
    assert [each.path for each in index.select(["cc-0002.tar"]).rows] == ["cc-0002.tar"]
    with pytest.raises(VersionError, match=r"1 of 2 tars are not in this index, such as x\.tar"):
        index.select(["cc-0000.tar", "x.tar"])


# What is wrong with tars.


def test_a_sound_tar_has_no_findings() -> None:
    found = look(make(members(0)))
    assert (found.findings, found.misread) == ([], {})
    assert (found.samples, found.fields) == (3, {"jpg": 3, "txt": 3})


@pytest.mark.parametrize(
    ("names", "expected", "samples"),
    [
        (["a.jpg", "b.jpg", "a.txt"], {"key_not_adjacent": "error"}, 3),
        (["a.jpg", "a.JPG"], {"duplicate_field": "error", "upper_case": "warning"}, 1),
        (["a.jpg", "a.jpg"], {"duplicate_field": "error"}, 1),
        (
            ["._a.jpg", "a.jpg", "x/.DS_Store", "__MACOSX/._a.jpg", "a.txt"],
            {"dropping": "warning"},
            1,
        ),
        (["README", ".hidden", "a.jpg"], {"no_key": "warning"}, 1),
        (["__meta__/a.jpg", "a.jpg"], {"hidden": "warning"}, 1),
        (["a.JPG", "a.txt"], {"upper_case": "warning"}, 1),
        (["a" * 101 + ".jpg"], {"gnu_names": "warning"}, 1),
    ],
)
def test_findings(names: list[str], expected: dict[str, str], samples: int) -> None:
    data = make([(name, b"x") for name in names], tarfile.GNU_FORMAT)
    assert found_codes(data) == expected
    assert look(data).samples == samples


def test_pax_everywhere_and_names_that_are_not_utf8() -> None:
    data = make(members(0), tarfile.PAX_FORMAT, mtime=1.5)
    assert found_codes(data) == {"pax": "warning"}
    raw = bytearray(make([("a\udce9.jpg".encode(errors="replace").decode(), b"x")]))
    raw[1] = 0xE9
    raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + sum(raw[156:512]) + 256)
    found = look(bytes(raw))
    assert [each.code for each in found.findings] == ["not_utf8"]
    assert found.table["key"].to_pylist() == ["a\\xe9"]


def test_what_was_found_stays_in_the_index(tars: Path) -> None:
    write(tars / "cc-0001.tar", make(members(1))[:1500], 9)
    for _ in range(2):
        rows: tuple[TarFacts, ...] = index_tars([str(tars)]).index.rows
        (error,) = rows[1].errors
        assert (error.code, error.shard, rows[1].samples) == ("truncated", "cc-0001.tar", 1)
        assert "Fetch" in error.message
    assert [len(row.errors) for row in open_index(str(tars)).rows] == [0, 1, 0]


stems = st.sampled_from(["a", "b", "x/a", "./b", "x.y/a", "_", "a__", "x/_/b-"])
endings = st.sampled_from([".jpg", ".txt", ".seg.png", ".", "..", ".a/b", "", ".x.", "/.c"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.tuples(stems, endings).map("".join), min_size=1, max_size=6))
def test_the_samples_are_those_that_webdataset_sees(names: list[str]) -> None:
    """Where the index says that other readers see the same."""
    found = look(make([(name, name.encode()) for name in names]))
    assume(not found.misread)
    data = make([(name, name.encode()) for name in names])
    members = tar_file_iterator(io.BytesIO(data))
    seen = [
        (sample["__key__"], field, content)
        for sample in group_by_keys({**each, "__url__": ""} for each in members)
        for field, content in sample.items()
        if not field.startswith("__")
    ]
    ours = [
        (row["key"], row["field"], data[row["offset"] : row["offset"] + row["size"]])
        for row in found.table.to_pylist()
    ]
    assert ours == seen


def test_tars_in_another_kind_of_store() -> None:
    store = open_storage("memory://tars-of-others/set")
    for number in range(2):
        store.put(f"cc-{number}.tar", make(members(number)))
    result = index_tars(["memory://tars-of-others/set/cc-{0..1}.tar"])
    assert (len(result.read), result.index.samples) == (2, 6)
    assert index_tars(["memory://tars-of-others/set/"]).kept == 2
    (first, _) = read_index(store)
    row = first.members.to_pylist()[0]
    assert store.read("cc-0.tar")[row["offset"] :].startswith(b"jpg of 00/0000")
