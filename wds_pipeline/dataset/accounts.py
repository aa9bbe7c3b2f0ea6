"""No sample is lost: what went in and what came out, counted anew from the tables of a version.

The report counts what it read back; this counts files, keys and places, and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset import naming

_EXAMPLES = 5


@dataclass(frozen=True)
class Accounts:
    """Samples by where they are. `splits` are counts of the ledger.

    `problems` says in words what does not add up, each with examples; empty if no sample is lost.
    """

    samples_in: int
    published: int
    quarantined: int
    splits: dict[str, int]
    problems: list[str] = field(default_factory=list)


def recount(
    inventory: pa.Table, ledger: pa.Table, quarantine: pa.Table, splits: Mapping[str, int]
) -> Accounts:
    """Compares the keys of the inventory's files with those of the ledger and the quarantine.

    `splits` says how many samples each split has by the manifest or the plan's shards.
    """
    ignored = pc.is_in(inventory["status"].cast(pa.string()), pa.array(list(naming.IGNORED)))
    seen = pc.unique(inventory["key"].filter(pc.invert(ignored)))
    published, left_out = (_keys(table) for table in (ledger, quarantine))
    placed = pa.concat_arrays([published, left_out])
    at = pc.fill_null(pc.index_in(placed, value_set=seen), -1).to_numpy()
    in_ledger, in_quarantine = (
        np.bincount(rows[rows >= 0], minlength=len(seen))
        for rows in (at[: len(published)], at[len(published) :])
    )
    problems = [
        _problem(
            seen.filter(pa.array(in_ledger + in_quarantine == 0)),
            "are in the source, but neither published nor in the quarantine",
        ),
        _problem(
            pc.unique(placed.filter(pa.array(at < 0))),
            "are published or in the quarantine, but not in the source",
        ),
        _problem(
            seen.filter(pa.array((in_ledger > 0) & (in_quarantine > 0))),
            "are both published and in the quarantine",
        ),
        *(
            _problem(seen.filter(pa.array(times > 1)), f"are in the {name} more than once")
            for times, name in ((in_ledger, "ledger"), (in_quarantine, "quarantine"))
        ),
    ]
    rows = pc.value_counts(ledger["split"].cast(pa.string())).to_pylist()
    counted = {row["values"]: row["counts"] for row in rows}
    for name in sorted(counted.keys() | splits.keys()):
        listed, wanted = counted.get(name, 0), splits.get(name, 0)
        if listed != wanted:
            problems.append(f"the ledger has {listed:,} samples of {name}, its shards {wanted:,}")
    return Accounts(
        samples_in=len(seen),
        published=len(published),
        quarantined=len(left_out),
        splits=dict(sorted(counted.items())),
        problems=[each for each in problems if each],
    )


def _keys(table: pa.Table) -> pa.Array:
    return pa.concat_arrays([pa.array([], pa.large_string()), *table["key"].chunks])


def _problem(keys: pa.Array, what: str) -> str:
    if not len(keys):
        return ""
    some = ", ".join(keys.slice(0, _EXAMPLES).to_pylist())
    return f"{len(keys):,} samples {what}, such as {some}"
