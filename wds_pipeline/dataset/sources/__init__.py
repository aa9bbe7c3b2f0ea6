"""What datasets are made of: a folder of raw files, another dataset, tars, a table, a list, several of them.

Each kind is a module; what it knows becomes a `Listing`, and from there on they are all the same.
"""

from __future__ import annotations

from importlib import import_module

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.sources.base import Source

__all__ = ["Source", "open_source"]

_KINDS = {
    "url": "folder:FolderSource",
    "dataset": "version:VersionSource",
    "shards": "tars:TarsSource",
    "table": "table:TableSource",
    "recipe": "recipe:RecipeSource",
    "merge": "merge:MergeSource",
}


def open_source(config: DatasetConfig) -> Source:
    """The source of a dataset. Nothing is asked of it yet. Raises ConfigError."""
    module, _, name = _KINDS[config.source.kind].partition(":")
    made: Source = getattr(import_module(f"{__name__}.{module}"), name)(config)
    if config.overlay is None:
        return made
    from wds_pipeline.dataset.overlay_source import OverlaySource

    return OverlaySource(config, made)
