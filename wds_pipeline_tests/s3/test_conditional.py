"""Put-if-absent when the server acts and the client does not hear of it, and the other way round.

Three outcomes: created, conflict, unknown. The servers really behave so; moto, for rclone ignores
conditions, and is what a store without them is like.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from wds_pipeline.errors import DestinationError, may_pass
from wds_pipeline.storage import TEMPORARY, Storage
from wds_pipeline_tests.s3 import faults, servers
from wds_pipeline_tests.s3.conftest import MakeProxy
from wds_pipeline_tests.s3.faults import Fault
from wds_pipeline_tests.s3.project import S3Project, open_s3
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

PATH = "versions/00000001/manifest.json"
MINE, THEIRS = b'{"write_id": "mine"}', b'{"write_id": "theirs"}'
SHORT = {"timeout_seconds": 1, "retry_seconds": 0.5}


@dataclass
class World:
    """A destination of its own behind a proxy, in a bucket that it may share with others."""

    server: S3Server
    bucket: str
    proxy: Proxy
    prefix: str = field(default_factory=lambda: uuid.uuid4().hex)

    def unprobed(self, **config: Any) -> Storage:
        return open_s3(self.proxy.endpoint, self.bucket, self.prefix, **config)

    def storage(self, **config: Any) -> Storage:
        """Its conditional create was probed before anything goes wrong."""
        storage = self.unprobed(**config)
        storage.check_put_if_absent()
        self.proxy.clear()
        return storage

    def on(self, fault: Fault, **which: Any) -> faults.Rule:
        """The fault befalls conditional creates of PATH."""
        return self.proxy.on(fault, "PUT", PATH, header="If-None-Match", **which)

    def others(self, data: bytes = THEIRS) -> None:
        """Another process writes, by another way."""
        key = f"{self.prefix}/{PATH}"
        self.server.client().put_object(Bucket=self.bucket, Key=key, Body=data)

    def stored(self) -> dict[str, bytes]:
        prefix = f"{self.prefix}/"
        found = servers.get_all(self.server.client(), self.bucket, prefix)
        return {key.removeprefix(prefix): data for key, data in found.items()}


Shared = tuple[S3Server, str, Proxy]


@pytest.fixture(scope="module")
def shared(moto_server: S3Server) -> Iterator[Shared]:
    client = moto_server.client()
    client.create_bucket(Bucket="conditional")
    with Proxy(moto_server.endpoint).running() as proxy:
        yield moto_server, "conditional", proxy
    servers.remove_bucket(client, "conditional")


@pytest.fixture
def world(shared: Shared) -> Iterator[World]:
    """On moto, which knows conditions."""
    world = World(*shared)
    world.proxy.clear()
    yield world
    world.proxy.clear()


@pytest.fixture
def careless(rclone_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy) -> World:
    """On rclone, which ignores them."""
    return World(rclone_server, make_bucket(rclone_server), make_proxy(rclone_server))


def test_created_and_conflict(world: World) -> None:
    storage = world.storage()
    assert storage.put_if_absent(PATH, MINE)
    assert not storage.put_if_absent(PATH, THEIRS)
    assert not storage.put_if_absent(PATH, MINE), "it was there before: this call did not write it"
    assert world.stored() == {PATH: MINE}
    assert storage.usage.retries == 0


AFTER = {
    "the reply is lost": faults.LOST_REPLY,
    "500": faults.FAILED_AFTER,
    "503": faults.answer_after(503, "SlowDown"),
    "timeout": faults.STALLED_REPLY,
}
BEFORE = {
    "reset": faults.RESET,
    "500": faults.INTERNAL_ERROR,
    "503": faults.SLOW_DOWN,
    "409": faults.CONFLICT,
    "timeout": faults.STALL,
}


@pytest.mark.parametrize("after", AFTER)
def test_it_was_written_and_the_answer_says_otherwise(world: World, after: str) -> None:
    """The next try meets 412, or what is read back is ours: created, by this very call."""
    storage = world.storage(timeout_seconds=1)
    rule = world.on(AFTER[after])
    assert storage.put_if_absent(PATH, MINE)
    assert world.stored() == {PATH: MINE}
    assert rule.hits[0].served == 200
    assert not world.proxy.seen("DELETE")


@pytest.mark.parametrize("after", AFTER)
def test_theirs_was_first_and_the_answer_that_says_so_is_lost(world: World, after: str) -> None:
    world.others()
    rule = world.on(AFTER[after], times=1)
    assert not world.storage(timeout_seconds=1).put_if_absent(PATH, MINE) or rule.hits == []
    rule = world.on(AFTER[after], times=1)
    assert not world.unprobed(timeout_seconds=1).put_if_absent(PATH, MINE)
    assert rule.hits[0].served == 412
    assert world.stored() == {PATH: THEIRS}


@pytest.mark.parametrize("before", BEFORE)
def test_it_was_not_written_and_is_tried_again(world: World, before: str) -> None:
    storage = world.storage(timeout_seconds=1)
    rule = world.on(BEFORE[before], times=2)
    assert storage.put_if_absent(PATH, MINE)
    assert world.stored() == {PATH: MINE}
    assert [each.served for each in rule.hits] == [None, None]
    assert storage.usage.retries >= 2


@pytest.mark.parametrize("before", BEFORE)
def test_theirs_comes_between_two_tries(world: World, before: str) -> None:
    """A 409 says that another's create is under way: it was."""
    storage = world.storage(timeout_seconds=5)
    rule = world.on(replace(BEFORE[before], hold="request"), times=1)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(storage.put_if_absent, PATH, MINE)
        world.proxy.wait_for(rule)
        world.proxy.wait_held()
        world.others()
        world.proxy.release()
        assert done.result() is False
    assert world.stored() == {PATH: THEIRS}


def test_tries_that_were_given_up_arrive_late(world: World) -> None:
    """Two tries time out on the way, arrive both, and the third meets one of them."""
    storage = world.storage(timeout_seconds=1)
    late = world.on(faults.LATE, times=2)
    third = world.on(replace(faults.PASS, hold="request"), nth=[3])
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(storage.put_if_absent, PATH, MINE)
        world.proxy.wait_for(third)
        world.proxy.wait_held(3)
        world.proxy.release()
        assert done.result() is True
    tries = late.hits + third.hits
    servers.wait_until(lambda: all(each.served for each in tries))
    assert sorted(str(each.served) for each in tries) == ["200", "412", "412"]
    assert world.stored() == {PATH: MINE}


def test_a_late_try_of_ours_after_theirs(world: World) -> None:
    """Given up, then theirs was written, then ours arrives: theirs stays."""
    storage = world.storage(**SHORT)
    world.on(faults.LATE)
    with pytest.raises(DestinationError) as error:
        storage.put_if_absent(PATH, MINE)
    check_unknown(error.value, world, storage)
    world.others()
    world.proxy.release()
    servers.wait_until(lambda: all(each.served for each in world.proxy.seen("PUT")))
    assert world.stored() == {PATH: THEIRS}


def check_unknown(error: DestinationError, world: World, storage: Storage) -> None:
    """It says what is not known and where, may pass, and nothing was removed."""
    text = str(error)
    assert "not known" in text
    assert "nothing was removed" in text
    assert storage.locate(PATH) in text
    assert may_pass(error)
    assert not world.proxy.seen("DELETE")


@pytest.mark.parametrize(
    ("after", "read"),
    [("the reply is lost", "503"), ("the reply is lost", "denied"), ("500", "reset")],
)
def test_unknown_when_reading_back_fails_too(world: World, after: str, read: str) -> None:
    """Written or not? Nobody can say for the moment, so nothing is undone; later it is found."""
    storage = world.storage(**SHORT)
    world.on(AFTER[after])
    answers = {"503": faults.SLOW_DOWN, "reset": faults.RESET, "denied": faults.DENIED}
    rules = [world.proxy.on(answers[read], method, PATH) for method in ("GET", "HEAD")]
    with pytest.raises(DestinationError) as error:
        storage.put_if_absent(PATH, MINE)
    check_unknown(error.value, world, storage)
    for rule in rules:
        world.proxy.remove(rule)
    assert storage.read(PATH) == MINE


@pytest.mark.parametrize("before", ["reset", "503", "timeout"])
def test_never_written_however_often_it_is_tried(world: World, before: str) -> None:
    storage = world.storage(**SHORT)
    world.on(BEFORE[before])
    with pytest.raises(DestinationError) as error:
        storage.put_if_absent(PATH, MINE)
    check_unknown(error.value, world, storage)
    assert world.stored() == {}


def test_conflicts_for_the_whole_budget(world: World) -> None:
    """409 says that this request did nothing: whatever is tried later is safe."""
    storage = world.storage(retry_seconds=1)
    world.on(faults.CONFLICT)
    with pytest.raises(DestinationError, match="ConditionalRequestConflict") as error:
        storage.put_if_absent(PATH, MINE)
    assert may_pass(error.value)
    assert world.stored() == {}


def test_no_right_to_write_is_no_unknown_outcome(world: World) -> None:
    storage = world.storage()
    world.on(faults.DENIED)
    with pytest.raises(DestinationError, match=r"small: destination\.url: .*AccessDenied") as error:
        storage.put_if_absent(PATH, MINE)
    assert "not known" not in str(error.value)
    assert not may_pass(error.value)
    assert len(world.proxy.seen("PUT", PATH)) == 1


# The probe: what a store says of itself is not believed.


def test_a_store_with_conditions(world: World) -> None:
    storage = world.unprobed()
    storage.check_put_if_absent()
    probes = [each for each in world.proxy.requests if each.method == "PUT"]
    assert [each.status for each in probes] == [200, 412]
    assert {TEMPORARY in each.path for each in probes} == {True}
    assert world.stored() == {}, "the probe's key is removed"
    before = len(world.proxy.requests)
    storage.check_put_if_absent()
    world.unprobed().check_put_if_absent()
    assert len(world.proxy.requests) == before, "once a destination"


def check_refused(error: pytest.ExceptionInfo[DestinationError], storage: Storage) -> None:
    text = str(error.value)
    assert text.startswith(f"small: destination.url: {storage.url}")
    assert TEMPORARY not in text
    assert "destination.commit: single_writer" in text
    assert not may_pass(error.value)


def test_a_store_that_ignores_conditions(careless: World) -> None:
    world = careless
    storage = world.unprobed()
    with pytest.raises(DestinationError) as error:
        storage.check_put_if_absent()
    check_refused(error, storage)
    before = len(world.proxy.requests)
    with pytest.raises(DestinationError) as error:
        storage.put_if_absent(PATH, MINE)
    check_refused(error, storage)
    assert len(world.proxy.requests) == before, "it is probed once, and nothing is written"
    assert world.stored() == {}


def test_a_store_that_refuses_conditions(world: World) -> None:
    """As Amazon's itself did until 2024."""
    world.proxy.on(faults.answer(501, "NotImplemented"), "PUT", header="If-None-Match")
    storage = world.unprobed()
    with pytest.raises(DestinationError) as error:
        storage.check_put_if_absent()
    check_refused(error, storage)
    assert world.stored() == {}


PROBES: dict[str, tuple[Fault, int]] = {
    f"{name}, {which} PUT": (fault, nth)
    for name, fault in {**AFTER, **BEFORE}.items()
    for nth, which in ((1, "first"), (2, "second"))
    if name != "timeout"
}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_that_meets_faults(world: World, probe: str) -> None:
    """A second try of the same request is not taken for the store's answer."""
    fault, nth = PROBES[probe]
    rule = world.proxy.on(fault, "PUT", TEMPORARY, nth=[nth])
    world.unprobed().check_put_if_absent()
    assert rule.hits
    assert world.stored() == {}


@pytest.mark.parametrize("after", ["the reply is lost", "500"])
def test_a_probe_that_meets_faults_before_a_store_without_conditions(
    careless: World, after: str
) -> None:
    world = careless
    world.proxy.on(AFTER[after], "PUT", TEMPORARY, times=1)
    storage = world.unprobed(timeout_seconds=1)
    with pytest.raises(DestinationError) as error:
        storage.check_put_if_absent()
    check_refused(error, storage)
    assert world.stored() == {}


def test_a_probe_that_fails_is_made_again(world: World) -> None:
    """A store that was away says nothing about its conditions."""
    storage = world.unprobed(retry_seconds=0)
    rule = world.proxy.on(faults.SLOW_DOWN, "PUT")
    with pytest.raises(DestinationError) as error:
        storage.check_put_if_absent()
    assert may_pass(error.value)
    assert "single_writer" not in str(error.value)
    world.proxy.remove(rule)
    storage.check_put_if_absent()


def test_a_single_writer_where_conditions_are_ignored(
    rclone_server: S3Server, make_bucket: MakeBucket
) -> None:
    """The fallback that the user must choose."""
    bucket = make_bucket(rclone_server)
    storage = open_s3(rclone_server.endpoint, bucket, single_writer=True)
    storage.check_put_if_absent()
    assert storage.put_if_absent(PATH, MINE)
    assert not storage.put_if_absent(PATH, THEIRS)
    assert storage.read(PATH) == MINE
    assert storage.usage.retries == 0


def test_a_build_refuses_a_store_that_ignores_conditions(
    rclone_server: S3Server, make_bucket: MakeBucket
) -> None:
    """Before it packs anything; with a single writer it builds."""
    project = S3Project(rclone_server, make_bucket(rclone_server))
    project.add(0, 6)
    with pytest.raises(DestinationError) as error:
        project.build()
    check_refused(error, open_s3(rclone_server.endpoint, project.bucket, "published"))
    assert project.objects() == {}
    project.options["destination"] = {"commit": "single_writer"}
    assert project.build().status == "published"
    assert project.published() == project.raw()
    assert project.build().status == "unchanged"
