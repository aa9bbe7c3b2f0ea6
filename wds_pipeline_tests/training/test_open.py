"""Opening: which version and split, pinned; what is said of those that are not there."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from wds_pipeline.config import RetentionConfig
from wds_pipeline.dataset import publish, retain, seal, view
from wds_pipeline.errors import ConfigError, VerificationError, VersionError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import plain, stored, write_samples


def read_all(dataset: Dataset) -> list[tuple[str, dict[str, bytes]]]:
    return [plain(sample) for sample in dataset]


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_a_split_or_all_of_them_in_stored_order(published: Project, split: str | None) -> None:
    dataset = open_dataset(str(published.destination), split=split)
    expected = stored(published, split)
    assert read_all(dataset) == expected
    assert len(dataset) == len(expected)
    assert (dataset.version, dataset.split) == (1, split)
    assert [sample["__index__"] for sample in dataset] == list(range(len(expected)))


def test_its_urls_are_the_shards(published: Project) -> None:
    manifest = published.latest()
    dataset = open_dataset(str(published.destination), split="val")
    assert dataset.urls == [
        str(published.destination / shard.path) for shard in manifest.of_split("val")
    ]
    assert dataset.braces == view.patterns(published.storage, manifest)["val"]
    assert {sample["__url__"] for sample in dataset} == set(dataset.urls)


def test_braces_of_several_splits_are_no_pattern(published: Project) -> None:
    with pytest.raises(VersionError, match=r"open one split \(train, val\)"):
        _ = open_dataset(str(published.destination)).braces


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "local://{}"])
def test_urls_of_a_folder(published: Project, form: str) -> None:
    dataset = open_dataset(form.format(published.destination), split="val")
    assert read_all(dataset) == stored(published, "val")


def test_a_relative_path_stays_the_same_folder(
    published: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(published.folder)
    dataset = open_dataset("published", split="val")
    monkeypatch.chdir(tmp_path)
    assert read_all(pickle.loads(pickle.dumps(dataset))) == stored(published, "val")


@pytest.mark.parametrize("version", [1, "1", np.int64(1), "latest", None])
def test_ways_to_name_a_version(published: Project, version: int | str | None) -> None:
    assert open_dataset(str(published.destination), version).version == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 9}, r"small: .*version 9 is not there; there are 1"),
        ({"version": "train"}, "version='train': expected a number .*; a split is named by split="),
        ({"version": "newest"}, "version='newest': expected a number such as 7, or 'latest'"),
        ({"version": True}, "version=True: expected a number"),
        ({"version": 1.5}, "version=1.5: expected a number"),
        ({"split": "trian"}, "no split 'trian'; it has train, val; did you mean 'train'"),
        ({"fields": ["tx"]}, "no sample has a field 'tx'; there are json, png, seg.png, txt"),
        ({"fields": "seg.pgn"}, "did you mean 'seg.png'"),
        ({"fields": []}, "fields: found none"),
        (
            {"storage": {"retry_secs": 1}},
            "storage.retry_secs: there is no such key; there are .*did you mean 'retry_seconds'",
        ),
        ({"storage": ["profile"]}, "storage: expected a mapping"),
    ],
)
def test_what_is_not_there(published: Project, options: dict[str, object], message: str) -> None:
    with pytest.raises(VersionError, match=message):
        open_dataset(str(published.destination), **options)  # type: ignore[arg-type]


def test_a_folder_that_is_no_destination(published: Project, tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="no version is published there; expected the dest"):
        open_dataset(str(tmp_path))
    with pytest.raises(VersionError, match=f"did you mean {published.destination}"):
        open_dataset(f"{published.destination}/shards")


def test_a_file_or_a_shard_instead_of_its_destination(published: Project, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("name: small")
    with pytest.raises(VersionError, match=r"small\.yaml: no version is published there"):
        open_dataset(str(tmp_path / "small.yaml"))
    tars = published.destination / "views" / "00000001" / "train-{000000..000001}.tar"
    with pytest.raises(VersionError, match=f"are of: '{published.destination}', version=…, split"):
        open_dataset(str(tars))


def test_a_url_that_lacks_a_slash() -> None:
    with pytest.raises(VersionError, match="did you mean s3://bucket/captions"):
        open_dataset("s3:/bucket/captions")


@pytest.mark.parametrize("url", [None, ""])
def test_a_variable_that_is_not_set(url: Any) -> None:
    with pytest.raises(VersionError, match="expected a dataset's destination or tars"):
        open_dataset(url)


def test_a_cache_is_checked_though_a_local_disk_needs_none(published: Project) -> None:
    with pytest.raises(ConfigError, match=r"cache\..*expected a folder, or \{'folder'"):
        open_dataset(str(published.destination), cache={"dir": "cache"})
    assert len(open_dataset(str(published.destination), cache="cache")[:2]) == 2


def test_a_credential_in_the_wrong_place_is_not_shown(published: Project) -> None:
    for storage in ({"options": {"token": "hidden-word"}}, {"secret": "hidden-word"}):
        with pytest.raises(VersionError) as caught:
            open_dataset(str(published.destination), storage=storage)
        assert "hidden-word" not in str(caught.value)


@pytest.mark.parametrize("which", ["cats/0001", 1.5, [1, 2], None])
def test_what_is_no_number(published: Project, which: Any) -> None:
    dataset = open_dataset(str(published.destination), split="train")
    with pytest.raises(TypeError, match=r"small: .*expected a number or a slice; by key: \.by_key"):
        dataset[which]


def test_a_password_in_the_url_is_not_shown() -> None:
    with pytest.raises(VersionError) as caught:
        open_dataset("sftp://me:hidden-word@example.org/data")
    assert "hidden-word" not in str(caught.value)


@pytest.fixture
def changing(project: Project) -> Project:
    project.options = {"split": {"train": 1.0}}
    write_samples(project, range(30))
    assert project.build().status == "published"
    return project


def test_what_is_published_later_changes_nothing(changing: Project) -> None:
    dataset, before = open_dataset(str(changing.destination)), stored(changing)
    sent = pickle.dumps(dataset)
    changing.write("cats/0001.txt", "another caption")
    write_samples(changing, range(30, 40))
    assert changing.build().status == "published"
    for each in (dataset, pickle.loads(sent)):
        assert each.version == 1
        assert read_all(each) == before
    newest = open_dataset(str(changing.destination))
    assert newest.version == 2
    assert read_all(newest) == stored(changing)
    assert newest.digest != dataset.digest
    assert read_all(open_dataset(str(changing.destination), 1)) == before


def collect(project: Project) -> None:
    """Removes all versions but the newest, as `gc` does."""
    config = RetentionConfig(versions=1, days=0)
    retain.collect(project.storage, retain.find_garbage(project.storage, config, 0), 0)


def test_removing_other_versions_changes_nothing(changing: Project) -> None:
    changing.write("cats/0001.txt", "another caption")
    changing.build()
    dataset, before = open_dataset(str(changing.destination), 2), stored(changing)
    collect(changing)
    assert read_all(dataset) == before


def test_a_version_that_was_removed_is_an_error_that_names_it_and_the_shard(
    changing: Project,
) -> None:
    dataset = open_dataset(str(changing.destination))
    key = dataset[0]["__key__"]
    sent = pickle.dumps(dataset)
    changing.write(f"{key}.txt", "another caption")
    changing.build()
    collect(changing)
    gone = dataset.urls[0]
    assert not os.path.exists(gone)
    dataset.close()
    with pytest.raises(VersionError) as caught:
        dataset[0]
    for part in ("small: version 1", gone, "is gone", "gc", "open one of 2", "retention"):
        assert part in str(caught.value)
    # A file that is open is read on; one that shares its shards with a kept version too.
    with pytest.raises(VersionError, match="version 1: the version was removed"):
        len(pickle.loads(sent))
    with pytest.raises(VersionError, match="version 1 is not there; there are 2"):
        open_dataset(str(changing.destination), 1)


def test_a_shard_that_is_missing_though_its_version_is_there(changing: Project) -> None:
    dataset = open_dataset(str(changing.destination))
    os.unlink(dataset.urls[1])
    with pytest.raises(VerificationError, match=r"version 1: .*the shard is gone; .*--repair"):
        list(dataset)
    os.unlink(dataset.urls[2].replace(seal.TAR, seal.MEMBERS))
    with pytest.raises(VerificationError, match="its member index is gone"):
        open_dataset(str(changing.destination))[int(dataset.catalog.starts[2])]


def test_another_dataset_in_its_place_is_noticed_in_another_process(changing: Project) -> None:
    sent = pickle.dumps(open_dataset(str(changing.destination)))
    shutil.rmtree(changing.destination)
    changing.write("cats/0001.txt", "another caption")
    changing.build()
    with pytest.raises(VersionError, match="has other shards"):
        len(pickle.loads(sent))


def test_the_digest_is_that_of_the_shards_not_of_the_number(changing: Project) -> None:
    first = open_dataset(str(changing.destination))
    changing.write("cats/0001.txt", "another caption")
    changing.build()
    publish.restore(changing.storage, 1, "small")
    digests = [open_dataset(str(changing.destination), number).digest for number in (1, 2, 3)]
    assert digests[0] == digests[2] == first.digest != digests[1]


@pytest.fixture
def in_memory(published: Project) -> Iterator[str]:
    """The published dataset in a store that is no folder."""
    memory = fsspec.filesystem("memory")
    memory.put(str(published.destination), "/training/published", recursive=True)
    yield "memory://training/published"
    memory.rm("/training", recursive=True)


def test_a_store(published: Project, in_memory: str) -> None:
    dataset = open_dataset(in_memory, split="train")
    expected = stored(published, "train")
    assert read_all(dataset) == expected
    assert plain(dataset[-1]) == expected[-1]
    assert [plain(each) for each in dataset[5:1:-2]] == expected[5:1:-2]
    assert dataset.urls[0].startswith("memory://training/published/shards/train-000000-")
    assert plain(dataset.by_key(expected[3][0])) == expected[3]
    some = open_dataset(in_memory, split="train", fields=["txt"], verify=True)
    assert read_all(some) == [(key, {"txt": each["txt"]}) for key, each in expected]


def test_a_shard_of_a_store_that_was_cut_or_replaced(in_memory: str) -> None:
    memory = fsspec.filesystem("memory")
    dataset = open_dataset(in_memory, split="train")
    path = dataset.urls[0].removeprefix("memory:/")
    whole = memory.cat(path)
    memory.pipe(path, whole[:-1024])
    with pytest.raises(VerificationError, match=r"version 1, split train.*expected"):
        dataset[0]
    other = bytearray(whole)
    other[700] ^= 1
    memory.pipe(path, bytes(other))
    with pytest.raises(VerificationError, match=r"expected xxh3-128|found the digest"):
        open_dataset(in_memory, verify=True)[0]
    memory.rm(path)
    with pytest.raises(VerificationError, match="the shard is gone"):
        open_dataset(in_memory)[0]
