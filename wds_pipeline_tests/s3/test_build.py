"""Whole builds from a bucket into a bucket, on good days and on bad ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from wds_pipeline.dataset import version
from wds_pipeline.errors import WdsPipelineError, may_pass
from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.faults import Fault
from wds_pipeline_tests.s3.project import S3Project
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

SAMPLES = 13  # three shards


@dataclass
class World:
    """A project whose source and destination are each behind a proxy of their own."""

    project: S3Project
    source: Proxy
    destination: Proxy

    def check_published(self, status: str = "published", **storage: float) -> int:
        """Builds; the version is what the source is. Returns how many shards were packed."""
        result = self.project.build(**storage)
        assert result.status == status
        assert self.project.published() == self.project.raw()
        return result.packed

    def fail(self, **storage: float) -> str:
        """Builds in vain, within a short budget; returns the error, which may pass."""
        with pytest.raises(WdsPipelineError) as error:
            self.project.build(**{"retry_seconds": 0.5, "timeout_seconds": 5, **storage})
        assert may_pass(error.value), error.value
        return str(error.value)


@pytest.fixture
def world(moto_server: S3Server, make_bucket: MakeBucket) -> Iterator[World]:
    endpoint = moto_server.endpoint
    with Proxy(endpoint).running() as source, Proxy(endpoint).running() as destination:
        proxies = source.endpoint, destination.endpoint
        project = S3Project(moto_server, make_bucket(moto_server), *proxies)
        project.add(0, SAMPLES)
        yield World(project, source, destination)


def test_on_a_good_day(world: World) -> None:
    """Each object is read once, each shard written once; nothing is asked of the wrong end."""
    packed = world.check_published()
    assert packed == len(world.project.sealed()) >= 3
    assert len(world.source.seen("GET", r"\.(png|txt|json)$")) == 3 * SAMPLES
    assert not [each for each in world.source.requests if each.method not in ("GET", "HEAD")]
    assert len(world.destination.seen("PUT", r"\.tar$", partNumber=False)) >= packed
    for proxy in (world.source, world.destination):
        proxy.clear()
    assert world.check_published("unchanged") == 0
    assert not world.source.seen("GET", r"\.(png|txt|json)$")
    assert not world.destination.seen("PUT")
    world.project.add(SAMPLES, 1)
    assert world.check_published() == 1


def test_a_storm_at_both_ends(world: World) -> None:
    """One request in six goes wrong, whatever it is; the version is the same."""
    kinds = (faults.SLOW_DOWN, faults.LOST_REPLY, faults.RESET, faults.FAILED_AFTER)
    rules = [
        proxy.on(kind, probability=0.04, seed=seed)
        for proxy in (world.source, world.destination)
        for seed, kind in enumerate(kinds)
    ]
    world.check_published()
    for rule in rules:
        rule.times = 0
    assert sum(len(rule.hits) for rule in rules) > 10
    assert world.check_published("unchanged") == 0


ENDS: dict[str, tuple[Callable[[World], Proxy], str, str]] = {
    "source": (lambda world: world.source, "GET", r"raw/a/0007\.png$"),
    "destination": (lambda world: world.destination, "PUT", r"train-000001-\w+\.tar$"),
}


@pytest.mark.parametrize("fault", [faults.SLOW_DOWN, faults.RESET], ids=lambda f: f.name)
@pytest.mark.parametrize("end", ENDS)
def test_one_that_fails_for_good(world: World, end: str, fault: Fault) -> None:
    """Its shard fails alone, the others are sealed; the next build packs that one."""
    proxy, method, path = ENDS[end]
    rule = proxy(world).on(fault, method, path)
    text = world.fail()
    assert re.search(rf"{end}\.url: s3://{world.project.bucket}/", text), text
    assert re.search(path.rstrip("$"), text) or "train-000001" in text
    sealed = world.project.sealed()
    assert world.project.latest() is None
    proxy(world).remove(rule)
    world.source.clear()
    packed = world.check_published()
    assert packed == 1
    assert len(world.project.sealed()) == len(sealed) + 1
    read = {each.path for each in world.source.seen("GET", r"\.png$")}
    assert 0 < len(read) < SAMPLES, "of the sealed shards, no source file is read again"


def test_a_source_that_stalls_for_good(world: World) -> None:
    rule = world.source.on(faults.STALL, "GET", r"raw/a/0007\.png$")
    text = world.fail(timeout_seconds=0.5)
    assert "0007.png" in text or "train-" in text
    world.source.remove(rule)
    assert world.check_published() == 1


def test_a_destination_that_is_away(world: World) -> None:
    """Nothing is read for a version that could not be written."""
    rule = world.destination.on(faults.SLOW_DOWN)
    assert "small: destination.url: " in world.fail()
    assert not world.source.seen("GET", r"\.png$")
    world.destination.remove(rule)
    world.check_published()


@pytest.mark.parametrize("fault", [faults.LOST_REPLY, faults.FAILED_AFTER], ids=lambda f: f.name)
def test_a_commit_whose_answer_is_lost(world: World, fault: Fault) -> None:
    """It is read back: ours, and published, once."""
    world.destination.on(fault, "PUT", r"manifest\.json$", header="If-None-Match")
    world.check_published()
    assert version.list_versions(world.project.storage) == [1]


def test_a_commit_of_which_nothing_is_known(world: World) -> None:
    """Neither the answer comes nor can it be read back: nothing is removed, and the next build finds it."""
    path = r"00000001/manifest\.json$"
    written = world.destination.on(faults.LOST_REPLY, "PUT", path, header="If-None-Match")
    rules = [
        written,
        *(world.destination.on(faults.SLOW_DOWN, method, path) for method in ("GET", "HEAD")),
    ]
    text = world.fail()
    assert written.hits, text
    assert "small: version 1: " in text
    assert "nothing was removed" in text
    assert not world.destination.seen("DELETE", r"versions/")
    for rule in rules:
        world.destination.remove(rule)
    assert world.check_published("unchanged") == 0
    assert version.list_versions(world.project.storage) == [1]


def test_a_shard_that_changes_on_the_way(rclone_server: S3Server, make_bucket: MakeBucket) -> None:
    """rclone does not notice; the verification, which reads what is stored, does: packed anew."""
    with Proxy(rclone_server.endpoint).running() as proxy:
        project = S3Project(
            rclone_server,
            make_bucket(rclone_server),
            rclone_server.endpoint,
            proxy.endpoint,
            destination={"commit": "single_writer"},
        )
        project.add(0, 10)
        rule = proxy.on(faults.flip_request(3000), "PUT", r"train-000001-\w+\.tar$", times=1)
        assert project.build().status == "published"
        assert rule.hits
        assert project.published() == project.raw()


def test_a_source_that_changes_while_it_is_packed(world: World) -> None:
    """An object is written again between the scan and the read: the version has the new one, whole."""
    held = world.source.on(faults.LATE, "GET", r"raw/a/0007\.txt$", nth=[1])
    client = world.project.client

    def edit() -> None:
        world.source.wait_for(held)
        client.put_object(Bucket=world.project.bucket, Key="raw/a/0007.txt", Body=b"edited")
        world.source.wait_held()
        world.source.release()

    with ThreadPoolExecutor(1) as thread:
        editing = thread.submit(edit)
        world.check_published()
        editing.result()
    assert world.project.published()["a/0007"]["txt"] == b"edited"
