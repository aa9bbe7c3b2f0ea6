"""Every kind of damage to a stored shard is found, named, and does not raise."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wds_pipeline.dataset import content, tar
from wds_pipeline.dataset.seal import (
    MEMBER_INDEX,
    MEMBERS,
    REPORT,
    TAR,
    Seal,
    parquet_bytes,
    path,
)
from wds_pipeline.dataset.shard_report import (
    LEVELS,
    Rules,
    ShardReport,
    known_facts,
    load_report,
    save_report,
)
from wds_pipeline.dataset.shard_report import MEMBERS as REPORT_MEMBERS
from wds_pipeline.dataset.tar_read import HeaderOf
from wds_pipeline.dataset.verify import read_thumbnail, verify_shard
from wds_pipeline.storage import LocalStorage

NAME = "train-000000-abc"
LONG = "folder/" + "n" * 300
Files = Sequence[tuple[str, bytes]]


def rules(level: str = "decode", **changes: Any) -> Rules:
    return replace(Rules(level, 1.0, 1_000_000, {}), **changes)


def jpeg(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (40, 30), random.Random(seed).randbytes(3600)).save(out, "JPEG")
    return out.getvalue()


def samples(count: int = 5) -> list[tuple[str, bytes]]:
    files = []
    for number in range(count):
        files.append((f"dir/ä{number}.jpg", jpeg(number)))
        files.append((f"dir/ä{number}.json", b'{"n": %d}' % number))
        files.append((f"dir/ä{number}.txt", b"a caption, number %d" % number))
    return [*files, (LONG + ".txt", bytes(b"x" * 1024))]


def tar_bytes(files: Files) -> bytes:
    """A tar by our writer's headers."""
    out = io.BytesIO()
    for name, data in files:
        out.write(tar.header(name, len(data)) + data + bytes(tar.padding(len(data))))
    return out.getvalue() + tar.end(out.tell())


def index_of(data: bytes) -> pa.Table:
    rows: dict[str, list[Any]] = {each: [] for each in MEMBER_INDEX.names}
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        for info in opened:
            folder, _, base = info.name.rpartition("/")
            stem, _, field = base.partition(".")
            rows["key"].append(f"{folder}/{stem}" if folder else stem)
            rows["field"].append(field)
            rows["offset"].append(info.offset_data)
            rows["size"].append(info.size)
    return pa.table(rows, MEMBER_INDEX)


class Shard:
    """A stored shard; `put` replaces its bytes and, on request, seals what it then is."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self.storage = LocalStorage(root)
        self.files = samples() if files is None else files
        self.data = tar_bytes(self.files)
        self.index = index_of(self.data)
        self.seal = Seal(NAME, "train", 0, "abc", 0, len(self.files), 0, "")
        self.put(self.data, sealed=True)
        self.put_index(self.index)

    def put(self, data: bytes, sealed: bool = False, algorithm: str = "xxh3-128") -> None:
        self.storage.put(path(NAME, TAR), data)
        if sealed:
            xxh3 = xxhash.xxh3_128_hexdigest(data)
            digest = xxh3 if algorithm == "xxh3-128" else hashlib.sha256(data).hexdigest()
            self.seal = replace(
                self.seal,
                samples=len(set(self.index.column("key").to_pylist())),
                bytes=len(data),
                digest=f"{algorithm}:{digest}",
            )

    def put_index(self, index: pa.Table) -> None:
        self.storage.put(path(NAME, MEMBERS), parquet_bytes(index))

    @property
    def expected(self) -> pa.Table:
        return pa.table(
            {"name": [name for name, _ in self.files], "size": [len(d) for _, d in self.files]}
        )

    def verify(self, level: str = "decode", **changes: Any) -> ShardReport:
        return verify_shard(self.storage, self.seal, rules(level, **changes), self.expected)

    def codes(self, level: str = "samples") -> set[str]:
        report = self.verify(level)
        where = self.storage.locate(path(NAME, TAR))
        assert all(each.message.startswith(where) for each in report.findings)
        assert report.passed == (not report.findings)
        return {each.code for each in report.findings}


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard(tmp_path)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("algorithm", ["xxh3-128", "sha256"])
def test_a_sound_shard_passes(shard: Shard, level: str, algorithm: str) -> None:
    shard.put(shard.data, sealed=True, algorithm=algorithm)
    report = shard.verify(level)
    assert report.passed and not report.findings
    assert report.samples == 6
    rows = report.members.to_pylist()
    assert [each["key"] + "." + each["field"] for each in rows] == [n for n, _ in shard.files]
    assert [each["size"] for each in rows] == [len(data) for _, data in shard.files]
    read = level in ("samples", "decode")
    assert [each["digest"] for each in rows] == [
        xxhash.xxh3_128_digest(data) if read else None for _, data in shard.files
    ]
    assert {each["decoded"] for each in rows} == {level == "decode"}


def test_content_problems_are_facts_and_no_damage(tmp_path: Path) -> None:
    files = [("a.jpg", jpeg()[:-300]), ("a.txt", b"\xff"), ("b.jpg", jpeg()), ("b.txt", b"fine")]
    report = Shard(tmp_path, files).verify()
    assert report.passed
    rows = report.members.to_pylist()
    assert [each["problem"] for each in rows] == ["broken_image", "bad_text", None, None]
    assert (rows[2]["width"], rows[2]["height"], rows[2]["format"]) == (40, 30, "JPEG")
    assert rows[3]["chars"] == 4


def test_tars_of_other_writers_can_be_read(tmp_path: Path) -> None:
    files = samples()
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        shard = Shard(tmp_path, files[:-1] if form == tarfile.USTAR_FORMAT else files)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as opened:
            for name, data in shard.files:
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
                opened.addfile(info, io.BytesIO(data))
        shard.index = index_of(out.getvalue())
        shard.put_index(shard.index)
        shard.put(out.getvalue(), sealed=True)
        assert not shard.codes()


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60),
    st.integers(0, 8**12),
    st.sampled_from([b"0", b"\0", b"5", b"2", b"L", b"x"]),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]),
    st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=2),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_headers_mean_what_tarfile_says(
    name: str, size: int, kind: bytes, form: int, flips: list[tuple[int, int]], repair: bool
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    try:
        block = bytearray(info.tobuf(form)[-512:])  # type: ignore[arg-type]
    except ValueError:
        return
    for at, value in flips:
        block[at] = value
    if repair:
        block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)

    def read(kind: type[tarfile.TarInfo]) -> object:
        try:
            found = kind.frombuf(bytes(block), "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            return type(error), str(error)
        return found.name, found.size, found.type

    assert read(HeaderOf) == read(tarfile.TarInfo)


def test_missing_files(shard: Shard) -> None:
    for level in LEVELS:
        shard.storage.delete(path(NAME, TAR))
        assert shard.codes(level) == {"missing_tar"}
        shard.put(shard.data)
        shard.storage.delete(path(NAME, MEMBERS))
        assert shard.codes(level) == {"missing_index"}
        shard.storage.put(path(NAME, MEMBERS), b"no parquet")
        assert shard.codes(level) == {"bad_index"}
        shard.put_index(shard.index)


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flip_is_found_at_level_digest(shard: Shard, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(shard.data) - 1))
    damaged = bytearray(shard.data)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    shard.put(bytes(damaged))
    assert shard.codes("digest") == {"wrong_digest"}


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flip_in_a_header_is_found_even_under_a_right_digest(
    shard: Shard, data: st.DataObject
) -> None:
    """As if the writer had been wrong. The checksum's own field has bytes that say nothing."""
    starts = [offset - 512 for offset in shard.index.column("offset").to_pylist()]
    start = data.draw(st.sampled_from(starts))
    at = data.draw(st.integers(0, 511).filter(lambda each: not 148 <= each < 156))
    damaged = bytearray(shard.data)
    damaged[start + at] ^= 1 << data.draw(st.integers(0, 7))
    shard.put(bytes(damaged), sealed=True)
    assert shard.codes()


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_cut_is_found_even_under_a_right_digest(shard: Shard, data: st.DataObject) -> None:
    end = shard.index.to_pylist()[-1]
    last = end["offset"] + end["size"] + tar.padding(end["size"]) + 2 * tar.BLOCK
    shard.put(shard.data[: data.draw(st.integers(0, last - 1))], sealed=True)
    assert shard.codes() & {"truncated", "not_a_tar", "bad_header"}


def test_cuts_at_every_kind_of_boundary(shard: Shard) -> None:
    rows = shard.index.to_pylist()
    header, start = rows[3]["offset"] - 512, rows[3]["offset"]
    last = rows[-1]["offset"] + rows[-1]["size"]
    pax = shard.data.index(b"././@PaxHeader") if b"././@PaxHeader" in shard.data else None
    cuts = {
        "between members": header, "in a header": header + 100, "after a header": start,
        "in data": start + 5, "in the padding": start + rows[3]["size"] + 1,
        "before the end": last, "after one zero block": last + 512, "all": 0,
    }  # fmt: skip
    if pax is not None:
        cuts |= {"before PAX data": pax + 512, "in PAX data": pax + 600}
    good = shard.seal
    for name, cut in cuts.items():
        shard.put(shard.data[:cut], sealed=True)
        assert shard.codes() & {"truncated", "not_a_tar", "bad_header"}, name
        shard.seal = good
        assert shard.codes("stat") == {"wrong_size"}, name
        assert shard.codes("digest") == {"wrong_size", "wrong_digest"}, name


def test_bytes_behind_the_end(shard: Shard) -> None:
    shard.put(shard.data + b"\0" * 5000 + b"x", sealed=True)
    assert "trailing_data" in shard.codes()
    shard.put(shard.data + bytes(5000), sealed=True)
    assert not shard.codes()
    shard.put(shard.data + shard.data, sealed=True)  # a second archive, which readers ignore
    assert "trailing_data" in shard.codes()


def _swapped(files: list[tuple[str, bytes]]) -> Files:
    return [*files[3:6], *files[:3], *files[6:]]


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (_swapped, {"wrong_order", "index_mismatch"}),
        (lambda files: files[:-2], {"missing_member", "index_mismatch", "wrong_count"}),
        (lambda files: [*files, ("z.txt", b"z")],
         {"unexpected_member", "index_mismatch", "wrong_count"}),
        (lambda files: [*files[:4], (files[4][0], b"{}  "), *files[5:]],
         {"wrong_member_size", "index_mismatch"}),
        (lambda files: [*files[:4], ("dir/ä1.JSN", files[4][1]), *files[5:]],
         {"missing_member", "unexpected_member", "index_mismatch"}),
        (lambda files: [files[0], *files[2:], files[1]],
         {"wrong_order", "key_not_adjacent", "index_mismatch"}),
        (lambda files: [files[0], *files],
         {"unexpected_member", "duplicate_field", "index_mismatch", "wrong_count"}),
        (lambda files: [*files, ("noextension", b"1")],
         {"unexpected_member", "bad_name", "index_mismatch", "wrong_count"}),
        (lambda files: [*files, ("__meta__/a.txt", b"1")],
         {"unexpected_member", "bad_name", "index_mismatch", "wrong_count"}),
        (lambda files: [], {"missing_member", "index_mismatch", "wrong_count"}),
    ],
)  # fmt: skip
def test_members_that_are_not_the_plans(
    shard: Shard, change: Callable[[Files], Files], codes: set[str]
) -> None:
    data = tar_bytes(change(shard.files))
    shard.put(data, sealed=True)
    assert shard.codes() == codes
    # the same fault, sealed with an index that agrees: the plan alone tells
    shard.put_index(index_of(data))
    assert shard.codes() >= codes - {"index_mismatch", "wrong_count"}


def test_directories_and_links_are_not_expected(shard: Shard) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("a.txt")
            info.type, info.linkname = kind, "/etc/passwd"
            opened.addfile(info)
    shard.put(out.getvalue(), sealed=True)
    found = [each for each in shard.verify("samples").findings if "tar's type" in each.message]
    assert len(found) == 3


@pytest.mark.parametrize("column", ["key", "field", "offset", "size"])
def test_an_index_that_disagrees_with_the_tar(shard: Shard, column: str) -> None:
    values = shard.index.column(column).to_pylist()
    values[4] = "x" if isinstance(values[4], str) else values[4] + 512
    at = MEMBER_INDEX.get_field_index(column)
    shard.put_index(shard.index.set_column(at, MEMBER_INDEX.field(at), pa.array(values)))
    (finding,) = shard.verify("samples").findings
    assert finding.code == "index_mismatch" and finding.key == "dir/ä1"
    assert column in finding.message and repr(values[4]) in finding.message


def test_a_flood_of_findings_is_counted_and_not_listed(tmp_path: Path) -> None:
    shard = Shard(tmp_path, [(f"{number}.txt", b"x") for number in range(300)])
    shard.put(tar_bytes([(f"{number}.txt", b"xy") for number in range(300)]), sealed=True)
    findings = [each for each in shard.verify("samples").findings if "wrong_mem" in each.code]
    assert len(findings) == 21 and sum(each.count for each in findings) == 300
    assert "and 280 more" in findings[-1].message


def test_hostile_headers_do_not_raise_or_take_memory(shard: Shard) -> None:
    def header(name: str, size: int, kind: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    long_name = header("x", 2**60, tarfile.GNUTYPE_LONGNAME)
    pax = header("x", 2**40, tarfile.XHDTYPE)
    negative = header("a.txt", -(2**30), tarfile.REGTYPE)
    chain = header("x", 0, tarfile.GNUTYPE_LONGNAME) * 3000
    sparse = header("s.txt", 2**50, tarfile.GNUTYPE_SPARSE)
    for data in (long_name, pax, negative, chain, sparse, b"\xff" * 4096, b"x"):
        shard.put(data + bytes(4096), sealed=True)
        assert not shard.verify().passed
        shard.put(shard.data[:-10240] + data + bytes(4096), sealed=True)
        assert not shard.verify().passed


@given(st.binary(max_size=3000))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_raises(shard: Shard, data: bytes) -> None:
    shard.put(data, sealed=True)
    assert not shard.verify().passed


def test_an_unknown_digest_is_no_pass(shard: Shard) -> None:
    shard.seal = replace(shard.seal, digest="blake9:00")
    assert shard.codes() == {"wrong_digest"}


def test_names_that_are_not_utf8_are_shown(shard: Shard) -> None:
    data = tar_bytes([("aaaa.txt", b"1")])
    block = bytearray(data[:512])
    block[0] = 0xFF
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    shard.put(bytes(block) + data[512:], sealed=True)
    report = shard.verify()
    assert "\\xffaaa" in report.members.column("key").to_pylist()
    save_report(shard.storage, report)
    assert load_report(shard.storage, NAME) == report


def test_sampling_decodes_a_share_and_always_the_same(tmp_path: Path) -> None:
    shard = Shard(tmp_path, [(f"{number}.txt", b"%d" % number) for number in range(400)])
    half = shard.verify(sample=0.5).members
    assert half == shard.verify(sample=0.5).members
    decoded = half.column("decoded").to_pylist()
    assert 150 < sum(decoded) < 250
    less = shard.verify(sample=0.2).members.column("decoded").to_pylist()
    assert all(more for more, some in zip(decoded, less, strict=True) if some)
    assert sum(shard.verify(sample=0.0).members.column("decoded").to_pylist()) == 0


def test_known_content_and_duplicates_are_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [(f"{number}.jpg", jpeg(number % 3)) for number in range(9)]
    files += [("a.jpg", jpeg()[:-100]), ("b.jpg", jpeg()[:-100])]
    shard = Shard(tmp_path, files)
    seen = []
    real = content.check

    def counted(field: str, extensions: Sequence[str], data: Any, *rest: Any) -> content.Facts:
        seen.append(bytes(data))
        return real(field, extensions, data, *rest)

    monkeypatch.setattr(content, "check", counted)
    monkeypatch.setattr("wds_pipeline.dataset.verify.THUMBNAILS", 0)
    first = shard.verify()
    assert len(seen) == len(set(seen)) == 4
    known = known_facts([first], rules())
    again = verify_shard(shard.storage, shard.seal, rules(), shard.expected, known)
    assert len(seen) == 4 and again.members == first.members
    assert not known_facts([first], rules(max_pixels=5))


def test_thumbnails_with_captions(shard: Shard) -> None:
    report = shard.verify()
    assert len(report.thumbnails) == 6
    shown = {each.key: each for each in report.thumbnails}
    assert shown["dir/ä3"].caption == "a caption, number 3"
    assert (shown["dir/ä3"].width, shown["dir/ä3"].height) == (40, 30)
    assert Image.open(io.BytesIO(shown["dir/ä3"].jpeg)).format == "JPEG"
    assert shown[LONG].jpeg == b"" and shown[LONG].caption.startswith("xxx")
    assert read_thumbnail(shard.storage, rules(), NAME, "dir/ä3") == shown["dir/ä3"]
    assert read_thumbnail(shard.storage, rules(), NAME, "nothing") is None
    assert read_thumbnail(shard.storage, rules(), "other", "dir/ä3") is None


def test_reports_are_stored_and_read_back(shard: Shard) -> None:
    shard.put(shard.data[:-7000])
    report = shard.verify()
    assert not report.passed and report.thumbnails
    save_report(shard.storage, report)
    assert load_report(shard.storage, NAME) == report
    assert report.members.schema == REPORT_MEMBERS


def test_reports_that_cannot_be_used_are_as_none(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_report(shard.storage, NAME) is None
    save_report(shard.storage, shard.verify())
    where = path(NAME, REPORT)
    good = shard.storage.read(where)
    for bad in (good[:-9], b"", parquet_bytes(shard.index)):
        shard.storage.put(where, bad)
        assert load_report(shard.storage, NAME) is None
    shard.storage.put(path("other", REPORT), good)
    assert load_report(shard.storage, "other") is None
    shard.storage.put(where, good)
    assert load_report(shard.storage, NAME) is not None
    monkeypatch.setattr("wds_pipeline.dataset.shard_report.FORMAT_VERSION", 9)
    assert load_report(shard.storage, NAME) is None


def test_what_a_report_covers(shard: Shard) -> None:
    report = shard.verify()
    assert all(report.covers(shard.seal.digest, rules(level)) for level in LEVELS)
    assert not shard.verify("samples").covers(shard.seal.digest, rules())
    assert shard.verify("samples").covers(shard.seal.digest, rules("digest", max_pixels=7))
    assert not report.covers(shard.seal.digest, rules(max_pixels=7))
    assert not shard.verify(sample=0.5).covers(shard.seal.digest, rules())
    assert not report.covers("xxh3-128:00", rules())
    shard.put(shard.data[:-10])
    assert not shard.verify().covers(shard.seal.digest, rules())


def test_a_member_larger_than_the_limit_streams(tmp_path: Path) -> None:
    """In a process of its own, whose peak of memory nothing else has raised."""
    size = 6 * content.MAX_IN_MEMORY
    shard = Shard(tmp_path, [("a.txt", b"text"), ("b.txt", b"")])
    file = tmp_path / path(NAME, TAR)
    with file.open("wb") as out:
        out.write(tar.header("a.txt", size))
        out.truncate(512 + size)  # a hole: zeros
        out.seek(512 + size)
        out.write(tar.header("b.txt", 0) + tar.end(size + 1024))
    shard.put_index(
        pa.table(
            {"key": ["a", "b"], "field": ["txt"] * 2, "offset": [512, size + 1024],
             "size": [size, 0]}, MEMBER_INDEX,
        )
    )  # fmt: skip
    script = """
import sys
from pathlib import Path
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.verify import Rules, verify_shard
from wds_pipeline.storage import LocalStorage
seal = Seal(sys.argv[2], "train", 0, "abc", 2, 2, 0, "xxh3-128:")
# Not ru_maxrss, which starts with what the parent held when it forked.
peak = lambda: int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
before = peak()
report = verify_shard(LocalStorage(Path(sys.argv[1])), seal, Rules("decode", 1.0, 100, {}))
print(peak() - before)
print({each.code for each in report.findings} == {"wrong_size", "wrong_digest"})
print(report.members.column("detail").to_pylist())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), NAME], capture_output=True, text=True
    )
    grown, findings, details = done.stdout.splitlines()
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < size / 3, done
    assert findings == "True"
    assert content.TOO_LARGE in details and f"{size:,} bytes" in details


def test_an_unknown_level_is_refused(shard: Shard) -> None:
    with pytest.raises(ValueError, match="expected one of stat, digest"):
        shard.verify("everything")
