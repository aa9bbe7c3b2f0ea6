"""No asset and no partition has the badge "Unsynced" after a clean build."""

from __future__ import annotations

from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from wds_pipeline.defs import keys
from wds_pipeline_tests.defs.conftest import PARTITIONED, Edge


def badges(edge: Edge) -> dict[str, str]:
    """What is not up to date, as the UI finds out."""
    resolver = CachingStaleStatusResolver(
        edge.instance,
        edge.defs().resolve_asset_graph(),
        loading_context=LoadingContextForTest(edge.instance),
    )
    found = {}
    for asset in (keys.SOURCE_FILES, keys.SHARD_PLAN, *PARTITIONED, keys.PUBLISHED_VERSION):
        key = keys.asset_key("small", asset)
        for partition in edge.registered() if asset in PARTITIONED else [None]:
            status = resolver.get_status(key, partition)
            if status.value != "FRESH":
                causes = [cause.reason for cause in resolver.get_stale_causes(key, partition)]
                found[f"{asset} {partition}"] = f"{status.value}: {causes}"
    return found


def test_builds(edge: Edge) -> None:
    assert badges(edge)
    edge.project.write("a/0003.png", b"no picture")
    edge.build()
    assert badges(edge) == {}
    edge.project.write("a/0007.txt", "another caption")
    edge.project.write("a/0003.png", b"still none")
    edge.project.add(30, 2)
    edge.build()
    assert badges(edge) == {}


def test_assets(edge: Edge) -> None:
    edge.materialize([keys.SOURCE_FILES, keys.SHARD_PLAN])
    edge.materialize(PARTITIONED, edge.registered())
    edge.materialize([keys.PUBLISHED_VERSION])
    assert badges(edge) == {}
    edge.project.write("a/0007.txt", "another caption")
    edge.build()
    assert badges(edge) == {}


def test_a_repair_with_the_same_bytes_calls_for_nothing(edge: Edge) -> None:
    edge.build()
    partition = edge.registered()[0]
    edge.materialize([keys.SHARDS], [partition])
    assert badges(edge) == {}
    edge.materialize([keys.SHARDS], edge.registered()[:3])
    assert badges(edge) == {}
    edge.materialize(PARTITIONED, [partition])
    assert badges(edge) == {}
    edge.build()
    assert len(edge.events(keys.PUBLISHED_VERSION)) == 1


def test_a_repair_from_a_newer_source_calls_for_a_version(edge: Edge) -> None:
    edge.build()
    edge.project.write("a/0007.txt", "another caption")
    edge.materialize([keys.SHARDS], edge.registered())
    assert f"{keys.PUBLISHED_VERSION} None" in badges(edge)
    edge.materialize([keys.PUBLISHED_VERSION])
    assert badges(edge) == {}
    assert edge.project.latest().version == 2


def test_a_build_after_a_range_syncs_the_version(edge: Edge) -> None:
    edge.build()
    edge.materialize(PARTITIONED, edge.registered()[:3])
    edge.build()
    assert badges(edge) == {}
    assert edge.project.latest().version == 1
    count = len(edge.events(keys.PUBLISHED_VERSION))
    edge.build()
    assert len(edge.events(keys.PUBLISHED_VERSION)) == count


def catalogued(edge: Edge) -> dict[str, object]:
    """By partition, the digest of the shard that its page shows."""
    found = {}
    for event in edge.events(keys.SHARDS):
        found[event.partition or ""] = event.metadata["digest"].value
    return {partition: found[partition] for partition in edge.registered()}


def test_the_catalogue_catches_up_with_what_other_programs_published(edge: Edge) -> None:
    edge.build()
    edge.project.write("a/0007.txt", "another caption")
    edge.project.build()  # as `wds-pipeline build` does it
    edge.build()
    newest = edge.project.latest()
    assert newest.version == 2
    assert catalogued(edge) == {shard.partition: shard.digest for shard in newest.shards}
    assert badges(edge) == {}


def test_a_first_version_of_another_program(edge: Edge) -> None:
    edge.project.build()
    edge.build()
    assert badges(edge) == {}
    assert len(edge.events(keys.SHARD_PLAN)) == 1
    edge.build()
    assert len(edge.events(keys.SHARD_PLAN)) == 1


def test_a_listing_of_its_own_is_followed_by_a_plan(edge: Edge) -> None:
    edge.build()
    edge.project.write("README", "of no sample")
    edge.materialize([keys.SOURCE_FILES])
    edge.build()
    assert badges(edge) == {}
