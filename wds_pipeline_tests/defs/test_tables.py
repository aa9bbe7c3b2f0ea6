"""A table with URLs, asset by asset: what is fetched for the first one is there for the others."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from wds_pipeline.defs import keys
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.dataset.sources.table_project import TableProject
from wds_pipeline_tests.dataset.sources.web import serve
from wds_pipeline_tests.defs.conftest import Edge


def test_the_assets_of_a_table_with_urls(tmp_path: Path) -> None:
    project = TableProject(tmp_path)
    with serve() as web, dg.DagsterInstance.ephemeral() as instance:
        web.files = {f"/{number}.png": png(number) for number in range(12)}
        lines = [f"{number:02d},{web.url}/{number}.png" for number in range(12)]
        fields = {"png": {"column": "url", "holds": "url"}}
        project.table("t.csv", "key,url\n" + "\n".join(lines) + "\n", key="key", fields=fields)
        edge = Edge(project, instance)
        edge.materialize([keys.SOURCE_FILES, keys.SHARD_PLAN])
        assert web.asked.total() == 12
        partitions = sorted(instance.get_dynamic_partitions(keys.partitions_name("small")))
        edge.materialize([keys.SHARDS, keys.SHARD_INDEX, keys.SHARD_REPORT], partitions)
        edge.materialize([keys.PUBLISHED_VERSION])
        assert web.asked.total() == 12
    found = {key: fields["png"] for key, fields in project.published().items()}
    assert found == {f"{number:02d}": png(number) for number in range(12)}
