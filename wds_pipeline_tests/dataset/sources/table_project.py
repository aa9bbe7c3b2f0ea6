"""A dataset that is made of a table or list."""

from __future__ import annotations

from typing import Any

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline_tests.conftest import Project


class TableProject(Project):
    """`options["source"]` is the source; the destination is `published`, as of any project."""

    def config(self, **more: Any) -> DatasetConfig:
        values: dict[str, Any] = {
            "name": "small",
            "destination": {"url": str(self.destination)},
            "samples": {"max_quarantined": 1},
            "shards": {"max_bytes": 12_000},
            "compute": {"kind": "threads", "workers": 1},
        }
        return DatasetConfig.model_validate({**values, **self.options, **more})

    def table(self, name: str, text: str | bytes, **options: Any) -> TableProject:
        """Writes a table and makes it the source."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.options["source"] = {"table": {"url": str(path), **options}}
        return self

    def recipe(self, text: str | bytes, **options: Any) -> TableProject:
        """Writes a list and makes it the source."""
        path = self.folder / "list.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.options["source"] = {"recipe": {"url": str(path), **options}}
        return self

    def quarantine(self) -> dict[str, tuple[str, str]]:
        """Reason and detail of what was left out, by key."""
        table = version.read_table(self.storage, self.latest(), version.QUARANTINE)
        return {row["key"]: (row["reason"], row["detail"]) for row in table.to_pylist()}
