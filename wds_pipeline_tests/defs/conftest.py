"""Dagster on a small dataset: an instance in memory, jobs in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.chain import Chain, make_chain

PARTITIONED = (keys.SHARDS, keys.SHARD_INDEX, keys.SHARD_REPORT)


@dataclass
class Edge:
    """A project, and Dagster over it."""

    project: Project
    instance: dg.DagsterInstance

    def defs(self, **more: Any) -> dg.Definitions:
        return build_defs([self.project.config(**more)])

    def build(
        self, *, fails: bool = False, config: dict[str, Any] | None = None, **more: Any
    ) -> dg.ExecuteInProcessResult:
        """Runs the job."""
        job = self.defs(**more).resolve_job_def("small_build")
        result = job.execute_in_process(
            run_config=config or {}, instance=self.instance, raise_on_error=False
        )
        assert result.success != fails
        return result

    def materialize(
        self, assets: Sequence[str], partitions: Sequence[str] = (), *, fails: bool = False
    ) -> dg.ExecuteInProcessResult:
        """Materializes assets, as the UI does it: a range of partitions in one run."""
        defs = self.defs()
        selection = [keys.asset_key("small", asset) for asset in assets]
        tags = {}
        if partitions:
            tags = {
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance, asset_selection=selection, tags=tags, raise_on_error=False
        )
        assert result.success != fails
        return result

    def events(self, asset: str, run: Any = None) -> list[dg.AssetMaterialization]:
        """The asset's materializations, oldest first; of one run, or all."""
        found = self.instance.fetch_materializations(
            keys.asset_key("small", asset), limit=10_000, ascending=True
        ).records
        return [
            each.asset_materialization
            for each in found
            if each.asset_materialization and run in (None, each.run_id)
        ]

    def partitions(self, asset: str, run: Any = None) -> list[str]:
        """The partitions of these materializations, sorted, repetitions included."""
        return sorted(each.partition or "" for each in self.events(asset, run))

    def registered(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions(keys.partitions_name("small")))

    def counts(self) -> dict[str, int]:
        """How many materializations each asset has."""
        names = (*PARTITIONED, keys.SOURCE_FILES, keys.SHARD_PLAN, keys.PUBLISHED_VERSION)
        return {name: len(self.events(name)) for name in names}


def status_of(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """What became of each step."""
    words = {
        dg.DagsterEventType.STEP_SUCCESS: "done",
        dg.DagsterEventType.STEP_SKIPPED: "skipped",
        dg.DagsterEventType.STEP_FAILURE: "failed",
    }
    return {
        str(event.step_key): words[event.event_type]
        for event in result.all_events
        if event.event_type in words
    }


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """What a user reads of the step that failed."""
    (event,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_FAILURE]
    ours = event.step_failure_data.user_failure_data
    assert ours is not None, event.step_failure_data.error
    return str(ours.description)


@pytest.fixture
def edge(project: Project, tmp_path: Path) -> Iterator[Edge]:
    """Thirty samples in six shards or so, nothing built yet."""
    project.options["split"] = {"train": 0.7, "val": 0.3}
    project.add(0, 30)
    with dg.DagsterInstance.ephemeral(str(tmp_path)) as instance:
        yield Edge(project, instance)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    """Two datasets, one made of the other, nothing built yet."""
    ephemeral = dg.DagsterInstance.ephemeral
    with ephemeral(str(tmp_path)) as instance, make_chain(tmp_path, instance) as made:
        yield made


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with the storage of `make ui`."""
    settings = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=settings) as instance:
        yield instance
