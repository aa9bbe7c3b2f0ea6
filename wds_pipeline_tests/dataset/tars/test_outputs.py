"""Where tars go: whole or not at all, never over something else by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset.tars.cat import cat
from wds_pipeline.dataset.tars.choose import Choice
from wds_pipeline.dataset.tars.sort import sort
from wds_pipeline.dataset.tars.split import split
from wds_pipeline.errors import ConfigError, DataError, DestinationError
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars.archives import keys, samples

ONE = make([(f"{n}.txt", b"t") for n in (3, 1, 2)])


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "in.tar"
    path.write_bytes(ONE)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_there_stays(tar: Path) -> None:
    out = tar.parent / "out.tar"
    out.write_bytes(b"mine")
    with pytest.raises(DestinationError, match="--force"):
        cat([str(tar)], str(out))
    assert out.read_bytes() == b"mine"
    cat([str(tar)], str(out), force=True)
    assert keys(samples(out)) == ["3", "1", "2"]


@pytest.mark.parametrize("how", ["same", "link", "dots"])
def test_an_input_is_replaced_on_request_only(tar: Path, how: str) -> None:
    (tar.parent / "link.tar").symlink_to(tar)
    (tar.parent / "d").mkdir()
    output = {
        "same": str(tar),
        "link": f"{tar.parent}/link.tar",
        "dots": f"{tar.parent}/d/../in.tar",
    }[how]
    with pytest.raises(DestinationError, match="one of the inputs"):
        sort([str(tar)], output)
    assert tar.read_bytes() == ONE
    sort([str(tar)], output, force=True)
    assert keys(samples(Path(output))) == ["1", "2", "3"]


def test_a_split_never_replaces_its_inputs(tar: Path) -> None:
    first = tar.rename(tar.parent / "out-0.tar")
    for output in ("out-%d.tar", "out-{0..5}.tar"):
        with pytest.raises(DestinationError, match="one of the inputs"):
            split([str(first)], str(tar.parent / output), max_samples=1, force=True)
    assert files(tar.parent) == ["out-0.tar"]
    assert first.read_bytes() == ONE


def test_a_split_leaves_nothing_of_a_longer_one(tar: Path) -> None:
    (tar.parent / "out").mkdir()
    pattern = str(tar.parent / "out" / "x-%03d.tar")
    for name in ("x-note.tar", "x-1.tar.bak"):
        (tar.parent / "out" / name).touch()
    _, parts = split([str(tar)], pattern, max_samples=1)
    assert [Path(part).name for part in parts] == ["x-000.tar", "x-001.tar", "x-002.tar"]
    with pytest.raises(DestinationError, match="--force"):
        split([str(tar)], pattern, max_samples=2)
    split([str(tar)], pattern, max_samples=2, force=True)
    assert files(tar.parent / "out") == ["x-000.tar", "x-001.tar", "x-1.tar.bak", "x-note.tar"]


def test_a_split_that_fails_leaves_nothing(tar: Path) -> None:
    tar.write_bytes(ONE[:3000])
    with pytest.raises(DataError):
        split([str(tar)], str(tar.parent / "out-%d.tar"), max_samples=1)
    assert files(tar.parent) == ["in.tar"]


def test_names_of_a_split(tar: Path) -> None:
    _, parts = split([str(tar)], str(tar.parent / "o-{08..11}.tar"), max_samples=1)
    assert [Path(part).name for part in parts] == ["o-08.tar", "o-09.tar", "o-10.tar"]
    with pytest.raises(DestinationError, match="names 2 tars"):
        split([str(tar)], str(tar.parent / "p-{0..1}.tar"), max_samples=1)
    assert not list(tar.parent.glob("p-*"))
    for bad in ("out.tar", "out-%s.tar", "%d-%d.tar", "a/{0..1}/x.tar", "x-{0..1", "x-%d/"):
        with pytest.raises(ConfigError):
            split([str(tar)], str(tar.parent) + "/" + bad, max_samples=1)


def test_a_split_of_nothing_is_one_empty_tar(tar: Path) -> None:
    tar.write_bytes(make([]))
    _, (part,) = split([str(tar)], str(tar.parent / "out-%d.tar"), max_samples=1)
    assert samples(Path(part)) == []


def test_parts_of_a_stream(tar: Path) -> None:
    members = [
        (f"{key}.{field}", b"") for key in ("c/1", "c/2", "d/1", "d/2") for field in ("jpg", "TXT")
    ]
    tar.write_bytes(make([*members, ("d/3.jpg", b"")]))
    out = tar.parent / "out.tar"

    def chosen(**choice: object) -> tuple[list[str], str]:
        account = cat([str(tar)], str(out), Choice(**choice), force=True)  # type: ignore[arg-type]
        return keys(samples(out)), "\n".join(account.lines())

    assert chosen(match=["d/*"])[0] == ["d/1", "d/2", "d/3"]
    assert chosen(match=["c/**", "*/2"])[0] == ["c/1", "c/2", "d/2"]
    assert chosen(match=["*"])[0] == []
    assert chosen(start=1, stop=3)[0] == ["c/2", "d/1"]
    assert chosen(match=["d/*"], start=1)[0] == ["d/2", "d/3"]
    found, said = chosen(keys=["d/1", "x", "c/1"])
    assert found == ["c/1", "d/1"]
    assert "1 keys of --keys were in no tar, such as x" in said
    found, said = chosen(fields=["txt"])
    assert found == ["c/1", "c/2", "d/1", "d/2"]
    assert samples(out)[0] == ("c/1", (("TXT", b""),))
    assert "1 left out, without any of the fields, such as d/3" in said


def test_keys_that_come_twice(tar: Path) -> None:
    more, out = tar.parent / "more.tar", tar.parent / "out.tar"
    more.write_bytes(make([("1.txt", b"u"), ("1-2.txt", b"v")]))
    with pytest.raises(DataError, match=r"more\.tar: the key '1' comes again; it was in .*in\.tar"):
        cat([str(tar), str(more)], str(out))
    assert not out.exists()
    account = cat([str(tar), str(more)], str(out), duplicates="keep-first")
    assert keys(samples(out)) == ["3", "1", "2", "1-2"]
    assert "1 left out, whose keys came before, such as 1" in "\n".join(account.lines())
    cat([str(tar), str(more)], str(out), duplicates="rename", force=True)
    assert keys(samples(out)) == ["3", "1", "2", "1-2", "1-2-2"]


def test_a_sample_larger_than_a_tar_has_its_own(tar: Path) -> None:
    tar.write_bytes(make([("1.n", b""), ("2.n", bytes(50_000)), ("3.n", b""), ("4.n", b"")]))
    _, parts = split([str(tar)], str(tar.parent / "out-%d.tar"), max_bytes=10_240)
    assert [keys(samples(Path(part))) for part in parts] == [["1"], ["2"], ["3", "4"]]
