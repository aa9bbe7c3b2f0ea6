"""The same stories in folders and in buckets: built, edited, resumed, damaged, repaired, restored."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.compute import open_pool
from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_storage import Place
from wds_pipeline.dataset import audit, freshness, publish, repair, seal, show, version, view, watch
from wds_pipeline.dataset.build import Build, BuildResult, build
from wds_pipeline.dataset.preview import preview
from wds_pipeline.dataset.retain import collect, find_garbage
from wds_pipeline.dataset.scan import scan
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import Storage, open_storage
from wds_pipeline_tests.conftest import TINY_SHARD, Sample, digest_of, group_members, png
from wds_pipeline_tests.s3.project import PATIENT
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

pytestmark = pytest.mark.xdist_group("s3")


@dataclass
class World:
    """Raw files and what is published, wherever."""

    root: str
    storage: dict[str, Any]
    commit: str

    def config(self, **more: Any) -> DatasetConfig:
        values: dict[str, Any] = {
            "name": "small",
            "source": {"url": f"{self.root}/raw", "storage": self.storage},
            "destination": {
                "url": f"{self.root}/published",
                "storage": self.storage,
                "commit": self.commit,
            },
            "samples": {"required": ["png", "txt"], "max_quarantined": 1},
            "shards": {"max_bytes": TINY_SHARD},
            "compute": {"kind": "threads", "workers": 2},
            **more,
        }
        return DatasetConfig.model_validate(values)

    def at(self, part: str) -> Storage:
        values = {"url": f"{self.root}/{part}", "storage": self.storage, "single_writer": True}
        return open_storage(Place.model_validate(values))

    @property
    def raw(self) -> Storage:
        return self.at("raw")

    @property
    def published(self) -> Storage:
        return self.at("published")

    def add(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.raw.put(f"a/{number:04d}.png", png(number))
            self.raw.put(f"a/{number:04d}.txt", f"caption {number}".encode())

    def build(self, **more: Any) -> BuildResult:
        return build(self.config(**more))

    def latest(self) -> Manifest:
        found = version.latest(self.published)
        assert found is not None
        return found

    def samples(self, manifest: Manifest) -> Sample:
        """By tarfile; each shard is held against its digest."""
        found: Sample = {}
        for shard in manifest.shards:
            data = self.published.read(shard.path)
            assert digest_of(data, shard.digest) == shard.digest
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                members = ((m.name, tar.extractfile(m).read()) for m in tar)  # type: ignore[union-attr]
                found |= group_members(members)
        return found

    def raw_samples(self) -> Sample:
        config = self.config()
        listing = scan(open_storage(config.source_place), config.source)
        paths = sorted(listing.files["path"].to_pylist())
        return group_members((path, self.raw.read(path)) for path in paths)

    def shards(self) -> dict[str, float]:
        """What is stored of shards, with the time when it was written."""
        return {file.path: file.modified for file in self.published.list_files(seal.FOLDER)}


@pytest.fixture(params=["folder", "moto", "rclone"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, make_bucket: MakeBucket
) -> Iterator[World]:
    if request.param == "folder":
        yield World(str(tmp_path), {}, "conditional")
        return
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    storage = {"endpoint_url": server.endpoint, **PATIENT}
    commit = "conditional" if server.conditions else "single_writer"
    yield World(f"s3://{make_bucket(server)}", storage, commit)


def test_built_edited_deleted(world: World, tmp_path: Path) -> None:
    world.add(0, 14)
    first = world.build()
    assert (first.status, first.manifest.version) == ("published", 1)
    assert world.samples(first.manifest) == world.raw_samples()
    assert len(first.manifest.shards) > 2

    local = World(str(tmp_path / "local"), {}, "conditional")
    local.add(0, 14)
    same = {shard.partition: shard.digest for shard in local.build().manifest.shards}
    assert {shard.partition: shard.digest for shard in first.manifest.shards} == same

    stored = world.shards()
    assert world.build().status == "unchanged"
    assert world.shards() == stored

    world.raw.put("a/0003.txt", b"another caption")
    waiting = freshness.look(Build(world.config()), Build(world.config()).scan())
    assert waiting is not None
    assert (waiting.edited, waiting.added) == (1, 0)
    assert preview(world.config()).outcome == "publish"
    second = world.build()
    assert list(second.causes.values()) == ["1 edited"]
    assert second.packed == 1
    assert world.samples(second.manifest) == world.raw_samples()
    assert stored.items() <= world.shards().items(), "what was there was not written again"

    for ending in ("png", "txt"):
        world.raw.delete(f"a/0005.{ending}")
    world.raw.put("a/0006.png", b"no picture")
    third = world.build()
    assert third.manifest.quarantined == {"broken_image": 1}
    expected = world.raw_samples()
    del expected["a/0006"]
    assert world.samples(third.manifest) == expected
    assert third.packed <= 3


def test_a_stopped_build_is_taken_up(world: World) -> None:
    world.add(0, 14)
    config = world.config()
    work = Build(config)
    work.open_destination()
    plan = work.plan(work.scan()).plan
    with open_pool(config.compute) as pool:
        work.pack(plan, plan.shards[:2], pool)
    with pytest.raises(ValueError, match="stop"), work.destination.create("shards/x.tar") as file:
        file.write(bytes(10_000_000))
        raise ValueError("stop")
    stored = {path: when for path, when in world.shards().items() if path.endswith(".tar")}
    assert len(stored) == 2, "one that was not whole is not there"
    done = world.build()
    assert done.packed == len(plan.shards) - 2
    assert stored.items() <= world.shards().items()


def test_damage_is_found_and_mended(world: World) -> None:
    world.add(0, 14)
    manifest = world.build().manifest
    config, storage = world.config(), world.published
    one, other = manifest.shards[:2]
    data = storage.read(one.path)
    storage.put(one.path, data[:1500] + b"?" + data[1501:])
    storage.delete(other.path)
    rules = audit.audit_rules(config, manifest)
    with open_pool(config.compute) as pool:
        found = audit.audit(config, storage, manifest, rules, pool)
        assert set(found.damaged) == {one.name, other.name}
        mended = repair.repair(config, storage, manifest, set(found.damaged), pool)
        assert len(mended.repaired) == 2, mended.failed
        assert not audit.audit(config, storage, manifest, rules, pool).damaged
    assert storage.read(one.path) == data
    assert world.samples(manifest) == world.raw_samples()


def test_versions(world: World) -> None:
    world.add(0, 8)
    first = world.build().manifest
    world.raw.put("a/0001.txt", b"edited")
    world.build()
    storage, config = world.published, world.config(retention={"versions": 1, "days": 0})
    assert version.list_versions(storage) == [1, 2]

    view.make_view(storage, first)
    names = sorted(storage.list_names(version.view_folder(1)))
    assert names == [f"train-{number:06d}.tar" for number in range(len(first.shards))]
    path, shard = view.view_names(first)[0]
    assert digest_of(storage.read(path), shard.digest) == shard.digest

    back = publish.restore(storage, 1, "small")
    assert (back.version, back.restored_from) == (3, 1)
    assert world.samples(back) == world.samples(first)
    sample = show.read_sample(storage, back, "a/0001")
    assert {member.field for member in sample.members} == {"png", "txt"}

    garbage = find_garbage(storage, config.retention, grace=0)
    assert garbage.versions == [1, 2]
    assert collect(storage, garbage, grace=0) > 0
    assert version.list_versions(storage) == [3]
    assert not list(storage.list_names(version.view_folder(1)))
    assert world.samples(world.latest()) == world.samples(first)
    tars = [each for each in world.shards() if each.endswith(".tar")]
    assert len(tars) == len(first.shards), "nothing that no version needs"


def test_looks_at_the_source(world: World) -> None:
    world.add(0, 5)
    config = world.config()
    source = open_storage(config.source_place)
    first = watch.look(source, config.source, "small", 60)
    assert first.complete
    assert first.digest == scan(source, config.source, "small").digest
    assert watch.look(source, config.source, "small", 60).digest == first.digest
    world.raw.put("a/0001.txt", b"another")
    assert watch.look(source, config.source, "small", 60).digest != first.digest
