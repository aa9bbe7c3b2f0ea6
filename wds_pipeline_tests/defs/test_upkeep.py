"""`<name>_repair`, `<name>_gc`, `<name>_repack`."""

from __future__ import annotations

import shutil
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.dataset import seal, version
from wds_pipeline.defs import keys
from wds_pipeline_tests.defs.conftest import PARTITIONED, Edge, failure_of, status_of
from wds_pipeline_tests.defs.test_sync import badges
from wds_pipeline_tests.defs.upkeep import beside, flip, observed, run, said, tar_of, values


@pytest.fixture
def built(edge: Edge) -> Edge:
    """The edge with a published version that is in the catalogue."""
    edge.build()
    return edge


# ------------------------------------------------------------------------------------- repair


def test_a_sound_version_is_left_alone(built: Edge) -> None:
    files, counts = built.project.shard_files(), built.counts()
    result = run(built, "repair")
    assert said(built, result)[-1] == "no shard is damaged (samples): nothing to repair"
    assert built.project.shard_files() == files
    assert built.counts() == counts


def test_the_damaged_shards_alone_are_packed_anew(built: Edge) -> None:
    """Bit rot, a tar cut short, a tar, an index and a seal that are gone."""
    project, shards = built.project, built.project.latest().shards
    content = {shard.name: tar_of(project, shard).read_bytes() for shard in shards}
    files = project.shard_files()
    flip(project, shards[0])
    tar_of(project, shards[1]).write_bytes(content[shards[1].name][:-512])
    tar_of(project, shards[2]).unlink()
    beside(project, shards[3], seal.MEMBERS).unlink()
    beside(project, shards[4], seal.SEAL).unlink()
    result = run(built, "repair")
    harmed = {shard.name for shard in shards[:5]}
    assert {shard.name: tar_of(project, shard).read_bytes() for shard in shards} == content
    after = project.shard_files()
    assert {name.partition(".")[0] for name in files if files[name] != after[name]} == harmed
    assert project.latest().version == 1
    partitions = sorted(shard.partition for shard in shards[:5])
    for asset in PARTITIONED:
        assert built.partitions(asset, result.run_id) == partitions
    assert {e.metadata["cause"].value for e in built.events(keys.SHARDS, result.run_id)} == {
        "repair"
    }
    assert len(built.events(keys.PUBLISHED_VERSION, result.run_id)) == 1
    assert badges(built) == {}
    assert said(built, result)[-1].endswith(", ".join(partitions))
    run(built, "verify")
    assert status_of(built.build())["publish"] == "skipped"


def test_levels_find_what_they_look_at(built: Edge) -> None:
    shard = built.project.latest().shards[0]
    whole = tar_of(built.project, shard).read_bytes()
    flip(built.project, shard)
    harmed = tar_of(built.project, shard).read_bytes()
    run(built, "repair", {"level": "stat"})
    assert tar_of(built.project, shard).read_bytes() == harmed
    run(built, "repair", {"level": "digest"})
    assert tar_of(built.project, shard).read_bytes() == whole


def test_a_repair_takes_in_no_change(built: Edge) -> None:
    """What changed in the source meanwhile waits for the next build."""
    shard, other = built.project.latest().shards[:2]
    flip(built.project, shard)
    edited = seal.read_member_index(built.project.storage, other.name)["key"][0].as_py()
    built.project.write(f"{edited}.txt", "another caption")
    built.project.add(100, 3)
    run(built, "repair")
    assert built.project.latest().version == 1
    run(built, "verify")
    built.build()
    assert built.project.latest().version == 2
    assert built.project.published() == built.project.raw()


def test_a_shard_whose_source_changed_cannot_be_repaired(built: Edge) -> None:
    lost, other = built.project.latest().shards[:2]
    key = seal.read_member_index(built.project.storage, lost.name)["key"][0].as_py()
    for shard in (lost, other):
        flip(built.project, shard)
    built.project.write(f"{key}.txt", "another caption")
    before = {n: f for n, f in built.project.shard_files().items() if lost.name in n}
    result = run(built, "repair", fails=True)
    message = failure_of(result)
    assert message.startswith("small: 1 damaged shard of version 1 cannot be had again:\n")
    assert f"{lost.partition}: its source file {key}.txt is not what it was" in message
    assert "or run small_build: it makes a new version" in message
    # The other one is repaired; this one keeps all that it has, its seal included.
    assert built.partitions(keys.SHARDS, result.run_id) == [other.partition]
    assert {n: f for n, f in built.project.shard_files().items() if lost.name in n} == before
    assert ", 1 damaged shard" in failure_of(run(built, "verify", fails=True))
    built.build()
    assert built.project.latest().version == 2
    run(built, "verify")
    assert built.project.published() == built.project.raw()


def test_a_source_that_is_away(built: Edge) -> None:
    flip(built.project, built.project.latest().shards[0])
    shutil.rmtree(built.project.source)
    message = failure_of(run(built, "repair", fails=True))
    assert message.startswith(f"small: source.url: {built.project.source}")
    assert "found no files" in message and "mount it" in message


def test_what_no_repair_mends_is_said(built: Edge) -> None:
    """No shard is damaged, yet the ledger is another version's: an error of its own."""
    built.project.add(30, 20)
    built.build()
    folder = built.project.destination
    ledger = (folder / version.folder(1) / version.LEDGER).read_bytes()
    (folder / version.folder(2) / version.LEDGER).write_bytes(ledger)
    assert "its ledger and its manifest differ" in failure_of(run(built, "repair", fails=True))


# ------------------------------------------------------------------------------------- gc

RETENTION: dict[str, Any] = {"retention": {"versions": 1, "days": 0}}


@pytest.fixture
def grown(built: Edge) -> Edge:
    """Two versions that have all but one shard in common."""
    built.project.write("a/0007.txt", "another caption")
    built.build()
    return built


def test_gc_lists_unless_it_is_told_otherwise(grown: Edge) -> None:
    files = grown.project.shard_files()
    result = run(grown, "gc", {"grace_hours": 0}, **RETENTION)
    lines = said(grown, result)
    assert "versions: 1" in lines
    assert any(line.startswith("shard: ") for line in lines)
    assert "Nothing was removed: this was a dry run" in lines[-1]
    assert grown.project.shard_files() == files
    assert version.list_versions(grown.project.storage) == [1, 2]
    assert observed(grown, keys.PUBLISHED_VERSION) == []


def test_gc_removes(grown: Edge) -> None:
    old = version.read(grown.project.storage, 1, "small")
    gone = {s.name for s in old.shards} - {s.name for s in grown.project.latest().shards}
    size = sum(f[1] for n, f in grown.project.shard_files().items() if n.partition(".")[0] in gone)
    run(grown, "gc", {"dry_run": False, "grace_hours": 0}, **RETENTION)
    assert version.list_versions(grown.project.storage) == [2]
    assert not gone & {name.partition(".")[0] for name in grown.project.shard_files()}
    (observation,) = observed(grown, keys.PUBLISHED_VERSION)
    assert values(observation) == {
        "versions removed": 1,
        "shards removed": 1,
        "bytes freed": size,
        "shards spared": 0,
        "versions": "1",
    }
    assert badges(grown) == {}
    run(grown, "verify")
    result = run(grown, "gc", {"dry_run": False, "grace_hours": 0}, **RETENTION)
    assert any(line.startswith("nothing to remove; kept: ") for line in said(grown, result))


def test_gc_spares_what_is_young(grown: Edge) -> None:
    files = grown.project.shard_files()
    result = run(grown, "gc", {"dry_run": False}, **RETENTION)
    assert version.list_versions(grown.project.storage) == [2]
    assert grown.project.shard_files() == files
    assert any("1 shard (see grace_hours)" in line for line in said(grown, result))


def test_gc_of_nothing(edge: Edge) -> None:
    result = run(edge, "gc", {"dry_run": False})
    assert "nothing to remove" in said(edge, result)[0]


@pytest.mark.parametrize("hours", [-1, float("nan")])
def test_gc_refuses_a_time_that_is_none(grown: Edge, hours: float) -> None:
    message = failure_of(run(grown, "gc", {"dry_run": False, "grace_hours": hours}, fails=True))
    assert message == f"small: grace_hours: found {hours:g}; expected 0 or more, such as 24"
    assert version.list_versions(grown.project.storage) == [1, 2]


def test_gc_leaves_another_datasets_destination_alone(built: Edge) -> None:
    config = {"dry_run": False, "grace_hours": 0}
    message = failure_of(run(built, "gc", config, fails=True, name="other", **RETENTION))
    assert "holds the dataset 'small'" in message


# ------------------------------------------------------------------------------------- repack


def test_repack_lays_all_shards_out_anew(built: Edge) -> None:
    built.project.add(30, 20)
    built.build()
    before = {shard.name for shard in built.project.latest().shards}
    splits = _splits(built)
    result = run(built, "repack", {"confirm": "repack"})
    assert built.project.latest().version == 3
    assert before - {shard.name for shard in built.project.latest().shards}
    assert _splits(built) == splits
    assert {e.metadata["cause"].value for e in built.events(keys.SHARDS, result.run_id)} == {
        "repack"
    }
    assert badges(built) == {}


def test_resplit_divides_the_samples_anew(built: Edge) -> None:
    splits = _splits(built)
    run(built, "repack", {"confirm": "repack"}, split={"val": 0.7, "train": 0.3})
    assert _splits(built) == splits
    run(built, "repack", {"confirm": "resplit"}, split={"val": 0.7, "train": 0.3})
    assert _splits(built) != splits


def _splits(edge: Edge) -> dict[str, str]:
    table = version.read_table(edge.project.storage, edge.project.latest(), version.LEDGER)
    return dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("config", [{}, {"confirm": "yes"}, {"resplit": True}])
def test_repack_is_not_started_by_a_click_alone(built: Edge, config: dict[str, object]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as caught:
        run(built, "repack", config)
    assert "confirm" in str(caught.value) and "repack" in str(caught.value)
    assert built.project.latest().version == 1
