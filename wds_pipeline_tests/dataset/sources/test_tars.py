"""A dataset of tars of others: what is taken, what is read again, and that nothing is silently short."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.config_file import load_config
from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.sources import tar_contents, tars
from wds_pipeline.dataset.sources.tar_contents import TarJob, read_tar
from wds_pipeline.dataset.tar_scan import Walk
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline.storage import LocalStorage
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.sources.derived import Derived, of_source, rebuild

Members = list[tuple[str, bytes]]


def samples(first: int, count: int) -> Members:
    """Two members a sample."""
    return [
        (f"a/{number:03d}.{field}", f"{field} of {number}".encode())
        for number in range(first, first + count)
        for field in ("txt", "cls.txt")
    ]


def write(folder: Path, name: str, members: Members, **options: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make(members, **options))
    return path


def of_tars(folder: Path, urls: Any, **options: Any) -> Derived:
    return of_source(folder / "out", {"shards": urls}, shards={"max_samples": 4}, **options)


def content(members: Members) -> set[tuple[str, bytes]]:
    return set(members)


def published(project: Derived) -> set[tuple[str, bytes]]:
    return {
        (f"{key}.{field}", data)
        for key, fields in project.published().items()
        for field, data in fields.items()
    }


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three tars of ten samples."""
    for number in range(3):
        write(tmp_path / "tars", f"cc-{number:04d}.tar", samples(10 * number, 10))
    return tmp_path


@pytest.mark.parametrize(
    "urls",
    [
        "tars/cc-{0000..0002}.tar",
        "tars/*.tar",
        "tars/",
        "tars/cc-0000.tar::tars/cc-{0001..0002}.tar",
        ["tars/cc-0000.tar", "tars/cc-000[12].tar", "tars/cc-0001.tar"],
    ],
)
def test_names_of_all_kinds(
    three: Path, monkeypatch: pytest.MonkeyPatch, urls: str | list[str]
) -> None:
    monkeypatch.chdir(three)
    project = of_tars(three, urls)
    project.build()
    assert published(project) == content(samples(0, 30))
    assert project.build().status == "unchanged"


def test_paths_start_at_the_folder_of_the_file(three: Path) -> None:
    (three / "x.yaml").write_text(
        "name: x\nsource: {shards: 'tars/*.tar'}\ndestination: {url: out}\n"
    )
    assert Build(load_config(three / "x.yaml")).scan().files.num_rows == 60


def test_only_new_and_changed_tars_are_read(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(job: TarJob) -> Any:
        read.append(job.file.path)
        return read_tar(job)

    monkeypatch.setattr(tar_contents, "read_tar", count)
    project = of_tars(three, str(three / "tars"))
    project.build()
    assert sorted(read) == ["cc-0000.tar", "cc-0001.tar", "cc-0002.tar"]
    read.clear()
    assert project.build().status == "unchanged"
    os.utime(three / "tars/cc-0001.tar", (1, 1))  # the same content: read, and nothing is packed
    assert rebuild(project) == []
    assert read == ["cc-0001.tar"]
    assert project.build().status == "unchanged"
    edited = [(n, b"edited" if n == "a/003.txt" else d) for n, d in samples(0, 10)]
    read.clear()
    write(three / "tars", "cc-0000.tar", edited)
    assert len(rebuild(project)) == 1
    assert read == ["cc-0000.tar"]
    assert published(project) == content([*edited, *samples(10, 20)])
    (three / "tars/cc-0002.tar").rename(three / "tars/other.tar")
    assert rebuild(project) == []


def test_a_look_reads_no_tar(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = of_tars(three, str(three / "tars"))
    source = Build(project.config()).source
    digest = source.scan().digest
    monkeypatch.setattr(tar_contents, "read_tar", None)
    look = source.look(1.0)
    assert (look.complete, look.digest, look.files) == (True, digest, 3)
    os.utime(three / "tars/cc-0001.tar", (1, 1))
    assert source.look(1.0).digest != digest


def test_fields(three: Path) -> None:
    project = of_tars(three, {"urls": [str(three / "tars")], "fields": ["txt"]})
    project.build()
    assert published(project) == {each for each in content(samples(0, 30)) if ".cls" not in each[0]}
    project = of_tars(three / "b", {"urls": [str(three / "tars")], "fields": ["text"]})
    with pytest.raises(ConfigError, match="fields: no sample has a field 'text'"):
        project.build()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r": source\.shards: .*not there"):
        of_tars(tmp_path, str(tmp_path / "no.tar")).build()
    with pytest.raises(SourceError, match=r": source\.shards: .*no file has such a name"):
        of_tars(tmp_path, str(tmp_path / "no-*.tar")).build()


def test_one_key_in_two_tars_is_in_the_quarantine(three: Path) -> None:
    write(three / "tars", "more.tar", [("a/003.json", b"{}"), *samples(40, 2)])
    project = of_tars(three, str(three / "tars"))
    manifest = project.build().manifest
    assert manifest.quarantined == {"key_in_two_tars": 1}
    row = version.read_table(project.storage, manifest, version.QUARANTINE).to_pylist()[0]
    assert row["key"] == "a/003"
    assert "cc-0000.tar and " in row["detail"] and "more.tar" in row["detail"]
    assert "labels" in row["detail"]
    rest = [each for each in [*samples(0, 30), *samples(40, 2)] if not each[0].startswith("a/003")]
    assert published(project) == content(rest)


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2 + 100],
    "not_a_tar": lambda data: b"\x1f\x8b" + data[2:],
    "no_end": lambda data: data[: data.rstrip(b"\0").__len__() // 512 * 512 + 512],
    "bad_header": lambda data: data[:4096] + b"junk" + data[4100:],
    "concatenated": lambda data: data + make([("z.txt", b"z")]),
    "trailing_data": lambda data: data + b"x" * 600,
}


@pytest.mark.parametrize("code", DAMAGE)
def test_a_damaged_tar_is_an_error(three: Path, code: str) -> None:
    path = three / "tars/cc-0001.tar"
    path.write_bytes(DAMAGE[code](path.read_bytes()))
    project = of_tars(three, str(three / "tars"))
    with pytest.raises(DataError, match=rf"1 of 3 tars are damaged:\n .*cc-0001.tar: {code}: "):
        project.build()
    keeping = of_tars(three / "b", {"urls": [str(three / "tars")], "on_damage": "keep"})
    if code == "not_a_tar":
        with pytest.raises(DataError, match="not_a_tar"):
            keeping.build()
        return
    manifest = keeping.build().manifest
    cut = code in ("truncated", "bad_header", "no_end")
    assert manifest.quarantined == ({"cut_off": 1} if cut else {})
    assert published(keeping) <= content(samples(0, 30))
    left = {"truncated": 27, "bad_header": 21, "no_end": 29}
    assert len(keeping.published()) == left.get(code, 30)


def test_members_that_readers_misread(tmp_path: Path) -> None:
    members = [
        ("a/1.txt", b"1"), ("a/2.txt", b"2"), ("a/1.json", b"{}"),  # comes back
        ("a/3.TXT", b"3"), ("a/3.JSON", b"{}"),
        ("a/4.txt", b"4"), ("a/4.txt", b"four"),  # twice
        ("__meta__/x.txt", b"skipped"), ("README", b"no key"), ("a/._5.txt", b"macOS"),
        ("a/6.txt", b"6"),
    ]  # fmt: skip
    write(tmp_path, "x.tar", members)
    project = of_tars(tmp_path, str(tmp_path / "x.tar"))
    manifest = project.build().manifest
    assert manifest.quarantined == {"key_not_adjacent": 1, "duplicate_field": 1}
    assert project.published() == {
        "a/2": {"txt": b"2"}, "a/3": {"txt": b"3", "json": b"{}"}, "a/6": {"txt": b"6"},
    }  # fmt: skip
    report = json.loads(version.read_file(project.storage, manifest, version.REPORT_JSON))
    skipped = {k: n for k, n in report["files"]["went"].items() if k.startswith("skipped")}
    assert skipped == {"skipped: apple_double": 1, "skipped: no_key": 1, "skipped: reserved": 1}


def test_a_sparse_member_takes_its_sample_to_the_quarantine(tmp_path: Path) -> None:
    data = bytearray(make([("a/1.txt", b"1"), ("a/1.bin", b"2"), ("a/2.txt", b"3")]))
    header = data[1024:1536]
    header[156:157] = b"S"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    (tmp_path / "x.tar").write_bytes(data)
    project = of_tars(tmp_path, str(tmp_path / "x.tar"))
    assert project.build().manifest.quarantined == {"sparse_member": 1}
    assert set(project.published()) == {"a/2"}


def test_names_that_begin_with_a_dot_and_slash(tmp_path: Path) -> None:
    write(tmp_path, "x.tar", [(f"./{name}", data) for name, data in samples(0, 3)])
    key = {"pattern": "^\\./", "replace": ""}
    project = of_tars(tmp_path, str(tmp_path / "x.tar"), samples={"key": key})
    project.build()
    assert published(project) == content(samples(0, 3))


def test_processes_read_as_threads_do(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "_WORTH_POOL", 0)
    project = of_tars(three, str(three / "tars"), compute={"kind": "processes", "workers": 2})
    project.build()
    assert published(project) == content(samples(0, 30))


def test_a_tar_that_is_written_to_meanwhile(three: Path) -> None:
    project = of_tars(three, str(three / "tars"))
    listing = Build(project.config()).scan()
    write(three / "tars", "cc-0001.tar", samples(10, 11))
    with pytest.raises(SourceError, match="was written while it was read") as caught:
        _ = listing.files
    assert caught.value.passing
    project.build()
    assert published(project) == content([*samples(0, 20), *samples(21, 9)])


NAMES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b/c", "d" * 60 + "/" + "e" * 60]),
        st.integers(0, 9),
        st.integers(0, 5000),
    ),
    max_size=12,
    unique_by=lambda each: each[:2],
)


@settings(max_examples=40)
@given(
    NAMES,
    st.sampled_from([2048, 4096, 1 << 20]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(0, 40),
)
def test_contents_are_digested_while_walking(
    members: list[tuple[str, int, int]], window: int, form: int, cut: int
) -> None:
    """Whatever the window, and however the tar was cut."""
    data = make([(f"{a}.{n}", bytes([n]) * size) for a, n, size in members], form)
    data = data[: max(0, len(data) - 512 * cut)]
    walk = Walk(io.BytesIO(data), window)
    found = tar_contents._digests(walk)
    walked = walk.found
    expected = [
        xxhash.xxh3_128_digest(data[at : at + size])
        for at, size in zip(walked.offsets, walked.sizes, strict=True)
    ]
    assert [found[n : n + 16] for n in range(0, len(found), 16)] == expected


def test_what_is_kept_is_what_was_read(three: Path) -> None:
    storage = LocalStorage(three)
    file = storage.stat("tars/cc-0000.tar")
    assert file is not None
    found = read_tar(TarJob(storage.place, file, storage.place, "kept.parquet"))
    again = tar_contents.load(storage, "kept.parquet")
    assert again == found
    (three / "kept.parquet").write_bytes(b"damaged")
    assert tar_contents.load(storage, "kept.parquet") is None
