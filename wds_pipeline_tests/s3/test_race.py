"""Two processes commit at once, over and over, by a way that loses replies: one history, one parent each.

moto, whose writes are made atomic for it; S3's are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import uuid
from typing import Any

import pytest

from wds_pipeline.dataset import publish, version
from wds_pipeline.dataset.manifest import Manifest
from wds_pipeline.storage import Storage, open_storage
from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.conftest import MakeProxy
from wds_pipeline_tests.s3.project import place
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

ROUNDS = 100
COMMITS = int(os.environ.get("WDS_PIPELINE_TEST_ROUNDS", 12))
pytestmark = pytest.mark.xdist_group("s3-race")


def trouble(proxy: Proxy) -> list[faults.Rule]:
    """One conditional create in five goes wrong, most of them after the server acted."""
    which: Any = {"method": "PUT", "header": "If-None-Match"}
    return [
        proxy.on(fault, **which, probability=0.05, seed=number)
        for number, fault in enumerate(
            (faults.LOST_REPLY, faults.FAILED_AFTER, faults.CONFLICT, faults.RESET)
        )
    ]


def path(number: int) -> str:
    return f"chain/{number:04d}"


def extend_chain(where: Any, go: Any, results: Any) -> None:
    """Writes the next link whenever it can; each names the one before."""
    storage = open_storage(where)
    mine: list[tuple[int, str]] = []
    before = ""
    go.wait(60)
    for number in range(ROUNDS):
        link = {"id": uuid.uuid4().hex, "before": before}
        if storage.put_if_absent(path(number), json.dumps(link).encode()):
            mine.append((number, link["id"]))
        before = json.loads(storage.read(path(number)))["id"]
    results.put((mine, storage.usage.retries))


def commit_versions(where: Any, go: Any, results: Any) -> None:
    """Commits versions on the newest until there are enough."""
    storage = open_storage(where)
    mine: list[tuple[int, str]] = []
    go.wait(60)
    while (parent := newest(storage)) < COMMITS:
        manifest = Manifest.of_shards(
            [],
            **dict[str, Any](publish.stamp()),
            dataset="small",
            version=version.next_number(storage, parent),
            parent=parent,
            parent_write_id=write_id(storage, parent),
            source="",
            inputs="",
            content_rules="",
            config={},
            files={},
            quarantined={},
            verification={},
        )
        if publish.commit(storage, manifest, {version.LEDGER: manifest.write_id.encode()}):
            mine.append((manifest.version, manifest.write_id))
    results.put((mine, storage.usage.retries))


def write_id(storage: Storage, number: int) -> str:
    found = version.try_read(storage, number)
    return found.write_id if found else ""


def newest(storage: Storage) -> int:
    manifest = version.latest(storage)
    return manifest.version if manifest else 0


def race(work: Any, where: Any) -> tuple[dict[int, str], list[int]]:
    """What two processes say that they wrote, and how often each tried again."""
    context = multiprocessing.get_context("spawn")
    go, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=work, args=(where, go, results)) for _ in range(2)]
    for each in racers:
        each.start()
    try:
        told = [results.get(timeout=120) for _ in racers]
    finally:
        for each in racers:
            each.join(10)
            each.kill()
    wrote = [link for mine, _ in told for link in mine]
    assert all(mine for mine, _ in told), "one of them was always first: no race"
    assert len(dict(wrote)) == len(wrote), "two wrote the same"
    return dict(wrote), [retries for _, retries in told]


def test_a_hundred_races_for_the_next_name(
    moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(moto_server)
    where = place(proxy.endpoint, make_bucket(moto_server))
    open_storage(where).check_put_if_absent()
    rules = trouble(proxy)
    wrote, retries = race(extend_chain, where)
    assert all(rule.hits for rule in rules)
    assert sum(retries) > 0
    storage, before = open_storage(where), ""
    for number in range(ROUNDS):
        link = json.loads(storage.read(path(number)))
        assert link["before"] == before
        assert wrote[number] == link["id"], "who was told that it wrote is who did"
        before = link["id"]
    assert not proxy.seen("DELETE", "chain/")


def test_two_that_commit_versions(
    moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy
) -> None:
    proxy = make_proxy(moto_server)
    where = place(proxy.endpoint, make_bucket(moto_server))
    trouble(proxy)
    wrote, _ = race(commit_versions, where)
    storage = open_storage(where)
    numbers = version.list_versions(storage)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= COMMITS
    for number in numbers:
        manifest = version.read(storage, number, "small")
        assert manifest.parent == number - 1
        assert manifest.write_id == wrote[number]
        assert version.read_file(storage, manifest, version.LEDGER) == wrote[number].encode()
