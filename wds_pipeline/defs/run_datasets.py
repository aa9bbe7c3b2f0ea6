"""Which datasets a run is of. Our jobs' runs carry a tag; those of assets, which the UI or a user's own
job starts, have it in their plan."""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg

from wds_pipeline.defs import keys


def datasets_of(
    instance: dg.DagsterInstance, run: dg.DagsterRun, steps: Collection[str] = ()
) -> set[str]:
    """The datasets of a run, or of these steps of it; asset keys of others count by their first part."""
    tagged = run.tags.get(keys.DATASET_TAG)
    if tagged is not None:
        return {tagged}
    found = set()
    snapshot_id = run.execution_plan_snapshot_id
    if snapshot_id is not None:
        wanted = set(steps) or set(run.step_keys_to_execute or ())
        for step in instance.get_execution_plan_snapshot(snapshot_id).steps:
            if not wanted or step.key in wanted:
                for output in step.outputs:
                    about = output.properties
                    checked = about.asset_check_key if about else None
                    key = checked.asset_key if checked else about.asset_key if about else None
                    if key is not None:
                        found.add(key.path[0])
    if not found:
        selected = [*(run.asset_selection or ())]
        selected += [check.asset_key for check in run.asset_check_selection or ()]
        found = {key.path[0] for key in selected}
    return found
