"""The writer's bytes against those who read tars: the standard library, GNU tar, webdataset."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset import tar

GNU_TAR = shutil.which("tar")
GIB = 1024**3


def stdlib_header(name: str, size: int, form: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, tar.MTIME, 0o644
    return info.tobuf(form, "utf-8", "strict")


def archive(members: Iterable[tuple[str, bytes]]) -> bytes:
    data = io.BytesIO()
    for name, content in members:
        data.write(tar.header(name, len(content)))
        data.write(content)
        data.write(bytes(tar.padding(len(content))))
    data.write(tar.end(data.tell()))
    return data.getvalue()


def by_tarfile(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        for info in file:
            assert info.isreg()
            assert (info.mtime, info.mode, info.uid, info.gid) == (tar.MTIME, 0o644, 0, 0)
            content = file.extractfile(info)
            assert content is not None
            yield info.name, content.read()


def gnu(*arguments: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        [str(GNU_TAR), *arguments], input=stdin, capture_output=True, check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.stderr == b"", done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------ generated names

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEF0123456789_-+ ,%'\"[]()&=@#~^!" + "äß漢字é\u0301🦆ø"


def part(rng: random.Random, longest: int) -> str:
    text = "".join(rng.choice(_CHARACTERS) for _ in range(rng.randint(1, longest)))
    while len(text.encode()) > 250:
        text = text[:-1]
    return text


def generated(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Members with all kinds of names, each key unique; sizes gather at block borders."""
    rng = random.Random(seed)
    members = []
    for number in range(count):
        folders = [
            part(rng, rng.choice((5, 20, 90))) for _ in range(rng.choice((0, 0, 1, 2, 4, 8)))
        ]
        base = f"{part(rng, rng.choice((3, 30, 120, 240)))[:80]}{number}"
        name = "/".join([*folders, base]) + rng.choice((".jpg", ".txt", ".seg.png"))
        size = max(0, rng.choice((0, 1, 300, 512, 1024, 5120)) + rng.randint(-1, 1))
        members.append((name, rng.randbytes(size)))
    return members


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, bytes]]]:
    members = generated(10_000, seed=1)
    assert len({name for name, _ in members}) == 10_000
    lengths = [len(name.encode()) for name, _ in members]
    assert min(lengths) < 20
    assert sum(100 < each <= 256 for each in lengths) > 500
    assert sum(each > 256 for each in lengths) > 300
    path = tmp_path_factory.mktemp("many") / "many.tar"
    path.write_bytes(archive(members))
    return path, members


def test_many_by_tarfile(many: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path, members = many
    assert list(by_tarfile(path.read_bytes())) == members


@pytest.mark.skipif(GNU_TAR is None, reason="GNU tar is not installed")
def test_many_by_gnu_tar(many: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path, members = many
    listed = gnu("tf", str(path), "--quoting-style=literal").decode().splitlines()
    assert listed == [name for name, _ in members]
    # The contents one behind the other: each member's bytes, in order, and no more.
    assert gnu("xf", str(path), "--to-stdout") == b"".join(data for _, data in members)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves the file open
def test_many_by_webdataset(many: tuple[Path, list[tuple[str, bytes]]]) -> None:
    path, members = many
    found = {}
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        for field in sample.keys() - {"__key__", "__url__", "__local_path__"}:
            found[f"{sample['__key__']}.{field}"] = sample[field]
    assert found == dict(members)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=300),
            st.binary(max_size=1100),
        ),
        max_size=4,
    )
)
def test_any_name_by_tarfile(members: list[tuple[str, bytes]]) -> None:
    # tarfile itself takes slashes from a name's end
    members = [(name.rstrip("/") + "x", data) for name, data in members]
    assert list(by_tarfile(archive(members))) == members


# ------------------------------------------------------------------------------------ each format


@pytest.mark.parametrize("name", ["a.txt", "a b/ü.jpg", "x" * 99, "x" * 100, "é" * 50])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8 * GIB - 1])
def test_the_template_equals_the_standard_library(name: str, size: int) -> None:
    assert tar.header(name, size) == stdlib_header(name, size, tarfile.USTAR_FORMAT)


FOLDER = "f" * 60
NAMES = {
    99: "n" * 99,
    100: "n" * 100,
    101: f"{FOLDER}/{'n' * 40}",
    155: f"{FOLDER}/{'n' * 94}",
    255: f"{'f' * 155}/{'n' * 99}",
    256: f"{'f' * 155}/{'n' * 100}",
}
PAX = {
    "101 without a slash": "n" * 101,
    "257": f"{'f' * 155}/{'n' * 101}",
    "257, prefix too long": f"{'f' * 156}/{'n' * 100}",
    "300 in folders": "/".join(["f" * 74] * 4),
    "base over 100": f"a/{'n' * 101}",
    "long and not ASCII": f"{'é' * 100}/{'漢' * 40}",
    "1,000": "/".join(["f" * 124] * 8),
}


@pytest.mark.parametrize("length", NAMES)
def test_ustar_as_far_as_it_goes(length: int) -> None:
    name = NAMES[length]
    assert len(name.encode()) == length
    head = tar.header(name, 5)
    assert head == stdlib_header(name, 5, tarfile.USTAR_FORMAT)
    assert len(head) == tar.BLOCK
    assert tar.member_size(name, 5) == 1024
    assert list(by_tarfile(archive([(name, b"12345")]))) == [(name, b"12345")]


@pytest.mark.parametrize("kind", PAX)
def test_pax_for_the_member_that_needs_it(kind: str) -> None:
    name = PAX[kind]
    with pytest.raises(ValueError, match="name is too long"):
        stdlib_header(name, 5, tarfile.USTAR_FORMAT)
    head = tar.header(name, 5)
    assert head == stdlib_header(name, 5, tarfile.PAX_FORMAT)
    assert len(head) >= 3 * tar.BLOCK
    assert len(head) % tar.BLOCK == 0
    members = [("before.txt", b"1"), (name, b"12345"), ("after.txt", b"2")]
    data = archive(members)
    assert list(by_tarfile(data)) == members
    assert tar.member_size(name, 5) == len(head) + 512
    plain = [member for member in members if member[0] != name]
    assert len(data) <= len(archive(plain)) + len(head) + 512 + tar.RECORD


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 8 * GIB + 1, 20 * GIB])
@pytest.mark.parametrize("name", ["big.mp4", "n" * 101])
def test_huge_members(tmp_path: Path, name: str, size: int) -> None:
    path = tmp_path / "huge.tar"
    head = tar.header(name, size)
    large = size >= 8 * GIB or len(name) > 100
    assert head == stdlib_header(name, size, tarfile.PAX_FORMAT if large else tarfile.USTAR_FORMAT)
    with path.open("wb") as file:  # sparse: takes no room
        file.write(head)
        file.truncate(len(head) + size + tar.padding(size))
        file.seek(0, 2)
        assert file.tell() == tar.member_size(name, size)
        file.write(tar.header("after.txt", 3) + b"abc" + bytes(509))
        file.write(tar.end(file.tell()))
    with tarfile.open(path) as archive_:
        first, second = archive_.getmembers()
        assert (first.name, first.size, first.offset_data) == (name, size, len(head))
        assert (second.name, second.size) == ("after.txt", 3)
    if GNU_TAR:
        lines = gnu("tvf", str(path)).decode().splitlines()
        assert [line.split()[2] for line in lines] == [str(size), "3"]


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 1024, 1025, 10_240, 9_728, 9_729])
def test_padding_and_the_end(size: int) -> None:
    data = archive([("a.bin", os.urandom(size))])
    assert (size + tar.padding(size)) % tar.BLOCK == 0
    assert 0 <= tar.padding(size) < tar.BLOCK
    assert len(data) % tar.RECORD == 0
    assert len(data) - tar.member_size("a.bin", size) >= 2 * tar.BLOCK
    assert data[-1024:] == bytes(1024)
    if GNU_TAR:
        assert gnu("tf", "-", stdin=data) == b"a.bin\n"


def test_an_empty_archive() -> None:
    assert tar.end(0) == bytes(tar.RECORD)
    assert list(by_tarfile(archive([]))) == []


def test_names_that_are_not_unicode_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        tar.header("caf\udce9.jpg", 1)


def test_the_bytes_never_change() -> None:
    """Shards of different releases and Python versions are one version's: raise RECIPE_FORMAT when
    this must change."""
    heads = [tar.header(name, size) for name in (*NAMES.values(), *PAX.values())
             for size in (0, 1, 512, 8 * GIB - 1, 8 * GIB)]  # fmt: skip
    data = b"".join(heads) + archive([("a/ü.txt", b"hello"), ("b.bin", bytes(9_000))])
    found = hashlib.sha256(data).hexdigest()
    assert found == "a9491fb15f6e0226618737864eb07b83163574b3fba309aeec7cb47bf0f5853d", found
