"""Listings of real folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset import scan as module
from wds_pipeline.dataset import walk
from wds_pipeline.dataset.scan import LISTING, Listing, scan
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import CONTENT, LocalStorage


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for path in ("b.jpg", "a.jpg", "a/2.jpg", "a/10.txt", "a/x/1.jpg", "B/1.jpg", "a b/é.jpg"):
        write(folder / path)
    return folder


def write(path: Path, data: str = "data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    return path


def listing(folder: Path, **config: Any) -> Listing:
    return scan(LocalStorage(folder), SourceConfig(url="raw", **config), "small")


def paths(folder: Path, **config: Any) -> list[str]:
    return listing(folder, **config).files["path"].to_pylist()


def test_the_order_is_by_folder_and_name_and_stays(raw: Path) -> None:
    one = listing(raw)
    assert one.files["path"].to_pylist() == [
        *("a.jpg", "b.jpg", "B/1.jpg", "a/10.txt", "a/2.jpg", "a/x/1.jpg", "a b/é.jpg")
    ]
    assert one.files.schema.equals(LISTING)
    two = listing(raw)
    assert two.files.equals(one.files)
    assert two.digest == one.digest
    assert one.skipped == {}
    assert one.bytes == 7 * 4


def test_the_order_is_not_the_directory_s(tmp_path: Path) -> None:
    names = [f"{n:03d}.jpg" for n in range(60)]
    for place, order in (("one", names), ("two", names[::-1])):
        for name in order:
            os.utime(write(tmp_path / place / name), ns=(10**18, 10**18))
    assert listing(tmp_path / "one").digest == listing(tmp_path / "two").digest
    assert paths(tmp_path / "two") == names


# --- the digest ----------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], Any]] = {
    "edit of another size": lambda raw: write(raw / "a.jpg", "other data"),
    "edit of the same size": lambda raw: write(raw / "a.jpg", "atad"),
    "time": lambda raw: os.utime(raw / "a.jpg", ns=(5, 5)),
    "a nanosecond": lambda raw: os.utime(
        raw / "a.jpg", ns=(0, (raw / "a.jpg").stat().st_mtime_ns + 1)
    ),
    "new file": lambda raw: write(raw / "c.jpg"),
    "deleted": lambda raw: (raw / "a.jpg").unlink(),
    "renamed": lambda raw: (raw / "a.jpg").rename(raw / "c.jpg"),
    "moved": lambda raw: (raw / "a.jpg").rename(raw / "a/a.jpg"),
    "swapped": lambda raw: swap(raw / "a.jpg", raw / "a/2.jpg"),
}
NO_CHANGES: dict[str, Callable[[Path], Any]] = {
    "mode": lambda raw: (raw / "a.jpg").chmod(0o600),
    "read": lambda raw: (raw / "a.jpg").read_text(),
    "hidden file": lambda raw: write(raw / ".hidden.jpg"),
    "editor": lambda raw: write(raw / "a.jpg~"),
    "empty folder": lambda raw: (raw / "empty").mkdir(),
    "folder's time": lambda raw: os.utime(raw / "a", ns=(5, 5)),
    "another name, hidden": lambda raw: (raw / ".x").hardlink_to(raw / "a.jpg"),
}


def swap(one: Path, two: Path) -> None:
    three = one.with_name(".swap")
    one.rename(three)
    two.rename(one)
    three.rename(two)


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_notices_a_change(raw: Path, change: str) -> None:
    before = listing(raw)
    CHANGES[change](raw)
    assert listing(raw).digest != before.digest


@pytest.mark.parametrize("change", NO_CHANGES)
def test_the_digest_ignores_what_is_no_change(raw: Path, change: str) -> None:
    before = listing(raw)
    NO_CHANGES[change](raw)
    assert listing(raw).digest == before.digest


def test_an_edit_right_after_the_scan_is_seen(raw: Path) -> None:
    for number in range(15):
        write(raw / "a.jpg", f"{number:04d}")
        before = listing(raw).digest
        # Two writes within one tick of the clock, at most 10 ms, have the same time.
        assert time.time_ns() - (raw / "a.jpg").stat().st_mtime_ns >= 15_000_000
        write(raw / "a.jpg", f"{number:04x}x"[:4])
        assert listing(raw).digest != before


def test_files_of_the_future_are_not_waited_for(raw: Path) -> None:
    os.utime(raw / "a.jpg", (time.time() + 3600,) * 2)
    start = time.monotonic()
    listing(raw)
    assert time.monotonic() - start < 5


def test_contents_as_fingerprints(raw: Path) -> None:
    before = listing(raw, fingerprint="content")
    assert all(each.startswith(CONTENT) for each in before.files["fingerprint"].to_pylist())
    assert before.files.schema.equals(LISTING)
    os.utime(raw / "a.jpg", ns=(5, 5))
    assert listing(raw, fingerprint="content").digest == before.digest
    write(raw / "a.jpg", "atad")
    os.utime(raw / "a.jpg", ns=(5, 5))
    after = listing(raw, fingerprint="content")
    changed = [
        path
        for path, one, two in zip(
            before.files["path"].to_pylist(),
            before.files["fingerprint"].to_pylist(),
            after.files["fingerprint"].to_pylist(),
            strict=True,
        )
        if one != two
    ]
    assert changed == ["a.jpg"]


# --- what is taken, and what is left out ---------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        (["**"], [], 7),
        (["**/*"], [], 7),
        (["*.jpg"], [], ["a.jpg", "b.jpg"]),
        (["*"], [], ["a.jpg", "b.jpg"]),
        (["./*.jpg"], [], ["a.jpg", "b.jpg"]),
        (["**/*.txt"], [], ["a/10.txt"]),
        (["a/"], [], ["a/10.txt", "a/2.jpg", "a/x/1.jpg"]),
        (["a/**"], [], ["a/10.txt", "a/2.jpg", "a/x/1.jpg"]),
        (["a/*"], [], ["a/10.txt", "a/2.jpg"]),
        (["a/*/*"], [], ["a/x/1.jpg"]),
        (["**/1.jpg"], [], ["B/1.jpg", "a/x/1.jpg"]),
        (["**/x/**"], [], ["a/x/1.jpg"]),
        (["[ab].jpg"], [], ["a.jpg", "b.jpg"]),
        (["?.jpg"], ["a.*"], ["b.jpg"]),
        (["a/10.txt", "b.jpg"], [], ["b.jpg", "a/10.txt"]),
        (["*.{jpg,txt}", "a/*.{txt}"], [], ["a.jpg", "b.jpg"]),
        (["{a,B}/**/*.{jpg,png}"], [], ["B/1.jpg", "a/2.jpg", "a/x/1.jpg"]),
        (["{a,a/x}/*.jpg"], [], ["a/2.jpg", "a/x/1.jpg"]),
        (["**"], ["a/", "*.jpg"], ["B/1.jpg", "a b/é.jpg"]),
        (["**"], ["**/x/**", "{B,a b}/"], ["a.jpg", "b.jpg", "a/10.txt", "a/2.jpg"]),
        (["**"], ["a"], 7),
        (["a/**"], ["**/*.jpg"], ["a/10.txt"]),
        (["a b/é.jpg"], [], ["a b/é.jpg"]),
    ],
)
def test_globs(raw: Path, include: list[str], exclude: list[str], taken: Any) -> None:
    found = listing(raw, include=include, exclude=exclude)
    names = found.files["path"].to_pylist()
    if isinstance(taken, int):
        assert len(names) == taken
        assert found.skipped == {}
    else:
        assert sorted(names) == sorted(taken)
        assert found.skipped.keys() == {"excluded"}


def test_a_folder_that_is_left_out_counts_once(raw: Path) -> None:
    assert listing(raw, exclude=["a/"]).skipped == {"excluded": 1}
    assert listing(raw, exclude=["a/*"]).skipped == {"excluded": 2}
    assert listing(raw, exclude=["**/x/**"]).examples == {"excluded": ["a/x"]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".hidden.jpg", "hidden"),
        (".git/objects/1.jpg", "hidden"),
        ("._a.jpg", "apple_double"),
        ("a/._a.jpg", "apple_double"),
        ("Thumbs.db", "system_file"),
        ("a/THUMBS.DB", "system_file"),
        ("desktop.ini", "system_file"),
        ("a.jpg~", "editor_file"),
        (".a.jpg.swp", "editor_file"),
        ("a.swo", "editor_file"),
        ("#a.txt#", "editor_file"),
        ("~$letter.docx", "editor_file"),
        (".#a.txt", "hidden"),
        ("a.jpg.part", "unfinished_file"),
        ("a.tmp", "unfinished_file"),
        ("a.crdownload", "unfinished_file"),
        ("a/a.partial", "unfinished_file"),
    ],
)
def test_droppings_are_left_out_and_counted(raw: Path, name: str, reason: str) -> None:
    write(raw / name)
    found = listing(raw)
    assert found.skipped == {reason: 1}
    assert found.files.num_rows == 7
    assert found.examples[reason] == [name.partition("/objects")[0]]


@pytest.mark.parametrize(
    "name", ["a#.jpg", "#a.jpg", "~a.jpg", "my.db", "x.ini", "tmp", "part.jpg", "a.swp.jpg"]
)
def test_what_only_looks_like_droppings_is_taken(raw: Path, name: str) -> None:
    write(raw / name)
    assert name in paths(raw)


def test_special_files(raw: Path) -> None:
    os.mkfifo(raw / "pipe.jpg")
    assert listing(raw).skipped == {"special_file": 1}


def test_only_some_examples_are_kept(raw: Path) -> None:
    for number in range(20):
        write(raw / f".{number:02d}")
    found = listing(raw)
    assert found.skipped == {"hidden": 20}
    assert found.examples == {"hidden": [".00", ".01", ".02", ".03", ".04"]}


def test_names_that_are_not_utf8(raw: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(raw) + b"/b\xff.jpg")).write_text("x")
    except OSError:
        pytest.skip("this filesystem refuses such names")
    found = listing(raw)
    rows = {row["path"]: row["problem"] for row in found.files.to_pylist()}
    assert rows.pop("b\\xff.jpg") == "name_not_utf8"
    assert set(rows.values()) == {None}
    assert len(rows) == 7
    assert listing(raw, fingerprint="content").files.num_rows == 8
    assert listing(raw).digest == found.digest


# --- symbolic links ------------------------------------------------------------------------------


@pytest.fixture
def linked(raw: Path) -> Path:
    outside = raw.parent / "outside"
    write(outside / "o.jpg")
    (raw / "l1.jpg").symlink_to("a.jpg")
    (raw / "l2.jpg").symlink_to(raw / "a.jpg")
    (raw / "l3").symlink_to("B")
    (raw / "l4.jpg").symlink_to(outside / "o.jpg")
    (raw / "l5").symlink_to(outside)
    (raw / "l6.jpg").symlink_to("nothing.jpg")
    (raw / "l7.jpg").symlink_to("l7.jpg")
    (raw / "l8").symlink_to(".")
    (raw / "a/l9").symlink_to("..")
    (raw / "a/x/up").symlink_to("..")
    return raw


LEFT = {"symlink_broken": 2, "symlink_loop": 3}


def test_links_inside_are_followed(linked: Path) -> None:
    found = listing(linked)
    assert found.skipped == {**LEFT, "symlink_outside": 2}
    assert {"l1.jpg", "l2.jpg", "l3/1.jpg"} < set(found.files["path"].to_pylist())
    assert found.files.num_rows == 10


def test_links_are_followed_always(linked: Path) -> None:
    found = listing(linked, follow_symlinks="always")
    assert found.skipped == LEFT
    assert {"l4.jpg", "l5/o.jpg"} < set(found.files["path"].to_pylist())
    assert found.files.num_rows == 12


def test_links_are_never_followed(linked: Path) -> None:
    found = listing(linked, follow_symlinks="never")
    assert found.skipped == {"symlink": 10}
    assert found.files.num_rows == 7


def test_a_source_that_is_a_link_itself(linked: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(linked)
    assert listing(tmp_path / "link").digest == listing(linked).digest


def test_a_link_to_a_neighbour_whose_name_begins_alike_leaves_the_source(raw: Path) -> None:
    write(raw.parent / "raw2/o.jpg")
    (raw / "l").symlink_to("../raw2")
    assert listing(raw).skipped == {"symlink_outside": 1}


def test_an_edit_behind_a_link_is_an_edit(linked: Path) -> None:
    before = listing(linked, follow_symlinks="always").digest
    write(linked.parent / "outside/o.jpg", "other")
    assert listing(linked, follow_symlinks="always").digest != before


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folders_that_link_to_each_other_are_what_find_lists(tmp_path: Path, count: int) -> None:
    names = [f"d{number}" for number in range(count)]
    for name in names:
        write(tmp_path / f"raw/{name}/{name}.jpg")
        for other in names:
            if other != name:
                (tmp_path / f"raw/{name}/to-{other}").symlink_to(f"../{other}")
    command = ["find", "-L", ".", "-type", "f", "-printf", "%P\\n"]
    done = subprocess.run(
        command, cwd=tmp_path / "raw", capture_output=True, text=True, check=False
    )
    found = listing(tmp_path / "raw")
    assert sorted(found.files["path"].to_pylist()) == sorted(done.stdout.splitlines())
    assert found.skipped == {"symlink_loop": len(done.stderr.splitlines())}


# --- sources that cannot be read -----------------------------------------------------------------


def open_to_all(folder: Path) -> None:
    """pytest's folders are for their owner only; another user must reach this one."""
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & 0o005 == 0o005 or parent == Path.home():
            break
        parent.chmod(mode | 0o055)


def test_a_source_that_is_not_there(raw: Path) -> None:
    with pytest.raises(
        SourceError, match=r"small: source\.url: .*gone/: found nothing; expected a folder"
    ):
        listing(raw / "gone")
    with pytest.raises(SourceError, match=r"a\.jpg/: found a file; expected a folder"):
        listing(raw / "a.jpg")
    (raw / "empty").mkdir()
    with pytest.raises(SourceError, match=r"empty: no file to take; expected raw files"):
        listing(raw / "empty")
    with pytest.raises(SourceError, match=r"no file to take \(left out: 7 excluded\)"):
        listing(raw, include=["*.npy"])


def test_folders_that_cannot_be_read_are_an_error_that_names_them(
    raw: Path, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    open_to_all(raw)
    assert unprivileged(lambda: listing(raw)) == ""
    (raw / "a/x").chmod(0)
    (raw / "B").chmod(0o644)  # its names can be read, its files' facts cannot
    try:
        text = unprivileged(lambda: listing(raw))
        assert text.startswith("SourceError: small: source.url: 2 folders or files cannot be read")
        assert f"\n  {raw}/a/x: Permission denied" in text
        assert f"\n  {raw}/B/1.jpg: Permission denied" in text
        assert "source.exclude" in text
        # The advice works.
        assert unprivileged(lambda: listing(raw, exclude=["a/x/", "B/**"])) == ""
        assert "1 folders" in unprivileged(lambda: listing(raw, exclude=["**/x/**"]))
    finally:
        (raw / "a/x").chmod(0o755)
        (raw / "B").chmod(0o755)


def test_a_folder_that_vanishes_during_the_scan_is_an_error(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a disk that was unmounted: what lay there must not look deleted."""
    take = walk.Walk._take

    def unmount(*arguments: Any) -> None:
        take(*arguments)
        shutil.rmtree(raw / "a b", ignore_errors=True)

    monkeypatch.setattr(walk.Walk, "_take", unmount)
    with pytest.raises(SourceError, match=r"1 folders or files cannot be read:\n  .*/a b: No such"):
        listing(raw)


def test_a_link_whose_end_cannot_be_seen_is_not_a_broken_one(
    raw: Path, unprivileged: Callable[[Callable[[], Any]], str]
) -> None:
    open_to_all(raw)
    secret = raw.parent / "secret"
    write(secret / "in/o.jpg")
    (raw / "link").symlink_to(secret / "in")
    secret.chmod(0)
    try:
        text = unprivileged(lambda: listing(raw, follow_symlinks="always"))
        assert f"\n  {raw}/link: Permission denied" in text
        assert unprivileged(lambda: listing(raw)) == "", "it leaves the source in any case"
    finally:
        secret.chmod(0o755)


def test_unreadable_contents(raw: Path, unprivileged: Callable[[Callable[[], Any]], str]) -> None:
    open_to_all(raw)
    (raw / "a.jpg").chmod(0)
    text = unprivileged(lambda: listing(raw, fingerprint="content"))
    assert text.startswith(f"SourceError: small: {raw}/a.jpg: cannot be read for its fingerprint")


def test_a_file_that_vanishes_while_its_folder_is_listed(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = walk._entry_name

    def delete(entry: Any) -> Any:
        (raw / "b.jpg").unlink(missing_ok=True)
        return names(entry)

    monkeypatch.setattr(walk, "_entry_name", delete)
    assert "b.jpg" not in paths(raw)
    assert len(paths(raw)) == 6


# --- many files ----------------------------------------------------------------------------------


def test_a_large_tree_is_what_find_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    for folder in range(100):
        (raw / f"{folder % 10}/{folder}").mkdir(parents=True)
        for number in range(200):
            open(raw / f"{folder % 10}/{folder}/{number}.jpg", "w").close()
    command = ["find", ".", "-type", "f", "-printf", "%P\t%s\t%T@\n"]
    lines = subprocess.run(command, cwd=raw, capture_output=True, text=True, check=True).stdout
    theirs = set()
    for line in lines.splitlines():
        path, size, when = line.split("\t")
        seconds, _, fraction = when.partition(".")
        theirs.add((path, int(size), seconds + fraction[:9]))
    seen: list[int] = []
    whole = scan(LocalStorage(raw), SourceConfig(url="raw"), "small", seen.append)
    columns = (whole.files[name].to_pylist() for name in ("path", "size", "fingerprint"))
    assert set(zip(*columns, strict=True)) == theirs
    assert whole.files.num_rows == 20_000
    assert seen == sorted(seen)
    # In chunks, as for millions of files, it is the same listing.
    monkeypatch.setattr(module, "_CHUNK_ROWS", 3_000)
    chunked = scan(LocalStorage(raw), SourceConfig(url="raw"), "small")
    assert chunked.files["path"].num_chunks > 3
    assert chunked.files.equals(whole.files)
