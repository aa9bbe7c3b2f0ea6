"""The jobs that look after what is published, beside `<name>_build`."""

from __future__ import annotations

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.defs.job_gc import gc_job
from wds_pipeline.defs.job_repack import repack_job
from wds_pipeline.defs.job_repair import repair_job
from wds_pipeline.defs.job_verify import verify_job


def build_upkeep_jobs(config: DatasetConfig) -> list[dg.JobDefinition]:
    """`<name>_verify`, `<name>_repair`, `<name>_gc` and `<name>_repack` of one dataset."""
    return [verify_job(config), repair_job(config), gc_job(config), repack_job(config)]
