"""Assets materialized one by one: the same bytes as the job's, and nothing left for it to do."""

from __future__ import annotations

import os

import pytest

from wds_pipeline.dataset import seal
from wds_pipeline.defs import keys
from wds_pipeline.defs.check_results import VERIFICATION_PASSED
from wds_pipeline_tests.defs.check_status import PASSED, statuses
from wds_pipeline_tests.defs.conftest import PARTITIONED, Edge, failure_of, status_of
from wds_pipeline_tests.defs.upkeep import flip, run


def test_all_assets_give_the_jobs_bytes(edge: Edge) -> None:
    edge.project.write("a/0003.png", b"no picture")  # found by `shard_report`, left out at the end
    edge.materialize([keys.SOURCE_FILES, keys.SHARD_PLAN])
    assert not edge.project.destination.exists()
    partitions = edge.registered()
    assert len(partitions) > 4
    run = edge.materialize(PARTITIONED, partitions)
    for asset in PARTITIONED:
        assert edge.partitions(asset, run.run_id) == partitions
    edge.materialize([keys.PUBLISHED_VERSION])
    by_assets = {shard.name: shard.digest for shard in edge.project.latest().shards}

    assert status_of(edge.build())["publish"] == "skipped"
    assert edge.project.latest().version == 1

    other = edge.project.copy(edge.project.folder / "other")
    by_job = Edge(other, edge.instance)
    by_job.build()
    assert {shard.name: shard.digest for shard in other.latest().shards} == by_assets


def test_a_partition_repairs_its_shard(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[2]
    path = edge.project.destination / shard.path
    whole, others = path.read_bytes(), edge.project.shard_files()
    path.write_bytes(whole[:100] + b"rot" + whole[103:])
    result = edge.materialize(PARTITIONED, [shard.partition])
    assert path.read_bytes() == whole
    now = edge.project.shard_files()
    changed = {name for name in now if now[name] != others[name]}
    assert {name.partition(".")[0] for name in changed} == {shard.name}
    event = edge.events(keys.SHARDS, result.run_id)[0]
    assert event.metadata["cause"].value == f"repair: the bytes of version 1 ({shard.cause})"
    assert event.metadata["verification"].value == "passed (decode)"
    assert event.metadata["digest"].value == shard.digest
    assert "data:image/jpeg" in str(event.metadata["contact sheet"].value)
    assert status_of(edge.build())["publish"] == "skipped"


def test_a_range_is_one_run(edge: Edge) -> None:
    edge.build()
    train = [each for each in edge.registered() if each.startswith("train-")][:3]
    result = edge.materialize([keys.SHARDS], train)
    assert edge.partitions(keys.SHARDS, result.run_id) == train


def test_a_sealed_shard_is_packed_anew(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[0]
    before = (edge.project.destination / shard.path).stat()
    edge.materialize([keys.SHARDS], [shard.partition])
    after = (edge.project.destination / shard.path).stat()
    assert (before.st_ino, before.st_size) != (after.st_ino, after.st_size)
    sealed = seal.read_seal(edge.project.storage, shard.name)
    assert sealed is not None
    assert sealed.digest == shard.digest


def test_a_repair_from_other_bytes_is_refused(edge: Edge) -> None:
    """The source file has its old size and time: nothing told the plan."""
    edge.build()
    path = edge.project.source / "a/0007.txt"
    times = path.stat()
    path.write_bytes(b"CAPTION of a/0007")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    shard = next(
        each
        for each in edge.project.latest().shards
        if "a/0007" in seal.read_member_index(edge.project.storage, each.name)["key"].to_pylist()
    )
    whole = (edge.project.destination / shard.path).read_bytes()
    result = edge.materialize([keys.SHARDS], [shard.partition], fails=True)
    assert "it was published with" in failure_of(result)
    assert (edge.project.destination / shard.path).read_bytes() == whole


def test_damage_is_reported(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[1]
    path = edge.project.destination / shard.path
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    message = failure_of(edge.materialize([keys.SHARD_REPORT], [shard.partition], fails=True))
    assert f"small: 1 shard failed:\n  {shard.partition}: damaged: wrong_digest" in message
    assert "small/shards" in message


def test_of_a_range_the_sound_ones_are_done(edge: Edge) -> None:
    """One source file cannot be read: its shard alone fails, and can be materialized again alone."""
    edge.build()
    chosen = [each for each in edge.registered() if each.startswith("train-")][:3]
    shard = next(each for each in edge.project.latest().shards if each.partition == chosen[1])
    key = seal.read_member_index(edge.project.storage, shard.name)["key"][0].as_py()
    path = edge.project.source / f"{key}.txt"
    times, content = path.stat(), path.read_bytes()
    path.write_bytes(content[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = edge.materialize(PARTITIONED, chosen, fails=True)
    message = failure_of(result)
    assert f"small: 1 shard failed; 2 other shards of this run are whole:\n  {chosen[1]}" in message
    assert "it was published with" in message
    assert edge.partitions(keys.SHARDS, result.run_id) == [chosen[0], chosen[2]]
    for asset in (keys.SHARD_INDEX, keys.SHARD_REPORT):
        assert edge.partitions(asset, result.run_id) == [chosen[0], chosen[2]]
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = edge.materialize([keys.SHARDS], [chosen[1]])
    assert edge.partitions(keys.SHARDS, again.run_id) == [chosen[1]]
    assert status_of(edge.build())["publish"] == "skipped"


@pytest.mark.parametrize("asset", [keys.SHARD_INDEX, keys.SHARD_REPORT])
def test_a_shard_that_is_not_packed(edge: Edge, asset: str) -> None:
    edge.materialize([keys.SOURCE_FILES, keys.SHARD_PLAN])
    message = failure_of(edge.materialize([asset], [edge.registered()[0]], fails=True))
    assert edge.registered()[0] in message
    assert "small/shards" in message


@pytest.mark.parametrize("asset", PARTITIONED)
def test_of_a_range_with_a_slot_that_is_gone_the_others_are_done(edge: Edge, asset: str) -> None:
    edge.build()
    there = edge.registered()
    edge.instance.add_dynamic_partitions(keys.partitions_name("small"), ["zzz-000000"])
    order = list(edge.instance.get_dynamic_partitions(keys.partitions_name("small")))
    result = edge.materialize([asset], [order[0], order[-1]], fails=True)
    assert "1 shard failed" in failure_of(result)
    assert "zzz-000000: the present plan has no such shard" in failure_of(result)
    assert edge.partitions(asset, result.run_id) == sorted(there)


def test_the_plan_alone_takes_no_partition_of_the_newest_version_away(edge: Edge) -> None:
    edge.build()
    before = edge.registered()
    for number in range(1, 30):
        for end in ("png", "txt", "json"):
            (edge.project.source / f"a/{number:04d}.{end}").unlink()
    edge.materialize([keys.SHARD_PLAN])
    assert set(before) <= set(edge.registered())
    edge.build()
    assert len(edge.registered()) < len(before)


def test_a_repair_mends_what_the_checks_say(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[0]
    flip(edge.project, shard)
    run(edge, "verify", fails=True)
    assert statuses(edge) == PASSED | {VERIFICATION_PASSED: "failed"}
    edge.materialize([keys.SHARDS], [shard.partition])
    assert statuses(edge) == PASSED


def test_a_slot_that_is_gone(edge: Edge) -> None:
    edge.build()
    edge.instance.add_dynamic_partitions(keys.partitions_name("small"), ["train-000999"])
    message = failure_of(edge.materialize([keys.SHARDS], ["train-000999"], fails=True))
    assert "the present plan has no such shard" in message


def test_published_version_takes_in_changes(edge: Edge) -> None:
    edge.build()
    edge.project.add(30, 3)
    result = edge.materialize([keys.PUBLISHED_VERSION])
    assert edge.project.latest().version == 2
    assert edge.project.published() == edge.project.raw()
    since = sorted(each.partition for each in edge.project.latest().shards if each.since == 2)
    assert edge.partitions(keys.SHARDS, result.run_id) == since
