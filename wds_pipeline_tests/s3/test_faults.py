"""The storage on a bad day: what may pass is tried again, within a budget, and the bytes come out right."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from wds_pipeline.errors import (
    DestinationError,
    SourceChanged,
    SourceError,
    WdsPipelineError,
    may_pass,
)
from wds_pipeline.storage import Read, Storage
from wds_pipeline_tests.s3 import faults, verbs
from wds_pipeline_tests.s3.faults import Fault
from wds_pipeline_tests.s3.project import open_s3
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import S3Server
from wds_pipeline_tests.s3.verbs import DATA, FILES, Verb, World


@pytest.fixture(scope="module")
def only_world(rclone_server: S3Server) -> Iterator[World]:
    """On rclone, which is quick."""
    rclone_server.client().create_bucket(Bucket="faults")
    with Proxy(rclone_server.endpoint).running() as proxy:
        yield World(rclone_server, "faults", proxy)
    assert rclone_server.folder is not None
    shutil.rmtree(rclone_server.folder / "faults")


@pytest.fixture
def world(only_world: World) -> Iterator[World]:
    yield only_world
    only_world.proxy.clear()


def try_verb(world: World, verb: Verb, fault: Fault, method: str = "", **which: Any) -> Storage:
    """The verb does what it should although the fault befalls it; returns its storage."""
    timeout = {"timeout_seconds": which.pop("timeout", 20)}
    trial = world.trial("source" if verb in verbs.OF_A_SOURCE else "destination", **timeout)
    rule = world.proxy.on(fault, method, **which)
    verb(trial)
    assert rule.hits
    # On a busy machine, more requests than those may time out.
    assert trial.storage.usage.retries >= len(rule.hits)
    assert trial.storage.usage.requests == len(world.proxy.requests)
    return trial.storage


def named(value: Any) -> str:
    return str(getattr(value, "__name__", getattr(value, "name", value))).strip("_")


every_verb = pytest.mark.parametrize("verb", [*verbs.LOOKS, *verbs.WRITES], ids=named)
every_read = pytest.mark.parametrize("verb", verbs.READS, ids=named)


@every_verb
def test_the_first_request_fails(world: World, verb: Verb) -> None:
    try_verb(world, verb, faults.SLOW_DOWN, nth=[1])


@every_verb
def test_the_last_answer_is_lost(world: World, verb: Verb) -> None:
    """Some verbs make more than one request: a look after the write, say."""
    trial = world.trial("source" if verb in verbs.OF_A_SOURCE else "destination")
    verb(trial)
    try_verb(world, verb, faults.LOST_REPLY, nth=[len(world.proxy.requests)])


@pytest.mark.parametrize("fault", [faults.TOO_MANY, faults.INTERNAL_ERROR, faults.RESET], ids=named)
@pytest.mark.parametrize(
    "verb", [verbs.read, verbs.list_keys, verbs.start_reads, verbs.put], ids=named
)
def test_two_requests_fail(world: World, verb: Verb, fault: Fault) -> None:
    try_verb(world, verb, fault, nth=[1, 2])


OBJECT_OR_LIST = "(/k|/faults)$"  # but not the few bytes of the other files
CUT = {"at 10": faults.cut(10), "at once": faults.cut(0), "unnoticed": faults.shorten(10)}


@pytest.mark.parametrize("cut", CUT)
@every_read
def test_bodies_that_end_too_early(world: World, verb: Verb, cut: str) -> None:
    if verb is verbs.read and cut == "unnoticed":
        pytest.skip("nobody can know how long it should be")
    try_verb(world, verb, CUT[cut], "GET", path=OBJECT_OR_LIST, nth=[1])


@pytest.mark.parametrize("verb", [verbs.link], ids=named)
def test_errors_that_come_with_status_200(world: World, verb: Verb) -> None:
    """S3 begins to answer a copy before it knows whether it succeeds."""
    try_verb(world, verb, faults.answer(200, "InternalError"), header="x-amz-copy-source", nth=[1])


@pytest.mark.parametrize("fault", [faults.STALL, faults.stall_at(10)], ids=named)
@every_read
def test_stalled_reads(world: World, verb: Verb, fault: Fault) -> None:
    """`timeout_seconds` without a byte, and it is tried again."""
    try_verb(world, verb, fault, "GET", path=OBJECT_OR_LIST, nth=[1], timeout=0.5)


@pytest.mark.parametrize("verb", [verbs.put, verbs.create, verbs.delete], ids=named)
def test_stalled_writes(world: World, verb: Verb) -> None:
    try_verb(world, verb, faults.STALL, nth=[1], timeout=0.5)


# Budgets.


@pytest.mark.parametrize(
    "fault",
    [faults.SLOW_DOWN, faults.RESET, faults.cut(10), faults.STALL],
    ids=named,
)
def test_after_the_budget(world: World, fault: Fault) -> None:
    """One clear error that says where, and that it may pass."""
    storage = world.trial("source", retry_seconds=0.5, timeout_seconds=0.3).storage
    rule = world.proxy.on(fault, "GET", "/k$")
    view = memoryview(bytearray(len(DATA)))
    with pytest.raises(SourceError) as error:
        storage.read_into("k", view, "")
    assert type(error.value) is SourceError, "it did not change, it could not be read"
    assert may_pass(error.value)
    assert str(error.value).startswith(f"small: source.url: {storage.locate('k')}: ")
    assert storage.usage.get == len(rule.hits)
    assert storage.usage.retries == len(rule.hits) - 1
    assert len(rule.hits) > 1


@every_verb
def test_no_budget(world: World, verb: Verb) -> None:
    """One request, one error; of the destination's kind for a destination."""
    trial = world.trial(retry_seconds=0)
    rule = world.proxy.on(faults.SLOW_DOWN)
    with pytest.raises(DestinationError) as error:
        verb(trial)
    assert may_pass(error.value)
    assert re.search("SlowDown|503", str(error.value))  # HEAD has no body to say it in
    assert trial.storage.url in str(error.value)
    assert trial.storage.usage.requests == len(rule.hits)
    assert trial.storage.usage.retries == 0
    assert len(rule.hits) <= len(FILES)


@every_verb
def test_what_will_not_pass_is_not_tried_again(world: World, verb: Verb) -> None:
    trial = world.trial("source" if verb in verbs.OF_A_SOURCE else "destination", retry_seconds=60)
    rule = world.proxy.on(faults.DENIED)
    with pytest.raises(WdsPipelineError) as error:
        verb(trial)
    assert not may_pass(error.value)
    assert trial.storage.usage.retries == 0
    assert len(rule.hits) <= len(FILES)
    if not isinstance(error.value, SourceChanged):  # which the caller puts into words
        assert trial.storage.url in str(error.value)


# Many requests at once.


def read_many(storage: Storage, known: dict[str, str], files: dict[str, bytes]) -> None:
    views = {path: memoryview(bytearray(len(data))) for path, data in files.items()}
    storage.start_reads([Read(path, view, known[path]) for path, view in views.items()])()
    assert {path: bytes(view) for path, view in views.items()} == files


Many = tuple[str, dict[str, bytes], dict[str, str]]


@pytest.fixture(scope="module")
def many_files(only_world: World) -> dict[str, bytes]:
    """200 objects under the prefix `many`."""
    chance = random.Random(2)
    files = {f"{n:03d}": chance.randbytes(chance.randrange(9000)) for n in range(200)}
    with ThreadPoolExecutor(8) as threads:
        put = only_world.client.put_object
        for name, data in files.items():
            threads.submit(put, Bucket="faults", Key=f"many/{name}", Body=data)
    return files


@pytest.fixture
def many(world: World, many_files: dict[str, bytes]) -> Many:
    """Their prefix, their data and their fingerprints."""
    straight = open_s3(world.server.endpoint, "faults", "many", part="source")
    return "many", many_files, verbs.fingerprints(straight)


def test_a_storm(world: World, many: Many) -> None:
    """A third of the requests fails in one way or another; every try is counted."""
    prefix, files, known = many
    storage = open_s3(world.proxy.endpoint, "faults", prefix, part="source")
    kinds = (
        faults.SLOW_DOWN,
        faults.RESET,
        faults.cut(5),
        faults.LOST_REPLY,
        faults.INTERNAL_ERROR,
    )
    rules = [world.proxy.on(each, probability=0.07, seed=n) for n, each in enumerate(kinds)]
    read_many(storage, known, files)
    assert all(rule.hits for rule in rules)
    assert storage.usage.get == len(world.proxy.seen("GET"))
    assert storage.usage.retries == storage.usage.get - len(files)
    assert storage.usage.bytes_read == sum(map(len, files.values()))


def test_a_store_that_throttles(world: World, many: Many) -> None:
    """It refuses whatever is more than a few at once."""
    prefix, files, known = many
    storage = open_s3(world.proxy.endpoint, "faults", prefix, part="source", concurrency=32)
    world.proxy.limit(4, faults.SLOW_DOWN)
    read_many(storage, known, files)
    assert storage.usage.retries > 0


def test_how_many_are_under_way(world: World, many: Many) -> None:
    """As many as `concurrency` says: no fewer, so that latency does not count; and no more."""
    prefix, files, known = many
    storage = open_s3(world.proxy.endpoint, "faults", prefix, part="source", concurrency=40)
    held = world.proxy.on(faults.LATE, "GET", times=40)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(read_many, storage, known, files)
        world.proxy.wait_for(held, 40)
        world.proxy.wait_held(40)
        assert world.proxy.highest == 40
        world.proxy.release()
        done.result()
    assert world.proxy.highest == 40


def test_one_that_fails_for_good_among_many(world: World, many: Many) -> None:
    """The error is of that one; and when it is raised, nobody writes into the views any more."""
    prefix, files, known = many
    storage = open_s3(world.proxy.endpoint, "faults", prefix, part="source", retry_seconds=0.3)
    world.proxy.on(faults.SLOW_DOWN, "GET", "/077$")
    held = world.proxy.on(faults.delay(0.5), "GET", "/150$")
    views = {path: memoryview(bytearray(len(data))) for path, data in files.items()}
    finish = storage.start_reads([Read(path, view, known[path]) for path, view in views.items()])
    with pytest.raises(SourceError, match="many/077"):
        finish()
    assert not held.hits or held.hits[0].status == 200
    for view in views.values():
        view.release()


def test_usage_is_what_the_server_saw(world: World) -> None:
    """Requests by kind, and bytes both ways."""
    source, destination = world.trial("source"), world.trial()
    for verb in verbs.OF_A_SOURCE:
        verb(source)
    for verb in (verbs.read, verbs.open_, verbs.stat, verbs.list_files, verbs.delete):
        verb(destination)
    destination.storage.put("k", b"new")
    destination.storage.link("copy", "k")
    with destination.storage.create("created") as file:
        file.write(DATA)
    usage, seen = destination.storage.usage, world.proxy.requests
    usage.add(source.storage.usage)
    kinds = {
        "list": [each for each in seen if "list-type" in each.query],
        "head": [each for each in seen if each.method == "HEAD"],
        "get": [each for each in seen if each.method == "GET" and "list-type" not in each.query],
        "copy": [each for each in seen if "x-amz-copy-source" in each.headers],
        "delete": [each for each in seen if each.method == "DELETE"],
    }
    kinds["put"] = [e for e in seen if e.method == "PUT" and "x-amz-copy-source" not in e.headers]
    counted = {kind: getattr(usage, kind) for kind in kinds}
    assert counted == {kind: len(each) for kind, each in kinds.items()}
    assert usage.bytes_read == sum(each.sent for each in kinds["get"])
    assert usage.bytes_written == len(b"new") + len(DATA)
    assert usage.retries == 0
