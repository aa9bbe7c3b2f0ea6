"""Looks at real folders, interrupted anywhere: together they are a scan."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset import listing, walk, watch
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.walk import Position
from wds_pipeline.dataset.watch import Look, Place, look
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import LocalStorage

Interrupt = Callable[[], float]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look can end within a folder of few files."""
    monkeypatch.setattr(listing, "PART", 3)
    monkeypatch.setattr(walk, "_STRIDE", 1)


def write(path: Path, data: str = "data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Folders of no, one and more files than a part has, some in each other, and links."""
    folder = tmp_path / "raw"
    for path in ("b.jpg", "a.jpg", "a/x/1.jpg", "B/1.jpg", "a b/é.jpg", "c/d/e/f.jpg", "z/1.jpg"):
        write(folder / path)
    for number in range(11):
        write(folder / f"a/{number}.txt", "x" * number)
        write(folder / f"c/d/{number}.jpg")
        write(folder / f"a/.{number}.txt")
    (folder / "empty/er").mkdir(parents=True)
    (folder / "l1.jpg").symlink_to("a.jpg")
    (folder / "c/link").symlink_to("../a/x")
    (folder / "c/loop").symlink_to(".")
    return folder


def source(folder: Path, **config: Any) -> tuple[LocalStorage, SourceConfig, str]:
    return LocalStorage(folder), SourceConfig(url="raw", **config), "small"


def scanned(folder: Path, **config: Any) -> tuple[str, int, int]:
    found = scan(*source(folder, **config))
    return found.digest, found.files.num_rows, found.bytes


def seen(found: Look) -> tuple[str, int, int]:
    assert found.complete
    return found.digest, found.files, found.bytes


def impatient(calls: int) -> Interrupt:
    """A clock by which a second has passed after so many looks at it."""
    numbers = itertools.count()
    return lambda: 0.0 if next(numbers) <= calls else 1.0


def in_looks(
    folder: Path, patience: Iterator[int], between: Callable[[int], Any] = lambda number: None
) -> list[Look]:
    """A whole pass; each look goes through JSON, as it does between two ticks."""
    looks: list[Look] = []
    last = None
    while last is None or not last.complete:
        last = look(*source(folder), 1, last, clock=impatient(next(patience)))
        looks.append(last)
        last = Look.model_validate_json(last.model_dump_json())
        assert last == looks[-1]
        assert len(looks) < 1000
        if not last.complete:
            between(len(looks))
    return looks


# --- together they are a scan --------------------------------------------------------------------


def test_one_look_is_a_scan(raw: Path) -> None:
    assert seen(look(*source(raw), 60)) == scanned(raw)


def test_the_smallest_looks_are_a_scan(raw: Path) -> None:
    looks = in_looks(raw, itertools.repeat(0))
    assert len(looks) > 25
    assert seen(looks[-1]) == scanned(raw)
    counts = [each.files for each in looks]
    assert counts == sorted(counts)


@pytest.mark.parametrize("patience", [1, 2, 3, 5, 8, 13, 21, 34])
def test_looks_of_any_length_are_a_scan(raw: Path, patience: int) -> None:
    assert seen(in_looks(raw, itertools.repeat(patience))[-1]) == scanned(raw)


names = st.sampled_from(["a", "b", "a.b", "B", "é", ".h", "a~", "c\n", "x.part", "0"])
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=4).map("/".join),
    st.tuples(st.binary(max_size=3), st.integers(0, 2**61)),
    min_size=1,
    max_size=25,
)


def grow(folder: Path, files: dict[str, tuple[bytes, int]]) -> bool:
    """Makes these files, where no file is in the way of a folder; whether any is to be taken."""
    for path, (data, time_ns) in files.items():
        with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            os.utime(target, ns=(0, time_ns))
    try:
        return scan(*source(folder)).files.num_rows > 0
    except SourceError:
        return False


@settings(max_examples=60, deadline=None)
@given(files=trees, patience=st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_any_tree_interrupted_anywhere_is_a_scan(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, tuple[bytes, int]],
    patience: list[int],
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    try:
        if grow(folder, files):
            assert seen(in_looks(folder, itertools.cycle(patience))[-1]) == scanned(folder)
        else:
            with pytest.raises(SourceError, match="no file to take"):
                in_looks(folder, itertools.cycle(patience))
    finally:
        shutil.rmtree(folder)


def facts(folder: Path) -> set[tuple[str, int, int]]:
    """What a digest stands for."""
    found = scan(*source(folder)).files
    columns = (found[name].to_pylist() for name in ("path", "size", "fingerprint"))
    return set(zip(*columns, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    files=trees,
    path=st.lists(names, min_size=1, max_size=3).map("/".join),
    change=st.sampled_from(["write", "delete", "rename"]),
    data=st.binary(max_size=3),
    time_ns=st.integers(0, 2**61),
    which=st.integers(0, 24),
)
def test_the_digest_differs_if_and_only_if_the_files_do(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, tuple[bytes, int]],
    path: str,
    change: str,
    data: bytes,
    time_ns: int,
    which: int,
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    try:
        if not grow(folder, files):
            return
        before, digest = facts(folder), look(*source(folder), 60).digest
        present = sorted(each for each in folder.rglob("*") if each.is_file())
        chosen = present[which % len(present)]
        with suppress(OSError):
            if change == "write":
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                os.utime(target, ns=(0, time_ns))
            elif change == "delete":
                chosen.unlink()
            else:
                chosen.rename(folder / path)
        try:
            after = facts(folder)
        except SourceError:
            with pytest.raises(SourceError):
                look(*source(folder), 60)
        else:
            assert (look(*source(folder), 60).digest == digest) == (after == before)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 50])
def test_the_size_of_parts_does_not_blur_two_listings(
    raw: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PART", size)
    monkeypatch.setattr(listing, "_PARTS_AT_ONCE", 2)
    before = scanned(raw)
    assert seen(in_looks(raw, itertools.repeat(0))[-1]) == before
    (raw / "a/3.txt").rename(raw / "a/33.txt")
    assert scanned(raw)[0] != before[0]


def test_names_that_are_not_utf8(raw: Path) -> None:
    for number in range(5):
        try:
            Path(os.fsdecode(os.fsencode(raw) + b"/c/\xff%d.jpg" % number)).write_text("x")
        except OSError:
            pytest.skip("this filesystem refuses such names")
    os.mkdir(os.fsencode(raw) + b"/\xfe%41")
    Path(os.fsdecode(os.fsencode(raw) + b"/\xfe%41/1.jpg")).write_text("x")
    looks = in_looks(raw, itertools.repeat(0))
    assert seen(looks[-1]) == scanned(raw)
    assert any("%FF" in each.reached for each in looks)


@pytest.mark.parametrize("follow", ["inside", "always", "never"])
def test_links_and_rules_are_those_of_a_scan(raw: Path, follow: str) -> None:
    write(raw.parent / "outside/o.jpg")
    (raw / "c/out").symlink_to(raw.parent / "outside")
    for rules in ({}, {"exclude": ["c/d/e/"]}, {"include": ["**/*.txt"]}):
        config = {"follow_symlinks": follow, **rules}
        last = None
        while last is None or not last.complete:
            last = look(*source(raw, **config), 1, last, clock=impatient(0))
        assert seen(last) == scanned(raw, **config)


def test_what_is_kept_is_small(tmp_path: Path) -> None:
    for number in range(40):
        for file in range(30):
            write(tmp_path / f"raw/{number}/{file}.jpg")
    looks = in_looks(tmp_path / "raw", itertools.repeat(7))
    assert len(looks) > 100
    assert max(len(each.model_dump_json()) for each in looks) < 400


# --- a source that changes during the pass -------------------------------------------------------


def test_each_place_may_be_gone_when_the_pass_goes_on(raw: Path, tmp_path: Path) -> None:
    """Whatever is deleted in the middle, the pass comes to its end, and sees all that stays."""
    kept = sorted(
        str(path.relative_to(raw))
        for path in raw.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    )
    for victim in ("a", "a/x", "c", "c/d", "c/link", "z"):
        for at in range(1, 30, 7):
            folder = tmp_path / f"copy-{victim.replace('/', '-')}-{at}"
            shutil.copytree(raw, folder, symlinks=True)

            def delete(number: int, at: int = at, victim: Path = folder / victim) -> None:
                if number == at:
                    victim.unlink() if victim.is_symlink() else shutil.rmtree(victim)

            looks = in_looks(folder, itertools.repeat(0), delete)
            stays = [path for path in kept if not path.startswith(f"{victim}/")]
            assert looks[-1].files >= len(stays), (victim, at)
            # The next pass tells the truth.
            assert seen(in_looks(folder, itertools.repeat(2))[-1]) == scanned(folder)
            shutil.rmtree(folder)


def test_the_files_where_a_look_stopped_may_be_gone(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(30):
        write(raw / f"{number:02}.jpg")
    first = look(*source(raw), 1, clock=impatient(7))
    assert first.place
    assert (first.files, first.place.after) == (6, "05.jpg")
    for number in range(4, 9):
        (raw / f"{number:02}.jpg").unlink()
    rest = look(*source(raw), 60, first)
    assert rest.files == 6 + 21, "those behind the place, and none twice"


def test_a_folder_that_became_a_file(raw: Path) -> None:
    last = None
    while last is None or "c/d" not in last.reached:
        last = look(*source(raw), 1, last, clock=impatient(0))
    shutil.rmtree(raw / "c")
    write(raw / "c")
    rest = look(*source(raw), 60, last)
    assert rest.complete
    assert rest.files == last.files + 1, "z/1.jpg; the file c came too late"


def test_a_folder_that_vanishes_before_it_is_opened_is_passed_over(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "_STRIDE", 64)
    before = look(*source(raw), 60).files
    links = walk.Walk._folder

    def delete(self: Any, visit: Any, folders: Any, over: Any) -> str | None:
        found = links(self, visit, folders, over)
        shutil.rmtree(raw / "z", ignore_errors=True)
        return found

    monkeypatch.setattr(walk.Walk, "_folder", delete)
    assert look(*source(raw), 60).files == before - 1


def test_a_pass_has_its_times(raw: Path) -> None:
    now = iter(range(100, 200)).__next__
    looks = [look(*source(raw), 1, now=now, clock=impatient(0))]
    while not looks[-1].complete:
        looks.append(look(*source(raw), 1, looks[-1], now=now, clock=impatient(4)))
    assert {each.began for each in looks} == {100}
    assert [each.ended for each in looks] == list(range(101, 101 + 2 * len(looks), 2))


# --- what makes a pass begin anew ----------------------------------------------------------------


def test_a_complete_pass_is_not_gone_on_with(raw: Path) -> None:
    first = look(*source(raw), 60)
    write(raw / "0.jpg")
    assert seen(look(*source(raw), 60, first)) == scanned(raw) != seen(first)


def test_other_rules_begin_anew(raw: Path) -> None:
    first = look(*source(raw), 1, clock=impatient(8))
    assert not first.complete
    assert seen(look(*source(raw, exclude=["a/"]), 60, first)) == scanned(raw, exclude=["a/"])
    assert seen(look(*source(raw, fingerprint="content"), 60, first)) == scanned(raw)


def test_another_device_begins_anew(raw: Path) -> None:
    first = look(*source(raw), 1, clock=impatient(8))
    moved = first.model_copy(update={"device": first.device + 1, "files": 10**6})
    assert seen(look(*source(raw), 60, moved)) == scanned(raw)


# --- sources that cannot be looked at ------------------------------------------------------------


def test_a_source_that_is_gone_or_empty(raw: Path) -> None:
    first = look(*source(raw), 1, clock=impatient(8))
    shutil.rmtree(raw)
    with pytest.raises(SourceError, match=r"small: source\.url: .*: found nothing; expected"):
        look(*source(raw), 60, first)
    raw.mkdir()
    with pytest.raises(SourceError, match=r"small: source\.url: .*raw: no file to take"):
        look(*source(raw), 60)


def test_a_source_that_is_unmounted_during_a_look(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, devices = walk.Walk.check_root, iter([7, 8])

    def unmounted(self: Any) -> Any:
        facts = list(check(self))
        facts[2] = next(devices)
        return os.stat_result(facts)

    monkeypatch.setattr(walk.Walk, "check_root", unmounted)
    with pytest.raises(SourceError, match="mounted or unmounted while it was looked at"):
        look(*source(raw), 60)


def test_a_folder_that_cannot_be_read(
    raw: Path, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    for parent in raw.parents:
        mode = parent.stat().st_mode
        if mode & 0o005 == 0o005 or parent == Path.home():
            break
        parent.chmod(mode | 0o055)
    (raw / "a/x").chmod(0)
    try:
        text = unprivileged(lambda: look(*source(raw), 60))
        assert text.startswith("SourceError: small: source.url: 2 folders or files cannot be read")
        assert f"\n  {raw}/a/x: Permission denied" in text, text
        assert f"\n  {raw}/c/link: Permission denied" in text
    finally:
        (raw / "a/x").chmod(0o755)


def test_a_place_goes_through_json() -> None:
    for folder, after in (("", ""), ("a/b c/", "%41.jpg"), (os.fsdecode(b"\xff/"), "é\n")):
        position = Position(folder, "files", after)
        text = Place.of(position).model_dump_json()
        assert text.isascii()
        assert Place.model_validate_json(text).position == position


def test_looks_fold_many_files_in_chunks(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = seen(look(*source(raw), 60))
    monkeypatch.setattr(watch, "_CHUNK_ROWS", 4)
    assert seen(look(*source(raw), 60)) == whole
