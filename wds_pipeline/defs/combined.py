"""`combined` of a token dataset: one memory-mapped folder a split, by its job, its sensor, or a click."""

from typing import Any

import dagster as dg

from wds_pipeline.config import CombineConfig, DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.wording import counted, human_bytes
from wds_pipeline.defs import keys, metadata
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline.defs.session import Session
from wds_pipeline.defs.source_sensor import SourceTickError
from wds_pipeline.defs.upkeep_job import published
from wds_pipeline.errors import WdsPipelineError
from wds_pipeline.storage import open_storage
from wds_pipeline.tokens import combine as combine_module
from wds_pipeline.tokens.combine import Result, TokenVersion, combine, default_destination
from wds_pipeline.tokens.combined import Combined

_SECONDS = 30  # between two looks, which read one small file


def combined_asset(config: DatasetConfig) -> dg.AssetsDefinition | None:
    """The asset of one dataset; None if its file has no `combine:`."""
    wanted = config.combine
    if wanted is None:
        return None
    session_key = keys.session_key(config.name)

    @dg.asset(
        key=keys.asset_key(config.name, keys.COMBINED),
        deps=[keys.asset_key(config.name, keys.PUBLISHED_VERSION)],
        kinds={"tensordict"},
        group_name=config.name,
        owners=config.owners,
        required_resource_keys={session_key},
        tags={keys.DATASET_TAG: config.name},
        pool=keys.pool(config.name),
        description="The newest version's tokens as one memory-mapped folder a split, for "
        "`TensorDict.load_memmap`. Only what changed is copied; killed and run again, it goes on.",
        metadata=metadata.of_definition(config, combine_module),
    )
    def combined(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        session: Session = getattr(context.resources, session_key)
        with session.step(context):
            number, found = _combine(context, session, wanted)
        return dg.MaterializeResult(
            metadata=_metadata(number, found), data_version=dg.DataVersion(str(number))
        )

    return combined


def combine_job(config: DatasetConfig) -> Any:
    """The job that combines the newest version of one dataset."""
    return dg.define_asset_job(
        keys.combine_job_name(config.name),
        selection=[keys.asset_key(config.name, keys.COMBINED)],
        description=f"Makes one memory-mapped folder a split of the newest version of {config.name}.",
        executor_def=dg.in_process_executor,
        tags={keys.DATASET_TAG: config.name},
    )


def combine_sensor(config: DatasetConfig, job: Any) -> dg.SensorDefinition | None:
    """What combines each new version; None unless `combine.automatic` says so."""
    if config.combine is None or not config.combine.automatic:
        return None

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        try:
            manifest = version.latest(open_storage(config.destination_place))
        except WdsPipelineError as error:
            raise SourceTickError(str(error)) from None
        if manifest is None:
            return dg.SensorResult(skip_reason=f"{config.name}: the first version is waited for")
        key = f"{manifest.version} {manifest.write_id}"
        if key == context.cursor:
            # One that failed is told, not repeated: what it lacks does not come by itself.
            said = f"{config.name}: a run for version {manifest.version} was launched"
            return dg.SensorResult(skip_reason=said, cursor=key)
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=key)], cursor=key)

    return dg.SensorDefinition(
        name=keys.combine_sensor_name(config.name),
        job=job,
        evaluation_fn=evaluate,
        minimum_interval_seconds=_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Combines each new version of {config.name}.",
        tags={keys.DATASET_TAG: config.name},
    )


def _combine(
    context: dg.AssetExecutionContext, session: Session, wanted: CombineConfig
) -> tuple[int, dict[str, tuple[str, Result]]]:
    """The version's number; by split, the folder and what was done."""
    storage, manifest = published(session)
    found = {}
    for split in wanted.splits or list(manifest.splits):
        manifest.of_split(split)  # says so if there is none of that name
        source = TokenVersion(storage, manifest, split)
        folder = session.config.combine_folder
        destination = folder / split if folder else default_destination(source)
        result = combine(
            [source],
            destination,
            allow_missing=wanted.allow_missing,
            duplicates=wanted.duplicates,
            progress=progress_lines(context),
        )
        found[split] = (str(destination), result)
        total = len(result.combined.pieces)
        context.log.info(
            f"{split}: {counted(result.combined.rows, 'row')} in {destination}; {result.copied:,} of "
            f"{counted(total, 'shard')} copied"
        )
        for name in result.combined.missing:
            context.log.warning(f"{name}: missing or damaged; its rows are not written")
    return manifest.version, found


def _metadata(version: int, found: dict[str, tuple[str, Result]]) -> dict[str, Any]:
    sealed = {split: result.combined for split, (_, result) in found.items()}
    return {
        "version": version,
        **{
            f"folder of {split}": dg.MetadataValue.path(folder)
            for split, (folder, _) in found.items()
        },
        "rows": sum(each.rows for each in sealed.values()),
        "size": human_bytes(sum(map(_bytes, sealed.values()))),
        "copied": sum(result.copied for _, result in found.values()),
        "duplicates": sum(each.duplicates for each in sealed.values()),
        "unwritten": sum(each.unwritten for each in sealed.values()),
        "missing": sum(len(each.missing) for each in sealed.values()),
        "dagster/row_count": sum(each.rows for each in sealed.values()),
        "dagster/column_schema": dg.TableSchema(
            columns=[
                dg.TableColumn(name, column.dtype, f"of each row {list(column.shape)}")
                for name, column in next(iter(sealed.values())).columns.items()
            ]
        ),
        "how to read it": dg.MetadataValue.md(_snippet(next(iter(found.values()))[0])),
    }


def _bytes(found: Combined) -> int:
    return sum(found.rows * column.row_bytes for column in found.columns.values())


def _snippet(folder: str) -> str:
    return f"```python\nfrom tensordict import TensorDict\n\ndata = TensorDict.load_memmap({folder!r})\n```"
