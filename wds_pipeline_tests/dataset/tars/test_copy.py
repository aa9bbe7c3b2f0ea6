"""Copying tars and versions: checked, taken up again, never half."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.tars.copy import copy_tars, copy_version
from wds_pipeline.dataset.tars.inputs import find_inputs
from wds_pipeline.errors import DestinationError, VerificationError, VersionError
from wds_pipeline.storage import LocalStorage, Storage, Writer, open_storage
from wds_pipeline.training import open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.dataset.foreign_tars import make


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Failing(LocalStorage):
    """A folder that takes so many files, then fails; or that stores one of them wrongly."""

    def __init__(self, root: Path, takes: int = 1000, wrong: str = "") -> None:
        super().__init__(root)
        self.takes = takes
        self.wrong = wrong
        self.created: list[str] = []

    @contextmanager
    def create(self, path: str) -> Iterator[Writer]:
        self.created.append(path)
        if len(self.created) > self.takes:
            raise DestinationError("the disk is full")
        with super().create(path) as file:
            if self.wrong and path.endswith(self.wrong):
                data = bytearray()

                class Flipped:
                    def write(self, chunk: bytes | memoryview, /) -> None:
                        data.extend(chunk)

                yield Flipped()
                data[100] ^= 1
                file.write(bytes(data))
            else:
                yield file


@pytest.fixture
def published(project: Project) -> Project:
    project.add(0, 20)
    project.build(split={"train": 0.7, "val": 0.3}, exports=["wids"])
    project.add(20, 5)
    project.build(split={"train": 0.7, "val": 0.3}, exports=["wids"])
    return project


def copy(project: Project, target: Storage | Path, number: int | None = None, **more: Any) -> Any:
    storage = project.storage
    manifest = version.read(storage, number, "small")
    folder = open_storage(str(target)) if isinstance(target, Path) else target
    return copy_version(storage, manifest, folder, **more)


def test_a_version_is_read_where_it_was_copied_to(published: Project, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    done = copy(published, target, 1)
    old = version.read(published.storage, 1, "small")
    assert (done.tars, done.there, done.bytes) == (len(old.shards), 0, old.total_bytes)
    for split in ("train", "val"):
        here = open_dataset(str(target), version=1, split=split)
        there = open_dataset(str(published.destination), version=1, split=split)
        assert [here[n] for n in range(len(here))] == [
            {**there[n], "__url__": here[n]["__url__"]} for n in range(len(there))
        ]
    assert Project(tmp_path, {"destination": {"url": str(target)}}).storage
    copied = version.read(open_storage(str(target)), None, "small")
    assert copied.dump() == old.dump()
    index = (target / version.folder(1) / "exports" / "wids").rglob("*.json")
    assert all(str(published.destination) not in path.read_text() for path in index)
    assert (target / version.view_folder(1) / "train-000000.tar").exists()


def test_copying_goes_on_where_it_stopped(published: Project, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    takes, done = 0, None
    while done is None:
        takes += 1
        storage = Failing(target, takes)
        try:
            done = copy(published, storage, workers=1)
        except DestinationError:
            assert version.list_versions(open_storage(str(target))) == []
            assert not list(target.rglob(".tmp-*"))
        assert takes < 40
    assert done.there > done.tars
    again = copy(published, target)
    assert (again.tars, again.there) == (0, len(version.read(published.storage, 2, "small").shards))
    fresh = tmp_path / "fresh"
    copy(published, fresh)
    assert files(fresh) == files(target)


def test_later_and_earlier_versions_share_shards(published: Project, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    copy(published, target, 2)
    done = copy(published, target, 1)
    assert done.there > 0
    storage = open_storage(str(target))
    assert version.list_versions(storage) == [1, 2]
    assert version.read(storage, None, "small").version == 2


def test_what_does_not_fit_is_refused(published: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other")
    other.add(0, 3)
    other.build()
    with pytest.raises(DestinationError, match="another version 1"):
        copy(published, other.destination, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with pytest.raises(DestinationError, match="other files"):
        copy(published, tmp_path / "mine", 1)


@pytest.mark.parametrize("workers", [1, 4])
def test_damage_is_found(published: Project, tmp_path: Path, workers: int) -> None:
    manifest = version.read(published.storage, 2, "small")
    name = manifest.shards[0].path
    with pytest.raises(VerificationError, match="what is stored"):
        copy(published, Failing(tmp_path / "copy", wrong=name), workers=workers)
    assert not (tmp_path / "copy" / name).exists()
    path = published.destination / name
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="damaged: found the digest"):
        copy(published, tmp_path / "copy", workers=workers)
    assert not (tmp_path / "copy" / name).exists()
    assert version.list_versions(open_storage(str(tmp_path / "copy"))) == []
    (published.destination / seal.path(manifest.shards[-1].name, seal.MEMBERS)).unlink()
    path.write_bytes(bytes(data))
    with pytest.raises((VersionError, VerificationError)):
        copy(published, tmp_path / "more", workers=workers)


def test_tars(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "d").mkdir(parents=True)
    for name in ("a", "b", "d/c"):
        (source / f"{name}.tar").write_bytes(make([(f"{name}.txt", b"t")]))
    tars = find_inputs([str(source)])
    folder = open_storage(str(target))
    done = copy_tars(tars, folder)
    assert (done.tars, done.there) == (3, 0)
    assert files(target) == {Path(name).name: data for name, data in files(source).items()}
    (target / "b.tar").unlink()
    done = copy_tars(tars, folder)
    assert (done.tars, done.there) == (1, 2)
    (target / "a.tar").write_bytes(make([("other.txt", b"t")]))
    with pytest.raises(DestinationError, match="other bytes"):
        copy_tars(tars, folder)
    assert copy_tars(tars, folder, force=True).tars == 1
    assert copy_tars(find_inputs([str(source / "*.tar")]), open_storage(str(source))).there == 2
    (source / "d" / "a.tar").touch()
    with pytest.raises(DestinationError, match="would both be copied"):
        copy_tars(find_inputs([str(source)]), open_storage(str(tmp_path / "more")))
    with pytest.raises(VerificationError, match="what is stored"):
        copy_tars(tars, Failing(tmp_path / "wrong", wrong="b.tar"))
    assert "b.tar" not in files(tmp_path / "wrong")
