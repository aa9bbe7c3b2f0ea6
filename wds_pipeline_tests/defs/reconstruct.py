"""A job that another process can make again, which re-execution asks for."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from wds_pipeline.defs.location import build_defs
from wds_pipeline_tests.conftest import Project


def job(folder: str) -> dg.JobDefinition:
    project = Project(Path(folder), {"split": {"train": 0.7, "val": 0.3}})
    return build_defs([project.config()]).resolve_job_def("small_build")
