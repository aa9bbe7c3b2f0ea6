"""What a dataset's parts are called in Dagster. Users' own assets and sensors may rely on these."""

from __future__ import annotations

import dagster as dg

SOURCE_FILES = "source_files"
SHARD_PLAN = "shard_plan"
SHARDS = "shards"
SHARD_INDEX = "shard_index"
SHARD_REPORT = "shard_report"
PUBLISHED_VERSION = "published_version"
COMBINED = "combined"  # of token datasets

DATASET_TAG = "wds_pipeline/dataset"  # on runs; dagster.yaml limits by it
# On runs that the source's sensor launched: a digest of the source and the configuration as they were,
# the newest version at that time (0: none), and what had changed, for people.
SOURCE_TAG = "wds_pipeline/source"
AFTER_VERSION_TAG = "wds_pipeline/after_version"
WHY_TAG = "wds_pipeline/why"


def asset_key(dataset: str, asset: str) -> dg.AssetKey:
    """The key of one of a dataset's assets: `captions/shards`."""
    return dg.AssetKey([dataset, asset])


def job_name(dataset: str) -> str:
    """The name of a dataset's build job."""
    return f"{dataset}_build"


def pool(dataset: str) -> str:
    """The concurrency pool of a dataset's runs: dagster.yaml lets one run at a time hold it."""
    return dataset


def verify_job_name(dataset: str) -> str:
    """The name of the job that reads a published version back."""
    return f"{dataset}_verify"


def repair_job_name(dataset: str) -> str:
    """The name of the job that packs damaged shards anew."""
    return f"{dataset}_repair"


def gc_job_name(dataset: str) -> str:
    """The name of the job that removes old versions."""
    return f"{dataset}_gc"


def repack_job_name(dataset: str) -> str:
    """The name of the job that lays all shards out anew."""
    return f"{dataset}_repack"


def combine_job_name(dataset: str) -> str:
    """The name of the job that makes one memory-mapped folder of a token dataset."""
    return f"{dataset}_combine"


def combine_sensor_name(dataset: str) -> str:
    """The name of the sensor that combines each new version of a token dataset."""
    return f"{dataset}_combine_sensor"


def schedule_name(job: str) -> str:
    """The name of the schedule that starts a job."""
    return f"{job}_schedule"


def source_sensor_name(dataset: str) -> str:
    """The name of the sensor that builds a dataset when its source changed."""
    return f"{dataset}_source_sensor"


def session_key(dataset: str) -> str:
    """The name of the resource that a dataset's assets share."""
    return f"{dataset}_session"


def partitions(dataset: str) -> dg.DynamicPartitionsDefinition:
    """A dataset's shard slots: `train-000042`, the same in every version."""
    return dg.DynamicPartitionsDefinition(name=partitions_name(dataset))


def partitions_name(dataset: str) -> str:
    """The name under which the shard slots are registered."""
    return f"{dataset}_shards"
