"""One sample by its key: found, read, saved; and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.show import read_sample, save_sample
from wds_pipeline.errors import DestinationError, VerificationError, VersionError
from wds_pipeline_tests.conftest import Project, png


@pytest.fixture
def published(project: Project) -> Project:
    project.add(0, 20)
    project.write("a/0020.png", png(20))
    project.write("a/0021.txt", "no picture")
    project.write("b/long.png", png(1))
    project.write("b/long.txt", "é" * 5000)
    project.build()
    return project


def test_every_sample_is_found_where_it_is(published: Project) -> None:
    manifest = published.latest()
    for key, fields in published.published().items():
        sample = read_sample(published.storage, manifest, key)
        assert {each.field for each in sample.members} == fields.keys()
        data = (published.destination / sample.shard.path).read_bytes()
        for each in sample.members:
            assert data[each.offset : each.offset + each.size] == fields[each.field]
        assert 0 <= sample.position < sample.shard.samples


def test_positions_are_those_in_the_shard(published: Project) -> None:
    manifest = published.latest()
    for shard in manifest.shards:
        index = seal.read_member_index(published.storage, shard.name)
        keys = list(dict.fromkeys(index["key"].to_pylist()))
        for number, key in enumerate(keys):
            assert read_sample(published.storage, manifest, key).position == number


def test_what_is_seen_of_the_content(published: Project) -> None:
    sample = read_sample(published.storage, published.latest(), "b/long")
    by_field = {each.field: each for each in sample.members}
    assert by_field["txt"].text == "é" * 500
    assert (by_field["png"].width, by_field["png"].height) == (9, 8)
    assert by_field["png"].format == "PNG"
    first = read_sample(published.storage, published.latest())
    assert first.position == 0
    assert first.shard == published.latest().shards[0]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("a/0020", "quarantine: missing_field: no txt"),
        ("a/0021", "quarantine: missing_field: no png"),
        ("a/0003.png", "did you mean 'a/0003'"),
        ("0003", "'a/0003'"),
        ("a/03", "the nearest keys"),
        ("zzz", "the nearest keys"),
        ("", "the nearest keys"),
        ("lon", "'b/long'"),
    ],
)
def test_a_key_that_is_not_there(published: Project, key: str, said: str) -> None:
    with pytest.raises(VersionError, match="has no sample") as raised:
        read_sample(published.storage, published.latest(), key)
    assert said in str(raised.value)


@pytest.mark.parametrize("damage", ["tar", "index", "cut"])
def test_damage_is_told(published: Project, damage: str) -> None:
    manifest = published.latest()
    shard = read_sample(published.storage, manifest, "a/0001").shard
    path = published.destination / shard.path
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "tar":
        path.unlink()
    else:
        (published.destination / seal.path(shard.name, seal.MEMBERS)).unlink()
    with pytest.raises(VerificationError, match="wds-pipeline verify small"):
        read_sample(published.storage, manifest, "a/0001")


def test_saving_writes_the_files_and_follows_no_link(published: Project, tmp_path: Path) -> None:
    sample = read_sample(published.storage, published.latest(), "a/0001")
    folder, outside = tmp_path / "saved", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("mine")
    (folder / "0001.txt").symlink_to(outside)
    paths = save_sample(published.storage, sample, folder)
    assert sorted(paths) == sorted(folder.iterdir())
    assert {path.suffix[1:]: path.read_bytes() for path in paths} == published.raw()["a/0001"]
    assert outside.read_text() == "mine"
    with pytest.raises(DestinationError, match="choose another folder"):
        save_sample(published.storage, sample, outside)


def test_an_older_version_is_read_as_it_was(published: Project) -> None:
    before = published.latest()
    published.write("a/0001.txt", "another")
    published.build()
    (old,) = (
        each
        for each in read_sample(published.storage, before, "a/0001").members
        if each.field == "txt"
    )
    assert old.text == "caption of a/0001"
