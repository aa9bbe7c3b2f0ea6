"""Keys of a store are taken by the same rules as files of a folder, and looked at in parts."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset import watch
from wds_pipeline.dataset.listing import PART
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.watch import Look
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import LocalStorage, Storage, open_storage

NAMES = ["a.jpg", "b.txt", ".hidden", "._a.jpg", "c.png~", "Thumbs.db", "d.part", "e é.jpg", "f"]
FOLDERS = ["", "x/", "x/y/", ".git/", "x/.cache/z/", "tmp/", "ü/", "x.tmp/", "skip/in/"]


def store(paths: Iterator[str] | list[str]) -> Storage:
    """A store in memory with these files, each with its own path for its content."""
    found = open_storage(f"memory://{uuid.uuid4().hex}")
    for path in paths:
        found.put(path, path.encode())
    return found


def paths_of(source: Storage, config: SourceConfig) -> tuple[set[str], dict[str, int]]:
    listing = scan(source, config, "small")
    return set(listing.files["path"].to_pylist()), listing.skipped


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        (["**"], []),
        (["**/*.jpg"], []),
        (["**"], ["tmp/", "skip/**"]),
        (["x/**", "*.{jpg,txt}"], ["**/y/"]),
    ],
)
def test_a_store_and_a_folder_of_the_same_files(
    tmp_path: Path, include: list[str], exclude: list[str]
) -> None:
    paths = [folder + name for folder, name in itertools.product(FOLDERS, NAMES)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(path.encode())
    config = SourceConfig(url="unused", include=include, exclude=exclude)
    expected = paths_of(LocalStorage(tmp_path), config)
    assert paths_of(store(paths), config) == expected
    assert expected[0], "the test takes some"


def test_nothing_to_take_is_an_error_that_says_what_there_was() -> None:
    with pytest.raises(SourceError, match=r"small: source\.url.*left out: 1 hidden, 1 excluded"):
        scan(store([".a", "b.txt"]), SourceConfig(url="x", exclude=["*.txt"]), "small")


def look_in_parts(source: Storage, steps: list[int], between: list[str] | None = None) -> Look:
    """A pass over the source, each look ended after so many questions for the time; what `between`
    has is put into the source after the first look."""
    config = SourceConfig(url="x")
    found: Look | None = None
    for number in itertools.count():
        ticks = map(float, itertools.count())
        most = steps[number % len(steps)]
        found = watch.look(source, config, "small", most, found, clock=partial(next, ticks))
        found = Look.model_validate_json(found.model_dump_json())
        if found.complete:
            return found
        for path in between or []:
            source.put(path, b"later")
        between = None
    raise AssertionError


@pytest.fixture(scope="module")
def many() -> Storage:
    return store(f"{number % 3}/{number:05d}.txt" for number in range(5 * PART + 17))


@settings(deadline=None, max_examples=25)
@given(steps=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_looks_in_parts_give_the_digest_of_a_scan(many: Storage, steps: list[int]) -> None:
    listing = scan(many, SourceConfig(url="x"), "small")
    found = look_in_parts(many, steps)
    assert found.digest == listing.digest
    assert (found.files, found.bytes) == (listing.files.num_rows, listing.bytes)


def test_a_file_that_comes_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the place it is seen; before it, the pass gives a digest that no scan gives."""
    monkeypatch.setattr("wds_pipeline.storage.generic._ROWS", PART)
    paths = [f"{number:05d}.txt" for number in range(3 * PART)]
    behind = store(paths)
    found = look_in_parts(behind, [0], ["99999.txt"])
    assert found.digest == scan(behind, SourceConfig(url="x"), "small").digest
    before = store(paths)
    found = look_in_parts(before, [0], ["00000.a"])
    assert found.digest != scan(before, SourceConfig(url="x"), "small").digest
    assert look_in_parts(before, [0]).digest == scan(before, SourceConfig(url="x"), "small").digest


def test_an_edit_shows_in_the_digest() -> None:
    source = store(["a.txt", "b.txt"])
    before = scan(source, SourceConfig(url="x"), "small").digest
    source.put("b.txt", b"other")
    assert scan(source, SourceConfig(url="x"), "small").digest != before


def test_content_fingerprints_of_a_store() -> None:
    source = store(["a.txt", "b.txt"])
    config = SourceConfig(url="x", fingerprint="content")
    before = scan(source, config, "small")
    source.put("b.txt", b"b.txt")
    assert scan(source, config, "small").digest == before.digest
    source.put("b.txt", b"c.txt")
    assert scan(source, config, "small").digest != before.digest
