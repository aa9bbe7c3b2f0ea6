"""Datasets made of each other in the asset graph: what depends on what, and what is out of date when."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.remote_representation.external_data import RepositorySnap

from wds_pipeline.dataset import publish
from wds_pipeline.dataset.build import build
from wds_pipeline.defs import keys
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.conftest import group_members, read_tar
from wds_pipeline_tests.defs.chain import FOLLOWING, Chain
from wds_pipeline_tests.defs.conftest import failure_of, status_of


@pytest.fixture
def built(chain: Chain) -> Chain:
    chain.build()
    assert chain.badges() == {}
    return chain


def parents(chain: Chain, dataset: str, asset: str) -> set[str]:
    graph = chain.defs.resolve_asset_graph()
    found = graph.get(keys.asset_key(dataset, asset)).parent_keys
    return {key.to_user_string() for key in found}


def changed(chain: Chain, dataset: str) -> list[str]:
    """Builds; the partitions that are logged."""
    before = len(chain.events(dataset, keys.SHARDS))
    chain.build(dataset)
    return [str(each.partition) for each in chain.events(dataset, keys.SHARDS)[before:]]


def test_the_graph(chain: Chain) -> None:
    assert parents(chain, "made", keys.SOURCE_FILES) == {"raw/published_version"}
    assert parents(chain, "made", keys.SHARDS) == {"made/shard_plan", "raw/shards"}
    chain.add("last", {"dataset": "made"})
    assert parents(chain, "last", keys.SHARDS) == {"last/shard_plan"}, "its shards are others"
    chain.add("last", {"merge": [{"label": name, "dataset": name} for name in ("raw", "made")]})
    assert parents(chain, "last", keys.SOURCE_FILES) == {
        "raw/published_version",
        "made/published_version",
    }
    chain.add("over", {"url": "captions"}, overlay={"base": "raw"})
    assert parents(chain, "over", keys.SOURCE_FILES) == {"raw/published_version"}
    assert parents(chain, "over", keys.SHARDS) == {"over/shard_plan", "raw/shards"}


def test_the_location_can_be_sent_to_the_web_server(chain: Chain) -> None:
    """What maps partitions has to be serializable."""
    snap = RepositorySnap.from_def(chain.defs.get_repository_def())
    text = dg.serialize_value(snap)
    assert dg.deserialize_value(text, RepositorySnap) == snap
    assert "IdentityPartitionMapping" in text


def test_one_edit_is_one_shard_at_each_stage(built: Chain) -> None:
    built.add("last", {"dataset": "made"}, **FOLLOWING)
    built.build("last")
    assert built.badges() == {}
    built.raw.write("a/0003.txt", "another caption")
    (partition,) = changed(built, "raw")
    assert built.badges().keys() == {"made/source_files", f"made/shards {partition}"}
    assert changed(built, "made") == [partition]
    assert built.badges().keys() == {"last/source_files", f"last/shards {partition}"}
    assert changed(built, "last") == [partition]
    assert built.badges() == {}
    assert built.published("last")["a/0003"]["txt"] == b"ANOTHER CAPTION"
    assert built.shown("last", keys.SOURCE_FILES)["made of"] == "version 2 of made"
    assert built.shown("last", keys.PUBLISHED_VERSION)["made of"] == "version 2 of made"


def test_a_partition_is_made_of_the_same_one(built: Chain) -> None:
    """Clicked in the UI: from the upstream shard as it is now."""
    built.raw.write("a/0003.txt", "another caption")
    (partition,) = changed(built, "raw")
    built.materialize("made", keys.SHARDS, [partition])
    assert f"made/shards {partition}" not in built.badges()
    built.build("made")
    assert built.latest("made").version == 2
    assert built.badges() == {}
    train = [each for each in built.partitions("made") if each.startswith("train")]
    built.materialize("made", keys.SHARDS, train)
    built.build("made")
    assert built.badges() == {}
    assert built.latest("made").version == 2


def test_a_repair_upstream_calls_for_nothing(built: Chain) -> None:
    train = [each for each in built.partitions("raw") if each.startswith("train")]
    built.materialize("raw", keys.SHARDS, train[:1])
    assert built.badges() == {}
    # Dagster gives all partitions of a run one data version: it looks as if they were others.
    built.materialize("raw", keys.SHARDS, train[:2])
    built.build("raw")
    assert changed(built, "made") == train[:2]
    assert built.badges() == {}
    assert changed(built, "made") == []
    assert built.latest("made").version == 1


def test_a_new_version_with_the_same_shards(built: Chain) -> None:
    """A sample that is no good goes to the quarantine at once: nothing is to be built of it."""
    samples = {"required": ["png"], "max_quarantined": 1}
    built.raw.write("a/0099.txt", "alone")
    built.add(**{**built.datasets["raw"], "samples": samples})
    built.build("raw")
    assert built.latest("raw").version == 2
    assert built.badges().keys() == {"made/source_files"}
    result = built.run("made_build")
    assert status_of(result)["publish"] == "skipped"
    assert built.badges() == {}
    count = len(built.events("made", keys.SOURCE_FILES))
    built.build("made")
    assert len(built.events("made", keys.SOURCE_FILES)) == count


def test_upstream_versions_that_other_programs_publish(built: Chain) -> None:
    built.raw.write("a/0003.txt", "another caption")
    build(built.configs["raw"])
    built.build("made")
    assert built.latest("made").made_of["version"] == 2
    built.build("raw", "made")
    assert built.badges() == {}
    publish.restore(open_storage(str(built.folder / "raw")), 1, "raw")
    built.build("made")
    assert built.published("made")["a/0003"]["txt"] == b"CAPTION OF A/0003"


def test_an_old_version_is_no_asset_of_ours(chain: Chain) -> None:
    """What is pinned is not out of date when there is a newer version; nor is what comes from elsewhere."""
    chain.build("raw")
    chain.add("made", {"dataset": {"name": "raw", "version": 1}}, **FOLLOWING)
    chain.add("last", {"dataset": {"url": str(chain.folder / "raw")}}, **FOLLOWING)
    chain.build("made", "last")
    assert parents(chain, "made", keys.SOURCE_FILES) == {"raw/version_1"}
    assert parents(chain, "made", keys.SHARDS) == {"made/shard_plan"}
    assert parents(chain, "raw", "version_1") == {"raw/published_version"}
    assert parents(chain, "last", keys.SOURCE_FILES) == {"last/upstream"}
    assert chain.badges() == {}
    chain.raw.write("a/0003.txt", "another caption")
    chain.build("raw")
    assert chain.badges() == {}


def test_an_upstream_without_a_version(chain: Chain) -> None:
    message = failure_of(chain.run("made_build", fails=True))
    assert "no version is published there; run `wds-pipeline build raw` first" in message


def test_a_partition_that_upstream_has_not(built: Chain) -> None:
    """Its samples went with it: what to do is said, and nothing else is touched."""
    gone = built.partitions("raw")[-1]
    shard = next(each for each in built.latest("raw").shards if each.partition == gone)
    for key in group_members(read_tar(built.folder / "raw" / shard.path)):
        for path in built.raw.source.glob(f"{key}.*"):
            path.unlink()
    built.build("raw")
    assert gone not in built.partitions("raw")
    message = failure_of(built.materialize("made", keys.SHARDS, [gone], fails=True))
    assert f"{gone}: the present plan has no such shard" in message
    built.build("made")
    assert built.badges() == {}
    assert gone not in built.partitions("made")
