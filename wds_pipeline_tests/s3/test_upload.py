"""Shards on their way to a bucket: in parts, while they are packed; whole, or not there."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config import RetentionConfig
from wds_pipeline.dataset import retain
from wds_pipeline.errors import DestinationError, may_pass
from wds_pipeline.storage import Place, Storage, open_storage
from wds_pipeline_tests.s3 import faults, servers
from wds_pipeline_tests.s3.project import open_s3, place
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

MB = 1024 * 1024
DATA = random.Random(5).randbytes(20 * MB)  # three parts
PATH = "shards/a.tar"
PART: Any = {"partNumber": True}
COMPLETE: Any = {"partNumber": False, "uploadId": True}


@dataclass
class World:
    """A destination behind a proxy."""

    server: S3Server
    bucket: str
    proxy: Proxy

    def storage(self, **config: Any) -> Storage:
        return open_s3(self.proxy.endpoint, self.bucket, **config)

    def stored(self) -> dict[str, bytes]:
        found = servers.get_all(self.server.client(), self.bucket)
        return {key.removeprefix("root/"): data for key, data in found.items()}

    def uploads(self) -> int:
        """How many are unfinished."""
        found = self.server.client().list_multipart_uploads(Bucket=self.bucket)
        return len(found.get("Uploads", []))

    def parts(self) -> list[faults.Request]:
        return self.proxy.seen("PUT", **PART)


@pytest.fixture(scope="module")
def only_world(moto_server: S3Server) -> Iterator[World]:
    moto_server.client().create_bucket(Bucket="uploads")
    with Proxy(moto_server.endpoint).running() as proxy:
        yield World(moto_server, "uploads", proxy)
    moto_server.client().delete_bucket(Bucket="uploads")


@pytest.fixture
def world(only_world: World) -> Iterator[World]:
    only_world.proxy.clear()
    yield only_world
    only_world.proxy.clear()
    servers.empty_bucket(only_world.server.client(), only_world.bucket)


def write(storage: Storage, data: bytes = DATA, step: int = 3 * MB + 1) -> None:
    with storage.create(PATH) as file:
        for start in range(0, len(data), step):
            file.write(memoryview(data)[start : start + step])


SIZES = [0, 1, 8 * MB - 1, 8 * MB, 8 * MB + 1, len(DATA)]


@pytest.mark.parametrize("size", SIZES)
def test_sizes(server: S3Server, make_bucket: MakeBucket, size: int) -> None:
    storage = open_s3(server.endpoint, make_bucket(server))
    write(storage, DATA[:size])
    assert storage.read(PATH) == DATA[:size]
    with storage.open(PATH) as file:
        assert file.read() == DATA[:size]
    assert storage.usage.bytes_written == size


def test_parts_go_out_before_the_end(world: World) -> None:
    storage = world.storage()
    first = world.proxy.on(faults.PASS, "PUT", query={"partNumber": "1"})
    with storage.create(PATH) as file:
        file.write(DATA[: 9 * MB])
        world.proxy.wait_for(first)
        assert world.stored() == {}
        assert world.uploads() == 1
        file.write(DATA[9 * MB :])
    assert world.stored() == {PATH: DATA}
    assert world.uploads() == 0
    assert len(world.parts()) == 3


def test_few_parts_are_in_memory(world: World) -> None:
    """A slow store keeps the packer waiting."""
    storage = world.storage()
    data = DATA * 4
    held = world.proxy.on(faults.LATE, "PUT", query=PART, times=2)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(write, storage, data)
        world.proxy.wait_for(held, 2)
        world.proxy.wait_held(2)
        world.proxy.release()
        done.result()
    assert world.proxy.highest <= 5
    assert world.stored() == {PATH: data}


def test_each_part_has_its_checksum(world: World) -> None:
    """In the signature, which every store checks, and as S3's own checksum, which S3 keeps."""
    write(world.storage())
    for each in world.parts():
        start = 8 * MB * (int(each.query["partNumber"]) - 1)
        digest = hashlib.sha256(DATA[start : start + 8 * MB])
        assert each.headers["x-amz-content-sha256"] == digest.hexdigest()
        assert each.headers["x-amz-checksum-sha256"] == base64.b64encode(digest.digest()).decode()
    small = world.storage()
    small.put("small", b"small")
    put = world.proxy.seen("PUT", "/small$")[0]
    assert put.headers["x-amz-content-sha256"] == hashlib.sha256(b"small").hexdigest()


@pytest.mark.parametrize(("size", "part"), [(1000, 1), (len(DATA), 1), (len(DATA), 3)])
def test_bytes_that_change_on_the_way(world: World, size: int, part: int) -> None:
    """The store finds that the body is not what was signed; it is sent again."""
    rule = world.proxy.on(faults.flip_request(500), "PUT", PATH, nth=[part])
    storage = world.storage()
    write(storage, DATA[:size])
    assert world.stored() == {PATH: DATA[:size]}
    assert rule.hits[0].status == 400
    assert storage.usage.retries == 1


ON_THE_WAY = {
    "503": faults.SLOW_DOWN,
    "reset": faults.RESET,
    "lost reply": faults.LOST_REPLY,
    "500 after all": faults.FAILED_AFTER,
    "200 with an error": faults.answer(200, "InternalError"),
}
STEPS: dict[str, tuple[str, Any]] = {
    "begin": ("POST", {"uploads": True}),
    "part": ("PUT", {"partNumber": "2"}),
    "complete": ("POST", COMPLETE),
    "look": ("HEAD", {}),
}


@pytest.mark.parametrize("fault", ON_THE_WAY)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_is_tried_again(world: World, step: str, fault: str) -> None:
    if fault.startswith("200") and step != "complete":
        pytest.skip("S3 does that to those who complete an upload")
    method, query = STEPS[step]
    rule = world.proxy.on(ON_THE_WAY[fault], method, PATH, query, nth=[1])
    storage = world.storage()
    write(storage)
    assert rule.hits
    assert world.stored() == {PATH: DATA}
    assert storage.usage.retries == 1


def test_it_was_completed_and_the_upload_is_forgotten(world: World) -> None:
    """As S3 has it some time after: the answer was lost, the next try meets NoSuchUpload."""
    world.proxy.on(faults.LOST_REPLY, "POST", PATH, COMPLETE, nth=[1])
    world.proxy.on(faults.answer(404, "NoSuchUpload"), "POST", PATH, COMPLETE, nth=[2])
    write(world.storage())
    assert world.stored() == {PATH: DATA}


def test_somebody_aborted_the_upload(world: World) -> None:
    """`gc` of a machine whose clock is wrong, say: an error, and what was there before stays."""
    storage = world.storage()
    storage.put(PATH, b"before")
    world.proxy.on(faults.answer(404, "NoSuchUpload"), "POST", PATH, COMPLETE)
    with pytest.raises(DestinationError, match=PATH):
        write(storage)
    assert world.stored() == {PATH: b"before"}


@pytest.mark.parametrize("size", [1000, len(DATA)])
@pytest.mark.parametrize(
    "error",
    [ValueError("stop"), KeyboardInterrupt(), SystemExit(1)],
    ids=lambda e: type(e).__name__,
)
def test_an_error_in_the_middle(world: World, error: BaseException, size: int) -> None:
    """Nothing appears, what was there stays, and the upload is aborted."""
    storage = world.storage()
    storage.put(PATH, b"before")
    with pytest.raises(type(error)), storage.create(PATH) as file:
        file.write(DATA[:size])
        raise error
    assert world.stored() == {PATH: b"before"}
    assert world.uploads() == 0
    assert list(storage.unfinished()) == []


@pytest.mark.parametrize("step", STEPS)
def test_after_the_budget(world: World, step: str) -> None:
    """A passing error of the destination, and no parts that somebody pays for."""
    method, query = STEPS[step]
    world.proxy.on(faults.SLOW_DOWN, method, PATH, query)
    storage = world.storage(retry_seconds=0.3)
    with pytest.raises(DestinationError) as error:
        write(storage)
    assert may_pass(error.value)
    assert str(error.value).startswith(f"small: destination.url: {storage.locate(PATH)}: ")
    assert world.uploads() == 0
    assert world.stored().keys() <= ({PATH} if step == "look" else set())


def test_where_not_even_aborting_works(world: World) -> None:
    """The first error is told; the upload stays, and is found."""
    world.proxy.on(faults.DENIED, "PUT", PATH, {"partNumber": "2"})
    rule = world.proxy.on(faults.SLOW_DOWN, "DELETE")
    storage = world.storage(retry_seconds=0.3)
    with pytest.raises(DestinationError, match="AccessDenied"):
        write(storage)
    assert world.uploads() == 1
    world.proxy.remove(rule)
    found = list(storage.unfinished())
    assert [each.path for each in found] == [PATH]
    storage.remove_unfinished(found[0])
    storage.remove_unfinished(found[0])
    assert world.uploads() == 0


def test_what_is_stored_is_not_what_was_sent(world: World) -> None:
    """It is looked at after it was sent; something else there is an error, never a sealed shard."""
    held = world.proxy.on(replace(faults.PASS, hold="request"), "HEAD", PATH, nth=[1])
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(write, world.storage(retry_seconds=0.3))
        world.proxy.wait_for(held)
        world.proxy.wait_held()
        world.server.client().put_object(Bucket=world.bucket, Key=f"root/{PATH}", Body=b"other")
        world.proxy.release()
        with pytest.raises(
            DestinationError, match=f"{PATH}: what is stored is not what was sent"
        ) as e:
            done.result()
    assert may_pass(e.value)


# Processes that are killed.


def upload_and_wait(where: Place) -> None:
    with open_storage(where).create(PATH) as file:
        file.write(DATA)


def killed_in_the_middle(world: World) -> None:
    """A process is killed while its second part is under way."""
    rule = world.proxy.on(faults.STALL, "PUT", query={"partNumber": "2"})
    where = place(world.proxy.endpoint, world.bucket).model_dump_json()
    code = (
        "import sys; from wds_pipeline.storage import Place; "
        "from wds_pipeline_tests.s3.test_upload import upload_and_wait; "
        "upload_and_wait(Place.model_validate_json(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, where], cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    try:
        world.proxy.wait_for(rule)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    world.proxy.clear()


def test_a_killed_process_leaves_nothing_to_see(world: World) -> None:
    """But the parts are stored, and paid for, until `gc` aborts the upload."""
    killed_in_the_middle(world)
    assert world.stored() == {}
    assert world.uploads() == 1
    storage = world.storage()
    assert storage.is_empty()
    found = list(storage.unfinished())
    assert [each.path for each in found] == [PATH]
    assert list(world.storage(prefix="elsewhere").unfinished()) == []
    # moto says of each that it began in 2010; whether a young one is spared is shown elsewhere.
    retain.collect(storage, retain.find_garbage(storage, RetentionConfig()))
    assert world.uploads() == 0
    assert list(storage.unfinished()) == []


# How it is asked for.


def test_encryption_and_who_pays(world: World) -> None:
    """In every request that makes an object, and in every request at all."""
    storage = world.storage(sse="AES256", requester_pays=True)
    write(storage)
    storage.put("small", b"small")
    storage.link("copy", "small")
    storage.check()
    assert storage.read("copy") == b"small"
    with storage.open(PATH) as file:
        assert file.read(10) == DATA[:10]
    view = memoryview(bytearray(5))
    storage.read_into("small", view, "")
    assert [*storage.list_folders(), *(file.path for file in storage.list_files())]
    storage.delete("copy")
    makes = [*world.proxy.seen("POST", uploads=True), *world.proxy.seen("PUT", partNumber=False)]
    assert len(makes) == 3
    for each in makes:
        assert each.headers["x-amz-server-side-encryption"] == "AES256"
    for each in world.proxy.requests:
        said = each.headers | each.query
        assert said.get("x-amz-request-payer") == "requester", (each.method, each.path, each.query)
