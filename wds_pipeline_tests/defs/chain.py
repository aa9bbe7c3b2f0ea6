"""Datasets made of each other, and Dagster over all of them: `raw` is a folder of files, `made` is made of
it, shard by shard."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import load_configs
from wds_pipeline.dataset import version
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.conftest import TINY_SHARD, Project

FOLLOWING = {"shards": {"layout": "source"}}
CODE = """
def upper(sample):
    sample["txt"] = sample["txt"].upper()
    return sample
"""


@dataclass
class Chain:
    """The datasets' YAML files, and an instance."""

    folder: Path
    instance: dg.DagsterInstance
    raw: Project
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    _loaded: dict[str, dg.Definitions] = field(default_factory=dict)

    def add(self, name: str, source: Any, **options: Any) -> None:
        """Adds a dataset, or changes one."""
        values = {
            "name": name,
            "source": source,
            "destination": {"url": str(self.folder / name)},
            "samples": {"max_quarantined": 1},
            "compute": {"kind": "threads", "workers": 1},
            **options,
        }
        self.datasets[name] = values
        (self.folder / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(values))

    @property
    def configs(self) -> dict[str, DatasetConfig]:
        return load_configs(self.folder / "datasets")

    @property
    def defs(self) -> dg.Definitions:
        """The code location, loaded anew when a file changed."""
        files = [*self.folder.glob("datasets/*.yaml"), *self.folder.glob("code/*.py")]
        state = repr({path: path.read_text() for path in sorted(files)})
        if state not in self._loaded:
            self._loaded = {state: build_defs(self.configs)}
        return self._loaded[state]

    def run(self, job: str, *, fails: bool = False) -> dg.ExecuteInProcessResult:
        found = self.defs.resolve_job_def(job)
        result = found.execute_in_process(instance=self.instance, raise_on_error=False)
        assert result.success != fails
        return result

    def build(self, *names: str) -> None:
        for name in names or self.datasets:
            self.run(keys.job_name(name))

    def materialize(
        self, dataset: str, asset: str, partitions: Sequence[str] = (), *, fails: bool = False
    ) -> dg.ExecuteInProcessResult:
        """As the UI does it: a range of partitions in one run."""
        tags = {}
        if partitions:
            tags = {
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
        result = self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[keys.asset_key(dataset, asset)],
            tags=tags,
            raise_on_error=False,
        )
        assert result.success != fails
        return result

    def partitions(self, dataset: str) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions(keys.partitions_name(dataset)))

    def events(self, dataset: str, asset: str) -> list[dg.AssetMaterialization]:
        """An asset's materializations, oldest first."""
        found = self.instance.fetch_materializations(
            keys.asset_key(dataset, asset), limit=10_000, ascending=True
        ).records
        return [each.asset_materialization for each in found if each.asset_materialization]

    def shown(self, dataset: str, asset: str) -> Mapping[str, Any]:
        """What an asset's page shows: the metadata of its last materialization."""
        return {name: each.value for name, each in self.events(dataset, asset)[-1].metadata.items()}

    def latest(self, dataset: str) -> Manifest:
        found = version.latest(open_storage(str(self.folder / dataset)))
        assert found is not None
        return found

    def published(self, dataset: str) -> dict[str, dict[str, bytes]]:
        """The samples of a dataset's newest version."""
        return _At(self.folder / dataset).published(self.latest(dataset))

    def badges(self) -> dict[str, str]:
        """What is not up to date, as the UI finds out."""
        graph = self.defs.resolve_asset_graph()
        resolver = CachingStaleStatusResolver(
            self.instance, graph, loading_context=LoadingContextForTest(self.instance)
        )
        found = {}
        for key in sorted(graph.get_all_asset_keys()):
            by_shard = graph.get(key).is_partitioned
            for partition in self.partitions(key.path[0]) if by_shard else [None]:
                status = resolver.get_status(key, partition)
                if status.value != "FRESH":
                    causes = [each.reason for each in resolver.get_stale_causes(key, partition)]
                    name = f"{key.to_user_string()} {partition or ''}".strip()
                    found[name] = f"{status.value}: {causes}"
        return found


class _At(Project):
    """A published dataset."""

    @property
    def destination(self) -> Path:
        return self.folder


@contextmanager
def make_chain(folder: Path, instance: dg.DagsterInstance, count: int = 8) -> Iterator[Chain]:
    """`raw` and `made`, nothing built yet; with a module `chain_code` for transforms."""
    (folder / "datasets").mkdir()
    (folder / "code").mkdir()
    (folder / "code" / "chain_code.py").write_text(CODE)
    raw = Project(folder / "files")
    raw.source.mkdir(parents=True)
    raw.add(0, count)
    chain = Chain(folder, instance, raw)
    split = {"train": 0.7, "val": 0.3}
    chain.add("raw", {"url": str(raw.source)}, split=split, shards={"max_bytes": TINY_SHARD})
    transforms = ["chain_code:upper"]
    chain.add("made", {"dataset": "raw"}, transforms=transforms, **FOLLOWING)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "code"))
        patch.delitem(sys.modules, "chain_code", raising=False)
        yield chain
