"""What samples are sorted by."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset.tars import places, read
from wds_pipeline.dataset.tars.shuffle import shuffle
from wds_pipeline.dataset.tars.sort import Order, sort
from wds_pipeline.errors import DataError
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars.archives import keys, samples


def sorted_keys(
    folder: Path, members: list[tuple[str, bytes]], order: Order, **more: object
) -> list[str]:
    (folder / "in.tar").write_bytes(make(members))
    sort([str(folder / "in.tar")], str(folder / "out.tar"), order, force=True, **more)  # type: ignore[arg-type]
    assert sorted(samples(folder / "out.tar")) == sorted(samples(folder / "in.tar"))
    return keys(samples(folder / "out.tar"))


def test_orders(tmp_path: Path) -> None:
    names = ["a10", "a2", "b", "a02", "a2b", "B1", "a"]
    members = [(f"{name}.txt", b"") for name in names]
    assert sorted_keys(tmp_path, members, Order()) == sorted(names)
    assert sorted_keys(tmp_path, members, Order(natural=True)) == [
        "B1",
        "a",
        "a02",
        "a2",
        "a2b",
        "a10",
        "b",
    ]
    values = [b"7", b"-3.5\n", b"1e3", b"007", b"10", b" 2", b"0"]
    members = [(f"{n}.txt", value) for n, value in enumerate(values)]
    numeric = Order("txt", numeric=True)
    assert sorted_keys(tmp_path, members, numeric) == ["1", "6", "5", "0", "3", "4", "2"]
    reverse = Order("txt", numeric=True, reverse=True)
    assert sorted_keys(tmp_path, members, reverse) == ["2", "4", "0", "3", "5", "6", "1"]


def test_values_of_json(tmp_path: Path) -> None:
    values = [b'{"a": [1, {"b": 2}]}', b'{"a": [1, {"b": "x"}]}', b'{"a": [1, {"b": 1.5}]}', b"{}"]
    members = [(f"{n}.json", value) for n, value in enumerate(values)]
    members.append(("4.jpg", b""))
    assert sorted_keys(tmp_path, members, Order("json:a.1.b")) == ["2", "0", "1", "3", "4"]
    assert sorted_keys(tmp_path, members, Order("json:a.1.b", reverse=True)) == [
        "1",
        "0",
        "2",
        "3",
        "4",
    ]


@pytest.mark.parametrize(
    ("data", "order", "said"),
    [
        (b"x", Order("txt", numeric=True), "expected a number"),
        (b"{", Order("txt:a"), "expected json"),
        (b"\xff", Order("txt"), "expected UTF-8"),
        (b"[" * 100_000, Order("txt:a"), "expected json"),
    ],
)
def test_contents_that_are_something_else(
    tmp_path: Path, data: bytes, order: Order, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        sorted_keys(tmp_path, [("a.txt", data)], order)
    assert not (tmp_path / "out.tar").exists()


def test_members_that_are_apart_are_joined(tmp_path: Path) -> None:
    members = [("b.jpg", b"1"), ("a.jpg", b"2"), ("b.txt", b"3"), ("a.txt", b"4"), ("b.n", b"5")]
    (tmp_path / "in.tar").write_bytes(make(members))
    arguments = [str(tmp_path / "in.tar")], str(tmp_path / "out.tar")
    with pytest.raises(DataError, match="comes again"):
        sort(*arguments)
    account = sort(*arguments, duplicates="merge")
    assert samples(tmp_path / "out.tar") == [
        ("a", (("jpg", b"2"), ("txt", b"4"))),
        ("b", (("jpg", b"1"), ("txt", b"3"), ("n", b"5"))),
    ]
    assert (account.read, account.written) == (5, 2)
    sort(*arguments, Order("txt", reverse=True), duplicates="merge", force=True)
    assert keys(samples(tmp_path / "out.tar")) == ["a", "b"]
    (tmp_path / "in.tar").write_bytes(make([*members, ("a.JPG", b"6")]))
    with pytest.raises(DataError, match="has the field 'JPG' again"):
        sort(*arguments, duplicates="merge", force=True)


def test_many_tars_and_large_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_OPEN", 2)
    for module in (places, read):
        monkeypatch.setattr(module, "LARGE", 2000)
    paths = []
    for number in range(6):
        members = [
            (f"{n}-{number}.{field}", bytes([n]) * 1200 * n) for n in range(4) for field in "ab"
        ]
        path = tmp_path / f"{number}.tar"
        path.write_bytes(make([members[0], ("none", bytes(9000)), *members[1:]]))
        paths.append(path)
    for verb in (sort, shuffle):
        verb(list(map(str, paths)), str(tmp_path / "out.tar"), force=True)
        found = samples(tmp_path / "out.tar")
        assert sorted(found) == sorted(samples(*paths))
    assert found != samples(*paths)
