"""Running the jobs that look after what is published, and harming it first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.version import ShardEntry
from wds_pipeline.defs import keys
from wds_pipeline.defs.upkeep import build_upkeep_jobs
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.defs.conftest import Edge


def run(
    edge: Edge,
    verb: str,
    config: dict[str, Any] | None = None,
    *,
    fails: bool = False,
    project: Project | None = None,
    **more: Any,
) -> dg.ExecuteInProcessResult:
    """Runs `<name>_<verb>` on the edge's project, or on another one."""
    dataset = (project or edge.project).config(**more)
    jobs = {job.name: job for job in build_upkeep_jobs(dataset)}
    result = jobs[f"{dataset.name}_{verb}"].execute_in_process(
        run_config=config or {}, instance=edge.instance, raise_on_error=False
    )
    assert result.success != fails
    return result


def said(edge: Edge, result: dg.ExecuteInProcessResult) -> list[str]:
    """The run's log: what the op itself said."""
    entries = edge.instance.all_logs(result.run_id)
    return [each.user_message for each in entries if not each.is_dagster_event]


def observed(edge: Edge, asset: str, dataset: str = "small") -> list[dg.AssetObservation]:
    """The asset's observations, oldest first."""
    key = keys.asset_key(dataset, asset)
    records = edge.instance.fetch_observations(key, limit=1000, ascending=True).records
    return [each.asset_observation for each in records if each.asset_observation]


def values(observation: dg.AssetObservation) -> dict[str, Any]:
    return {name: entry.value for name, entry in observation.metadata.items()}


def tar_of(project: Project, shard: ShardEntry) -> Path:
    return project.destination / shard.path


def beside(project: Project, shard: ShardEntry, ending: str) -> Path:
    return project.destination / seal.path(shard.name, ending)


def flip(project: Project, shard: ShardEntry, row: int = 0) -> str:
    """Flips a bit in a member of a shard; returns that member's name."""
    member = seal.read_member_index(project.storage, shard.name).to_pylist()[row]
    path = tar_of(project, shard)
    data = bytearray(path.read_bytes())
    data[member["offset"]] ^= 0x04
    path.write_bytes(data)
    return f"{member['key']}.{member['field']}"
