"""What was fetched and is asked for no more is removed in time, and nothing else."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.dataset.sources.kept import OK, Batches, Fetched, Items, Kept
from wds_pipeline.dataset.sources.tidy_kept import DAY, tidy_kept
from wds_pipeline.storage import LocalStorage

SIZE = 10_000


def content(name: str) -> bytes:
    return name.encode().ljust(SIZE, b".")


def fetch(kept: Kept, names: Iterable[str], status: str = OK) -> None:
    """A batch of these."""
    with Batches(kept) as batches:
        for name in names:
            body = io.BytesIO(content(name)) if status == OK else None
            digest = f"content:{xxhash.xxh3_128_hexdigest(content(name))}"
            batches.add(Fetched(name, f"the {name}", status, body, SIZE, digest, 200, 2, "word"))


def age(kept: Kept, days: float) -> None:
    for file in kept.files():
        when = time.time() - days * DAY
        os.utime(kept.storage.locate(file.path), (when, when))


def names_of(kept: Kept) -> set[str]:
    """The items that are there; each has its own bytes."""
    return set(read(kept, kept.load()))


def read(kept: Kept, items: Items) -> dict[str, str]:
    """Each item's status, when its content has been read."""
    found = {}
    for row in items.rows.to_pylist():
        if row["status"] == OK:
            file = Path(kept.storage.locate(items.parts[row["part"]]))
            assert file.read_bytes()[row["offset"] :][:SIZE] == content(row["id"])
        found[row["id"]] = row["status"]
    return found


def tidy(kept: Kept, used: Iterable[str], days: float = 3) -> None:
    wanted = pa.array(sorted(used), pa.string())
    before = read(kept, kept.load())
    items = tidy_kept(kept, kept.load(), wanted, days * DAY)
    rows = items.rows.filter(pc.is_in(items.rows["id"], wanted))
    after = read(kept, Items(rows, items.parts))
    assert after == {name: status for name, status in before.items() if name in set(used)}
    assert after.items() <= read(kept, kept.load()).items()


def bytes_of(kept: Kept) -> int:
    return sum(file.size for file in kept.files())


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(LocalStorage(tmp_path), "downloads")


def test_what_is_used_stays(kept: Kept) -> None:
    fetch(kept, "abc")
    fetch(kept, "d", "404")
    age(kept, 99)
    before = {file.path for file in kept.files()}
    tidy(kept, "abcd")
    assert {file.path for file in kept.files()} == before


def test_what_is_not_asked_for_goes_after_its_time(kept: Kept) -> None:
    fetch(kept, "abc")
    fetch(kept, "d", "404")
    age(kept, 2.5)
    fetch(kept, "efhi")
    tidy(kept, "ehi")
    assert names_of(kept) == set("abcdefhi")
    age(kept, 3.5)
    fetch(kept, "g")
    tidy(kept, "ehi")
    assert names_of(kept) == {"e", "f", "g", "h", "i"}, "half of a tar is worth keeping"


def test_small_items_are_not_moved_again_and_again(kept: Kept) -> None:
    with Batches(kept) as batches:
        for n in range(20):
            batches.add(Fetched(f"{n}", "", OK, io.BytesIO(b"x"), 1, "content:x"))
    age(kept, 99)
    before = {file.path for file in kept.files()}
    used = pa.array([f"{n}" for n in range(20)], pa.string())
    tidy_kept(kept, kept.load(), used, DAY)
    assert {file.path for file in kept.files()} == before


def test_what_others_keep_there_too_stays(kept: Kept) -> None:
    fetch(kept, "abc")
    age(kept, 99)
    tidy_kept(kept, kept.load(), None, 0)
    assert names_of(kept) == set("abc")


def test_a_day_at_least(kept: Kept) -> None:
    fetch(kept, "a")
    age(kept, 0.9)
    tidy(kept, "", days=0)
    assert names_of(kept) == {"a"}
    age(kept, 1.1)
    tidy(kept, "", days=0)
    assert not list(kept.files())


def test_the_rest_of_a_mostly_unused_tar_moves(kept: Kept) -> None:
    fetch(kept, "abcdefgh")
    fetch(kept, "ij", "500")
    age(kept, 5)
    before = bytes_of(kept)
    tidy(kept, "cfi")
    assert names_of(kept) == set("cfij")
    assert bytes_of(kept) < before / 2
    rows = {row["id"]: row for row in kept.load().rows.to_pylist()}
    assert rows["c"]["detail"] == "word" and rows["i"]["status"] == "500"


def test_a_move_that_was_killed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(kept, "abcdef")
    age(kept, 5)
    delete = LocalStorage.delete

    def killed(self: LocalStorage, path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalStorage, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        tidy(kept, "a")
    monkeypatch.setattr(LocalStorage, "delete", delete)
    assert names_of(kept) == set("abcdef")
    tidy(kept, "a")
    assert names_of(kept) == {"a"}


def test_what_was_cut_short(kept: Kept) -> None:
    folder = Path(kept.storage.locate(kept.folder))
    fetch(kept, "a")
    (folder / "20200101T000000.000000-00000000.tar").write_bytes(b"cut")
    tidy(kept, "a")
    assert len(list(folder.iterdir())) == 3
    age(kept, 1.5)
    tidy(kept, "a", days=30)
    assert len(list(folder.iterdir())) == 2 and names_of(kept) == {"a"}


def test_failures_of_which_there_is_newer_word(kept: Kept) -> None:
    fetch(kept, "ab", "500")
    fetch(kept, "ab")
    tidy(kept, "ab")
    assert len(list(kept.files())) == 2 and names_of(kept) == {"a", "b"}


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abcdefgh"), min_size=1), st.sampled_from([OK, "404"]))
    ),
    st.sets(st.sampled_from("abcdefgh")),
)
def test_nothing_that_is_asked_for_is_lost(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[set[str], str]], used: set[str]
) -> None:
    kept = Kept(LocalStorage(tmp_path_factory.mktemp("kept")), "downloads")
    good: set[str] = set()
    for names, status in batches:
        fetch(kept, sorted(names - good), status)  # what is there is not fetched again
        good |= names if status == OK else set()
    age(kept, 9)
    tidy(kept, used)
    tidy(kept, used)
    size = bytes_of(kept)
    assert size <= 2 * len(used & good) * (SIZE + 1024) + 4096 * 2 * (len(used) + 1) * 4
