"""Builds and repairs launched as the UI launches them, in the catalogue of a running server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from wds_pipeline.dataset import seal
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.conftest import PARTITIONED
from wds_pipeline_tests.e2e.client import Client
from wds_pipeline_tests.e2e.server import wait_for

# Deadlines within are shorter, and say more: this is for a machine that is busy with other things.
pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(900)]

GRAPH = ["source_files", "shard_plan", "shards", "shard_index", "shard_report", "published_version"]


def partitions(project: Project) -> list[str]:
    """The version's shard slots, sorted."""
    return sorted(shard.partition for shard in project.latest().shards)


@contextmanager
def other_bytes(project: Project, key: str) -> Iterator[str]:
    """A source file whose bytes changed but not its size and time; yields its shard's partition."""
    path = project.source / f"{key}.txt"
    times, data = path.stat(), path.read_bytes()
    path.write_bytes(data.upper())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        yield next(
            shard.partition
            for shard in project.latest().shards
            if key in seal.read_member_index(project.storage, shard.name)["key"].to_pylist()
        )
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_build_fills_the_catalogue(small: Project, client: Client) -> None:
    assets = client.assets("small")
    assert list(assets) == sorted(GRAPH)
    slots = partitions(small)
    assert {each.partition("-")[0] for each in slots} == {"train", "val"}
    assert len(slots) >= 7
    for name, node in assets.items():
        assert (node["staleStatus"], node["staleCauses"]) == ("FRESH", []), name
        assert node["description"]
        assert node["kinds"]
    for name in PARTITIONED:
        assert sorted(assets[name]["partitionKeys"]) == slots
        assert assets[name]["partitionStats"] == {
            "numPartitions": len(slots),
            "numMaterialized": len(slots),
            "numFailed": 0,
            "numMaterializing": 0,
        }


def test_the_assets_of_a_dataset_are_a_chain(client: Client) -> None:
    """Each dataset has a group of its own, and no asset of one hangs on another's."""
    for group in ("small", "watched", "copied", "wide"):
        assets = client.assets(group)
        for before, after in zip([None, *GRAPH], GRAPH, strict=False):
            found = [key["path"] for key in assets[after]["dependencyKeys"]]
            assert found == ([[group, before]] if before else [])


def test_the_daemon_is_whole(client: Client) -> None:
    wait_for("the daemon's threads", lambda: all(client.daemons().values()))
    wanted = {"SENSOR", "SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING"}
    assert wanted <= client.daemons().keys()


def test_of_a_range_one_shard_fails_and_is_retried_alone(small: Project, client: Client) -> None:
    """A backfill of the UI is one run; what is good in it stays when one shard cannot be packed."""
    slots = partitions(small)
    whole = small.published()
    with other_bytes(small, "a/0007") as broken:
        first = max(slots.index(broken) - 1, 0)
        chosen = slots[first : first + 3]
        backfill = client.backfill(["small/shards"], chosen)
        (run,) = wait_for("the backfill's run", lambda: client.runs({"dagster/backfill": backfill}))
        client.wait_for_run(run.id, "FAILURE")
        assert client.built_by(run.id, "small/shards") == [
            each for each in chosen if each != broken
        ]
        assert client.failed_partitions("small/shards") == [broken]
        said = "\n".join(client.messages(run.id))
        assert broken in said
        assert "it was published with" in said
    again = client.materialize(["small/shards"], client.failed_partitions("small/shards"))
    client.wait_for_run(again)
    assert client.built_by(again, "small/shards") == [broken]
    assert client.failed_partitions("small/shards") == []
    assert small.published() == whole
    assert len(client.runs({"dagster/backfill": backfill})) == 1
