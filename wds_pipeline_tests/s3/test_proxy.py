"""The proxy goes wrong as it is told, and not otherwise: both servers are reached through it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from wds_pipeline_tests.s3 import faults, servers
from wds_pipeline_tests.s3.conftest import MakeProxy
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server, wait_until

DATA = bytes(range(256)) * 40


class World:
    """A bucket with the object `k`, and a client that reaches it through a proxy."""

    def __init__(self, server: S3Server, bucket: str, proxy: Proxy) -> None:
        self.direct, self.bucket, self.proxy = server.client(), bucket, proxy
        # Without a checksum, a byte of the body is where it is.
        plain = {"request_checksum_calculation": "when_required"}
        self.client = servers.make_client(proxy.endpoint, **plain)
        self.impatient = servers.make_client(proxy.endpoint, read_timeout=1, **plain)
        self.direct.put_object(Bucket=bucket, Key="k", Body=DATA)

    def get(self, key: str = "k") -> bytes:
        body: bytes = self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def put(self, key: str = "new", data: bytes = DATA, **more: Any) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more)

    def there(self) -> dict[str, bytes]:
        return servers.get_all(self.direct, self.bucket)

    def close(self) -> None:
        self.client.close()
        self.impatient.close()


@pytest.fixture
def world(moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy) -> Iterator[World]:
    world = World(moto_server, make_bucket(moto_server), make_proxy(moto_server))
    yield world
    world.close()


METHODS = ["PUT", "PUT", "GET", "GET", "HEAD", "GET", "DELETE", "GET"]


def refusal(work: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as error:
        work()
    reply = error.value.response
    return reply["ResponseMetadata"]["HTTPStatusCode"], reply["Error"]["Code"]


def test_what_passes_is_as_without_it(
    server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    """rclone checks the signature, which is over the address that the client sees."""
    world = World(server, make_bucket(server), make_proxy(server))
    key = "folder/ü ?&+%.txt"
    world.put(key)
    world.put("empty", b"")
    assert world.get(key) == DATA
    assert world.get("empty") == b""
    head = world.client.head_object(Bucket=world.bucket, Key=key)
    assert head["ContentLength"] == len(DATA)
    listed = world.client.list_objects_v2(Bucket=world.bucket, Prefix="folder/")
    assert [each["Key"] for each in listed["Contents"]] == [key]
    world.client.delete_object(Bucket=world.bucket, Key=key)
    assert world.there() == {"k": DATA, "empty": b""}
    with pytest.raises(ClientError, match="NoSuchKey"):
        world.get(key)
    seen = world.proxy.requests
    world.close()
    assert [each.method for each in seen] == METHODS
    put, _, got, _, head, listing, deleted, missing = seen
    assert (put.path, put.received >= len(DATA), put.status) == (
        f"/{world.bucket}/{key}",
        True,
        200,
    )
    assert (got.served, got.status, got.sent) == (200, 200, len(DATA))
    assert (head.status, head.sent) == (200, 0)
    assert listing.query["list-type"] == "2"
    assert (deleted.status, missing.status) == (204, 404)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (faults.SLOW_DOWN, 503, "SlowDown"),
        (faults.INTERNAL_ERROR, 500, "InternalError"),
        (faults.CONFLICT, 409, "ConditionalRequestConflict"),
        (faults.TOO_MANY, 429, "TooManyRequests"),
    ],
)
def test_answers_of_its_own(world: World, fault: faults.Fault, status: int, code: str) -> None:
    rule = world.proxy.on(fault, "PUT", nth=[1])
    assert refusal(world.put) == (status, code)
    assert world.there() == {"k": DATA}
    world.put()
    assert world.there() == {"k": DATA, "new": DATA}
    assert [(each.served, each.status) for each in rule.hits] == [(None, status)]
    assert rule.seen == 2


def test_the_server_acts_and_the_client_hears_something_else(world: World) -> None:
    world.proxy.on(faults.FAILED_AFTER, "PUT", "one")
    world.proxy.on(faults.LOST_REPLY, "PUT", "two")
    assert refusal(lambda: world.put("one")) == (500, "InternalError")
    with pytest.raises(ConnectionClosedError):
        world.put("two")
    assert world.there().keys() == {"k", "one", "two"}
    assert [(each.served, each.status) for each in world.proxy.requests] == [
        (200, 500),
        (200, None),
    ]


def test_a_reset_before_the_server_hears_of_it(world: World) -> None:
    world.proxy.on(faults.RESET, times=1)
    with pytest.raises(ConnectionClosedError):
        world.put()
    assert world.there() == {"k": DATA}
    world.put()


def test_stalls(world: World) -> None:
    stalled = world.proxy.on(faults.STALL, "PUT", "never")
    late = world.proxy.on(faults.LATE, "PUT", "late")
    world.proxy.on(faults.STALLED_REPLY, "PUT", "done")
    half = world.proxy.on(faults.stall_at(100), "GET", "k$")
    impatient, bucket = world.impatient, world.bucket

    def try_put(key: str) -> None:
        with pytest.raises(ReadTimeoutError):
            impatient.put_object(Bucket=bucket, Key=key, Body=DATA)

    def try_get() -> None:
        reply = impatient.get_object(Bucket=bucket, Key="k")
        with pytest.raises(ReadTimeoutError):
            reply["Body"].read()

    with ThreadPoolExecutor(4) as threads:
        tries = [threads.submit(try_put, key) for key in ("never", "late", "done")]
        for each in [*tries, threads.submit(try_get)]:
            each.result()
    assert world.there().keys() == {"k", "done"}
    world.proxy.release()
    servers.wait_until(lambda: late.hits[0].served == 200)
    assert world.there().keys() == {"k", "done", "late"}, "the client had given up long ago"
    assert stalled.hits[0].served is None
    assert half.hits[0].sent >= 100


def test_a_reply_that_is_held_and_released(world: World) -> None:
    rules = [world.proxy.on(fault, "GET", "k$", nth=[n]) for n, fault in HELD]
    with ThreadPoolExecutor(1) as thread:
        for rule in rules:
            got = thread.submit(world.get)
            world.proxy.wait_for(rule)
            world.proxy.wait_held()
            world.proxy.release()
            assert got.result() == DATA


HELD = [(1, faults.LATE), (2, faults.STALLED_REPLY), (3, faults.stall_at(100))]


def test_bodies_that_are_not_what_they_should_be(world: World) -> None:
    world.proxy.on(faults.cut(100), "GET", "k$", nth=[1])
    world.proxy.on(faults.shorten(100), "GET", "k$", nth=[2])
    world.proxy.on(faults.flip(7), "GET", "k$", nth=[3])
    with pytest.raises(ResponseStreamingError):
        world.get()
    assert world.get() == DATA[:100]
    got = world.get()
    assert got[7] == DATA[7] ^ 1
    assert got[:7] + got[8:] == DATA[:7] + DATA[8:]
    sent = [100, 100, len(DATA)]  # counted when it is sent, which is after it came
    wait_until(lambda: [each.sent for each in world.proxy.requests] == sent)
    world.proxy.on(faults.flip_request(-3), "PUT")
    assert refusal(world.put) == (400, "XAmzContentSHA256Mismatch")
    assert world.there() == {"k": DATA}


def test_which_requests_are_meant(world: World) -> None:
    client, where = world.client, {"Bucket": world.bucket, "Key": "big"}
    uploads = world.proxy.on(faults.SLOW_DOWN, "POST", query={"uploads": True}, times=1)
    second = world.proxy.on(faults.SLOW_DOWN, query={"partNumber": "2", "uploadId": True}, times=1)
    plain = world.proxy.on(faults.SLOW_DOWN, "PUT", "big$", {"uploadId": False}, times=1)
    create = world.proxy.on(faults.CONFLICT, "PUT", header="If-None-Match", times=1)
    listing = world.proxy.on(faults.SLOW_DOWN, query={"list-type": "2"}, nth=[2])
    assert refusal(lambda: client.create_multipart_upload(**where))[0] == 503
    upload = client.create_multipart_upload(**where)["UploadId"]
    part = {**where, "UploadId": upload, "Body": b"x"}
    client.upload_part(**part, PartNumber=1)
    assert refusal(lambda: client.upload_part(**part, PartNumber=2))[0] == 503
    assert refusal(lambda: world.put("big"))[0] == 503
    assert refusal(lambda: world.put("c", IfNoneMatch="*"))[0] == 409
    client.list_objects_v2(Bucket=world.bucket)
    assert refusal(lambda: client.list_objects_v2(Bucket=world.bucket))[0] == 503
    client.list_objects_v2(Bucket=world.bucket)
    client.abort_multipart_upload(**where, UploadId=upload)
    rules = (uploads, second, plain, create, listing)
    assert [len(rule.hits) for rule in rules] == [1] * 5
    assert len(world.proxy.seen("PUT", "big", uploadId=True)) == 2


def test_faults_by_chance_are_the_same_each_time(world: World) -> None:
    def befallen(rule: faults.Rule) -> list[bool]:
        found = []
        for _ in range(12):
            before = len(rule.hits)
            with suppress(ClientError):
                world.get()
            found.append(len(rule.hits) > before)
        world.proxy.remove(rule)
        return found

    first, again, other = (
        befallen(world.proxy.on(faults.SLOW_DOWN, "GET", probability=0.5, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert 0 < sum(first) < 12


def test_how_many_are_under_way(world: World) -> None:
    """The most at once is what the client asks, not what gets through."""
    held = world.proxy.on(faults.LATE, "GET", "k$", times=4)
    clients = [threading.Thread(target=world.get) for _ in range(4)]
    for each in clients:
        each.start()
    world.proxy.wait_for(held, 4)
    assert world.proxy.highest == 4
    world.proxy.limit(4, faults.SLOW_DOWN)
    assert refusal(world.get) == (503, "SlowDown")
    world.proxy.limit(4)
    fifth = threading.Thread(target=world.get)
    fifth.start()
    servers.wait_until(lambda: world.proxy.highest == 5)
    assert world.proxy.requests[-1].served is None
    world.proxy.wait_held(4)
    world.proxy.release()
    for each in [*clients, fifth]:
        each.join()
    assert [each.status for each in world.proxy.requests] == [200] * 4 + [503, 200]
