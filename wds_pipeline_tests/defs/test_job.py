"""`<name>_build`: what it does, what it logs, and what it leaves alone."""

from __future__ import annotations

import shutil
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.dataset.plan import ShardPlan
from wds_pipeline.defs import keys
from wds_pipeline.defs.job import batches
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.defs.conftest import PARTITIONED, Edge, failure_of, status_of


def test_first_build(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    result = edge.build()
    manifest = edge.project.latest()
    assert edge.project.published() == edge.project.raw()
    shards = sorted(shard.partition for shard in manifest.shards)
    assert len(shards) > 4
    assert edge.registered() == shards
    for asset in PARTITIONED:
        assert edge.partitions(asset, result.run_id) == shards
    for asset in (keys.SOURCE_FILES, keys.SHARD_PLAN, keys.PUBLISHED_VERSION):
        assert len(edge.events(asset, result.run_id)) == 1
    assert "small, version 1 of " in capsys.readouterr().out


def test_a_batch_is_verified_before_the_next_is_packed(edge: Edge) -> None:
    edge.project.add(30, 60)
    edge.project.options["shards"] = {"max_samples": 4}
    steps = [step for step in status_of(edge.build()) if step[-1] == "]"]
    assert steps[:4] == ["pack[0000]", "verify[0000]", "pack[0001]", "verify[0001]"]


def test_metadata_of_a_shard(edge: Edge) -> None:
    edge.build()
    shard = edge.project.latest().shards[0]
    (event,) = [e for e in edge.events(keys.SHARDS) if e.partition == shard.partition]
    found: dict[str, Any] = {name: entry.value for name, entry in event.metadata.items()}
    assert found["samples"] == found["dagster/row_count"] == shard.samples
    assert found["bytes"] == shard.bytes
    assert found["digest"] == shard.digest == (event.tags or {})["dagster/data_version"]
    assert found["cause"] == f"{shard.samples} new"
    assert found["dagster/uri"] == str(edge.project.destination / shard.path)
    assert found["verification"] == "passed (decode)"
    sheet = str(found["contact sheet"])
    assert "](data:image/jpeg;base64," in sheet
    assert "caption of a/" in sheet
    assert len(sheet) < 40_000


def test_metadata_of_a_version(edge: Edge) -> None:
    edge.project.write("a/0003.png", b"no picture")
    edge.build()
    (event,) = edge.events(keys.PUBLISHED_VERSION)
    found: dict[str, Any] = {name: entry.value for name, entry in event.metadata.items()}
    assert found["version"] == 1
    assert found["samples"] == found["dagster/row_count"] == 29
    assert [row.data["split"] for row in found["splits"].records] == ["train", "val"]
    (left_out,) = [row.data for row in found["quarantine"].records]
    assert (left_out["reason"], left_out["samples"]) == ("broken_image", 1)
    assert "30 samples in = 29 published + 1 quarantined" in found["verification"]
    assert "webdataset" in found["how to read it"]


def test_nothing_changed(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    edge.build()
    files, counts = edge.project.shard_files(), edge.counts()
    capsys.readouterr()
    result = edge.build()
    assert status_of(result) == {"scan": "done", "plan": "done", "publish": "skipped"}
    assert edge.project.shard_files() == files
    assert edge.project.latest().version == 1
    assert edge.counts() == counts
    out = capsys.readouterr().out
    assert "small: nothing changed since version 1: no shard was read or written\n" in out


def test_a_change_logs_its_shards_alone(edge: Edge) -> None:
    edge.build()
    before = {shard.partition: shard.name for shard in edge.project.latest().shards}
    edge.project.write("a/0007.txt", "another caption")
    result = edge.build()
    changed = [
        shard.partition
        for shard in edge.project.latest().shards
        if before[shard.partition] != shard.name
    ]
    assert len(changed) == 1
    for asset in PARTITIONED:
        assert edge.partitions(asset, result.run_id) == changed
    (event,) = edge.events(keys.SHARDS, result.run_id)
    assert event.metadata["cause"].value == "1 edited"
    assert edge.registered() == sorted(before)


def test_unusable_samples_are_logged_once(edge: Edge) -> None:
    """Their shards are packed twice: with them, and, when they are found, without."""
    edge.project.write("a/0003.png", b"no picture")
    edge.project.write("a/0004.txt", b"\xff\xfe no text")
    result = edge.build()
    manifest = edge.project.latest()
    assert manifest.total_samples == 28
    digests = {shard.partition: shard.digest for shard in manifest.shards}
    events = edge.events(keys.SHARDS, result.run_id)
    assert {e.partition: e.metadata["digest"].value for e in events} == digests
    assert len(events) == len(digests)


def test_partitions_go_with_their_shards(edge: Edge) -> None:
    edge.build(split={"by": "directory", "default": "train"})
    edge.project.add(100, 12, folder="val")
    edge.build(split={"by": "directory", "default": "train"})
    assert any(each.startswith("val-") for each in edge.registered())
    for path in (edge.project.source / "val").iterdir():
        path.unlink()
    edge.build(split={"by": "directory", "default": "train"})
    registered = [shard.partition for shard in edge.project.latest().shards]
    assert edge.registered() == sorted(registered)
    assert not any(each.startswith("val-") for each in registered)


def test_a_missing_shard_is_repaired(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    edge.build()
    shard = edge.project.latest().shards[1]
    data = (edge.project.destination / shard.path).read_bytes()
    (edge.project.destination / shard.path).unlink()
    result = edge.build()
    assert (edge.project.destination / shard.path).read_bytes() == data
    assert edge.project.latest().version == 1
    assert edge.partitions(keys.SHARDS, result.run_id) == [shard.partition]
    assert "1 shards of version 1 were packed anew" in capsys.readouterr().out
    assert status_of(edge.build())["publish"] == "skipped"


def test_sealed_shards_of_a_dead_build_are_taken_up(edge: Edge) -> None:
    """All are sealed, so no batch is made, and yet the version is published."""
    edge.build()
    names = edge.project.shard_files()
    for folder in ("versions", "views"):
        shutil.rmtree(edge.project.destination / folder)
    result = edge.build()
    assert status_of(result) == {"scan": "done", "plan": "done", "publish": "done"}
    assert {n: f[0] for n, f in edge.project.shard_files().items() if n.endswith(".tar")} == {
        n: f[0] for n, f in names.items() if n.endswith(".tar")
    }
    assert edge.project.latest().version == 1


def test_versions_of_other_programs_come_into_the_catalogue(edge: Edge) -> None:
    edge.project.build()
    result = edge.build()
    assert status_of(result)["publish"] == "skipped"
    shards = sorted(shard.partition for shard in edge.project.latest().shards)
    assert edge.registered() == edge.partitions(keys.SHARDS) == shards
    assert len(edge.events(keys.PUBLISHED_VERSION)) == 1


def test_repack(edge: Edge) -> None:
    edge.build()
    edge.project.add(30, 20)
    edge.build()
    result = edge.build(config={"repack": True})
    assert edge.project.latest().version == 3
    assert {e.metadata["cause"].value for e in edge.events(keys.SHARDS, result.run_id)} == {
        "repack"
    }


def test_failure_is_the_message_alone(edge: Edge) -> None:
    edge.project.options["samples"] = {"max_quarantined": 0.0}
    edge.project.write("a/0003.png", b"no picture")
    result = edge.build(fails=True)
    assert failure_of(result).startswith("small: 1 of 30 samples (3.3%) are unusable")
    assert "broken_image" in failure_of(result)
    assert "Traceback" not in failure_of(result)
    assert not list(edge.project.destination.glob("versions/*/manifest.json"))
    edge.project.write("a/0003.png", png(3))
    edge.build()
    assert edge.project.published() == edge.project.raw()


def test_broken_rules_are_found_before_anything_is_packed(edge: Edge) -> None:
    edge.project.options["samples"] = {"on_missing": "error"}
    edge.project.write("a/extra.txt", "no picture at all")
    result = edge.build(fails=True)
    assert "missing_field" in failure_of(result)
    assert status_of(result) == {"scan": "done", "plan": "failed"}
    assert not list(edge.project.destination.glob("shards/*"))


def test_a_run_is_re_executed_from_its_failure(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step relies on another one's memory: each finds out what it needs."""
    job = dg.build_reconstructable_job(
        "wds_pipeline_tests.defs.reconstruct", "job", (str(edge.project.folder),)
    )
    with monkeypatch.context() as patch:
        patch.setattr("wds_pipeline.dataset.build.Build.finish", _fail)
        with dg.execute_job(job, instance=edge.instance) as first:
            assert not first.success
    options = dg.ReexecutionOptions.from_failure(first.run_id, edge.instance)
    with dg.execute_job(job, instance=edge.instance, reexecution_options=options) as again:
        assert again.success
        started = {event.step_key for event in again.all_events if event.is_step_start}
    assert started == {"publish"}
    assert edge.project.published() == edge.project.raw()


def _fail(*_: object) -> None:
    raise RuntimeError("killed")


def test_batches() -> None:
    def sizes(count: int, workers: int) -> list[int]:
        shards = [ShardPlan("train", slot, "0", 1, 1, {}) for slot in range(count)]
        return [len(batch) for batch in batches(shards, workers)]

    assert sizes(0, 2) == []
    assert sizes(5, 2) == [5]
    assert sizes(300, 2) == [32] * 9 + [12]
    assert len(sizes(10_000, 8)) == 64
    assert max(sizes(100_000, 8)) == 256
