"""The code location: `dagster … -m wds_pipeline.definitions`."""

from __future__ import annotations

from wds_pipeline.config_file import load_configs
from wds_pipeline.defs.location import build_defs

__all__ = ["build_defs", "defs"]

defs = build_defs(load_configs())
