"""Writing many materializations at once.

`context.log_event` costs 5 to 10 ms an event on SQLite (a connection, two transactions and a look at
the schema for each), several times the packing of a small shard. Here hundreds go into one
transaction: 0.5 ms each. The rows are the same, which a test holds.

Postgres has a batch call of its own, `EventLogStorage.store_event_batch`; it is told of one asset at a
time, for it notes only the last event's asset in the table of assets. SQLite has none: its parts are
used. Where a release of Dagster lacks these, each is logged by itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence

import dagster as dg
import sqlalchemy
from dagster import DagsterEvent, DagsterEventType, EventLogEntry

try:
    from dagster._core.events import StepMaterializationData
    from dagster._core.storage.event_log import EventLogStorage, SqliteEventLogStorage
except ImportError:  # another release of Dagster
    SqliteEventLogStorage = None  # type: ignore[assignment,misc]

_PARTS = (
    "prepare_insert_event_batch",
    "run_connection",
    "index_connection",
    "store_asset_event_tags",
    "store_asset_event",
)
_CHUNK = 100  # rows of a statement: SQLite may allow no more than 999 values


def log_materializations(
    context: dg.OpExecutionContext, materializations: Sequence[dg.AssetMaterialization]
) -> None:
    """Logs materializations as `context.log_event` does, but to the instance alone, not the console.

    On Postgres the run's log has them asset by asset, each asset's in the order given; an asset comes
    where its first one stands, so what is made of others still comes after them.
    """
    storage = context.instance.event_log_storage
    if SqliteEventLogStorage is None or not all(hasattr(storage, part) for part in _PARTS):
        for each in materializations:
            context.log_event(each)
    elif isinstance(storage, SqliteEventLogStorage):
        for chunk in _chunks(materializations):
            _store(storage, [_entry(context, each) for each in chunk])
    elif (
        type(storage).store_event_batch is EventLogStorage.store_event_batch
    ):  # one by one, as here
        storage.store_event_batch([_entry(context, each) for each in materializations])
    else:
        by_asset: dict[dg.AssetKey, list[dg.AssetMaterialization]] = {}
        for each in materializations:
            by_asset.setdefault(each.asset_key, []).append(each)
        for of_one in by_asset.values():
            for chunk in _chunks(of_one):
                storage.store_event_batch([_entry(context, each) for each in chunk])


def _chunks(
    materializations: Sequence[dg.AssetMaterialization],
) -> Iterator[Sequence[dg.AssetMaterialization]]:
    for start in range(0, len(materializations), _CHUNK):
        yield materializations[start : start + _CHUNK]


def _entry(
    context: dg.OpExecutionContext, materialization: dg.AssetMaterialization
) -> EventLogEntry:
    step = context.get_step_execution_context()
    message = materialization.description or "Materialized value."
    event = DagsterEvent(
        event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
        job_name=step.job_name,
        step_handle=step.step.handle,
        node_handle=step.step.node_handle,
        step_kind_value=step.step.kind.value,
        logging_tags=step.event_tags,
        event_specific_data=StepMaterializationData(materialization),
        message=message,
        pid=os.getpid(),
    )
    return EventLogEntry(
        error_info=None,
        level=logging.DEBUG,
        user_message=message,
        run_id=context.run_id,
        timestamp=time.time(),
        step_key=step.step.key,
        job_name=step.job_name,
        dagster_event=event,
    )


def _store(storage: SqliteEventLogStorage, entries: Sequence[EventLogEntry]) -> None:
    """As `SqliteEventLogStorage.store_event`: to the run's own database, and to the index."""
    insert = storage.prepare_insert_event_batch(entries)
    with storage.run_connection(entries[0].run_id) as connection:
        connection.execute(insert)
    with storage.index_connection() as connection:
        connection.execute(insert)
        # One statement's rows are numbered without gaps.
        last = connection.execute(sqlalchemy.text("SELECT last_insert_rowid()")).scalar_one()
    ids = range(last - len(entries) + 1, last + 1)
    storage.store_asset_event_tags(entries, list(ids))
    # The table of assets has one row for each, its latest event.
    latest = {
        entry.get_dagster_event().asset_key: (entry, number)
        for entry, number in zip(entries, ids, strict=True)
    }
    for entry, number in latest.values():
        storage.store_asset_event(entry, number)
