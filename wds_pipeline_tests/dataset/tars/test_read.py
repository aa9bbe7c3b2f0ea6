"""Reading a tar front to back: large members, pipes, damage, names of all kinds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wds_pipeline.dataset.tars import read
from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.cat import cat
from wds_pipeline.dataset.tars.inputs import find_inputs
from wds_pipeline.dataset.tars.read import TarReader
from wds_pipeline.dataset.tars.sample import Stored, content
from wds_pipeline.dataset.tars.sort import sort
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline_tests.dataset.foreign_tars import by_tarfile, make
from wds_pipeline_tests.dataset.tars.archives import samples

MEMBERS = [(f"{n:02d}.{field}", bytes([n]) * 700) for n in range(20) for field in ("jpg", "txt")]
WHOLE = make(MEMBERS)
CUT = WHOLE[: 512 * 60 + 100]  # within a member, or its header


def test_a_pipe_gives_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_WINDOW", 2048)
    monkeypatch.setattr(read, "LARGE", 1000)
    big = [
        ("a.jpg", bytes(range(256)) * 20),
        ("a.txt", b"t" * 900),
        ("a.n", b"n" * 600),
        ("b.x", b""),
    ]

    class Pipe(io.BytesIO):
        def readinto(self, view: memoryview) -> int:  # type: ignore[override]
            return super().readinto(view[:700])

    found = list(TarReader(Pipe(make(big)), "x", Account()).samples())
    assert [(each.key, [m.field for m in each.members]) for each in found] == [
        ("a", ["jpg", "txt", "n"]),
        ("b", ["x"]),
    ]
    assert [content(m.data) for each in found for m in each.members] == [data for _, data in big]
    # The first is too large alone, the third together with the second.
    assert [isinstance(m.data, Stored) for m in found[0].members] == [True, False, True]


def test_large_members_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "LARGE", 1000)
    members = [
        ("a.jpg", b"j" * 5000),
        ("a.txt", b"t"),
        ("b.jpg", b"k" * 3000),
        ("b.JPG2", b"l" * 900),
    ]
    (tmp_path / "in.tar").write_bytes(make(members, tarfile.PAX_FORMAT))

    def no_file() -> None:
        raise AssertionError("no temporary file is needed")

    monkeypatch.setattr(read, "Spool", no_file)
    cat([str(tmp_path / "in.tar")], str(tmp_path / "out.tar"))
    sort([str(tmp_path / "in.tar")], str(tmp_path / "sorted.tar"))
    for name in ("out.tar", "sorted.tar"):
        assert samples(tmp_path / name) == samples(tmp_path / "in.tar")


def test_what_is_no_part_of_a_sample_is_counted(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in ("a.jpg", "README", "a.txt", "__x__/b.jpg", "._a.jpg"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("link")
            info.type = kind
            tar.addfile(info)
    (tmp_path / "in.tar").write_bytes(sink.getvalue())
    account = cat([str(tmp_path / "in.tar")], str(tmp_path / "out.tar"))
    assert samples(tmp_path / "out.tar") == [("a", (("jpg", b""), ("txt", b"")))]
    notes = "\n".join(account.lines())
    for text in (
        "1 left out, no part of a sample: without a key and an extension, such as README",
        "1 left out, no part of a sample: with a name __…__",
        "1 left out, no part of a sample: droppings of macOS",
        "1 left out, no part of a sample: folders",
        "1 left out, no part of a sample: symbolic links",
    ):
        assert text in notes


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"no tar" * 200, "decompress"),
        (CUT, "ends within"),
        (WHOLE[: 512 * 3 * 20], "cut between two members"),
        (WHOLE[: 512 * 9] + b"?" * 512 + WHOLE[512 * 10 :], "at byte 4,608"),
        (WHOLE + make([("z.txt", b"z")]), "another archive follows"),
        (WHOLE + b"x" * 512, "other data follow"),
    ],
)
@pytest.mark.parametrize("verb", [cat, sort])
def test_damage_is_an_error_and_nothing_is_written(
    tmp_path: Path, data: bytes, said: str, verb: Callable[[list[str], str], Account]
) -> None:
    (tmp_path / "in.tar").write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=said) as raised:
        verb([str(tmp_path / "in.tar")], str(tmp_path / "out" / "out.tar"))
    assert str(tmp_path / "in.tar") in str(raised.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("size", range(0, len(WHOLE), 512 * 7 + 100))
def test_whole_samples_before_a_cut_are_kept_on_request(tmp_path: Path, size: int) -> None:
    (tmp_path / "in.tar").write_bytes(WHOLE[:size])
    (tmp_path / "more.tar").write_bytes(make([("z.txt", b"z")]))
    paths = [str(tmp_path / "in.tar"), str(tmp_path / "more.tar")]
    account = cat(paths, str(tmp_path / "out.tar"), keep_whole=True)
    found = samples(tmp_path / "out.tar")
    *first, last = found
    assert last == ("z", (("txt", b"z"),))
    all_of_it = samples_of(WHOLE)
    assert first == all_of_it[: len(first)]
    ends = [each.offset + each.size for each in by_tarfile(WHOLE)][1::2]
    whole = sum(end <= size for end in ends)
    if size <= ends[-1]:
        assert len(first) in (whole, max(0, whole - 1))  # of the last one it is not known
        assert len(account.damaged) == 1
        assert "in.tar" in account.damaged[0]
    else:
        assert len(first) in (20, 19)


def samples_of(data: bytes) -> list[tuple[str, tuple[tuple[str, bytes], ...]]]:
    found: dict[str, tuple[tuple[str, bytes], ...]] = {}
    for each in by_tarfile(data):
        key, _, field = each.name.partition(".")
        found[key] = (*found.get(key, ()), (field, data[each.offset : each.offset + each.size]))
    return list(found.items())


def test_sparse_files_are_an_error(tmp_path: Path) -> None:
    from wds_pipeline_tests.dataset.foreign_tars import gnu_tar

    (tmp_path / "x").mkdir()
    with (tmp_path / "x" / "a.bin").open("wb") as file:
        file.truncate(1_000_000)
    (tmp_path / "x" / "b.txt").write_text("b")
    (tmp_path / "in.tar").write_bytes(gnu_tar(tmp_path / "x", "--sparse", "--sort=name"))
    with pytest.raises(DataError, match="sparse file"):
        cat([str(tmp_path / "in.tar")], str(tmp_path / "out.tar"))
    cat([str(tmp_path / "in.tar")], str(tmp_path / "out.tar"), keep_whole=True)
    assert samples(tmp_path / "out.tar") == [("./b", (("txt", b"b"),))]


def test_names_that_are_no_utf8_stay(tmp_path: Path) -> None:
    raw = make([("caf_.jpg", b"1"), ("caf_.txt", b"2")], tarfile.USTAR_FORMAT)
    blocks = bytearray(raw)
    for start in (0, 1024):
        blocks[start + 3] = 0xE9
        blocks[start + 148 : start + 156] = b" " * 8
        blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    (tmp_path / "in.tar").write_bytes(blocks)
    cat([str(tmp_path / "in.tar")], str(tmp_path / "out.tar"))
    assert samples(tmp_path / "out.tar") == samples(tmp_path / "in.tar")
    assert b"caf\xe9.txt" in (tmp_path / "out.tar").read_bytes()


def test_a_tar_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "in.tar"
    path.write_bytes(WHOLE)
    (tar,) = find_inputs([str(path)])
    found = tar.samples(Account())
    next(found)
    path.write_bytes(WHOLE + bytes(10240))
    with pytest.raises(SourceError, match="changed or removed"):
        list(found)


def test_inputs_are_named_as_for_the_index(tmp_path: Path) -> None:
    for name in ("a-0.tar", "a-1.tar", "b/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(WHOLE)

    def named(*names: str) -> list[str]:
        found = find_inputs([str(tmp_path / name) for name in names])
        return [str(Path(each.where).relative_to(tmp_path)) for each in found]

    assert named("a-{1..0}.tar") == ["a-1.tar", "a-0.tar"]
    assert named("a-*.tar", "b/") == ["a-0.tar", "a-1.tar", "b/c.tar"]
    assert named(f"b/c.tar::{tmp_path}/a-0.tar") == ["b/c.tar", "a-0.tar"]
    assert named("a-0.tar", "a-*.tar") == ["a-0.tar", "a-1.tar"]
    with pytest.raises(ConfigError, match="once only"):
        find_inputs(["-", "-"])
    with pytest.raises(SourceError, match="not there"):
        named("no.tar")
