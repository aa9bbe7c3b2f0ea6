"""What the catalogue knows of a dataset's checks: which still hold, and which are to be evaluated anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.shard_report import LEVELS
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.defs import check_results, keys
from wds_pipeline.storage import Storage

# A pointer to the materialization that an evaluation is of.
Target: TypeAlias = AssetCheckEvaluationTargetMaterializationData


def target(instance: dg.DagsterInstance, config: DatasetConfig) -> Target | None:
    """The latest materialization of `published_version`, if there is one."""
    asset = keys.asset_key(config.name, keys.PUBLISHED_VERSION)
    records = instance.fetch_materializations(asset, limit=1).records
    if not records:
        return None
    found = records[0]
    return Target(storage_id=found.storage_id, run_id=found.run_id, timestamp=found.timestamp)


def _storage_id(pointer: Target | None) -> int | None:
    return pointer.storage_id if pointer else None


def _latest(
    instance: dg.DagsterInstance, config: DatasetConfig, names: Iterable[str]
) -> dict[str, tuple[dg.AssetCheckEvaluation, float]]:
    """The latest evaluations and their times, in seconds; one that is only planned does not count."""
    asset = keys.asset_key(config.name, keys.PUBLISHED_VERSION)
    wanted = [dg.AssetCheckKey(asset, name) for name in names]
    found = {}
    for key, summary in instance.event_log_storage.get_asset_check_summary_records(wanted).items():
        record = summary.last_completed_check_execution_record
        if record is not None and record.evaluation is not None and record.event is not None:
            found[key.name] = (record.evaluation, record.event.timestamp)
    return found


def _value(evaluation: dg.AssetCheckEvaluation, name: str) -> Any:
    entry = evaluation.metadata.get(name)
    return entry.value if entry is not None else None


def lacking(
    instance: dg.DagsterInstance,
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    names: Iterable[str],
) -> list[str]:
    """The checks whose latest evaluation is not of this version and its latest materialization, or
    failed for what may be mended now."""
    names = list(names)
    latest = _latest(instance, config, names)
    now = _storage_id(target(instance, config))
    found = []
    for name in names:
        evaluation, _ = latest.get(name, (None, 0.0))
        holds = (
            evaluation is not None
            and _value(evaluation, "version") == manifest.version
            and _storage_id(evaluation.target_materialization_data) == now
        )
        if holds and name == check_results.VERIFICATION_PASSED and evaluation is not None:
            holds = evaluation.passed or (
                known_damage(instance, config, storage, manifest) is not None
            )
        if not holds:
            found.append(name)
    return found


def known_damage(
    instance: dg.DagsterInstance, config: DatasetConfig, storage: Storage, manifest: Manifest
) -> dg.AssetCheckResult | None:
    """What reading this version back found, unless all shards that it found damaged were packed anew
    since; None too if it found nothing."""
    name = check_results.VERIFICATION_PASSED
    evaluation, when = _latest(instance, config, [name]).get(name, (None, 0.0))
    if evaluation is None or evaluation.passed or not _value(evaluation, "read_back"):
        return None
    if _value(evaluation, "version") != manifest.version:
        return None
    damaged = _value(evaluation, "damaged") or []
    if len(damaged) == _value(evaluation, "damaged_shards"):
        tars = [storage.stat(seal.path(shard, seal.TAR)) for shard in damaged]
        if all(tar is not None and tar.modified > when for tar in tars):
            return None
    return check_results.result(
        config, name, False, str(evaluation.description), evaluation.metadata, evaluation.severity
    )


def hides_damage(
    instance: dg.DagsterInstance,
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    level: str,
) -> bool:
    """Whether a reading at this level is too shallow to lift what a deeper one found."""
    known = known_damage(instance, config, storage, manifest)
    before = known.metadata.get("level") if known else None
    deepest = str(getattr(before, "value", before))
    return deepest in LEVELS and LEVELS.index(level) < LEVELS.index(deepest)
