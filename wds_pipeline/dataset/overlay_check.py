"""Whether an overlay fits its base: each shard's samples are of the base's shard there, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.overlay_base import Base, distinct
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.shard_report import Finding, ShardReport

_SHOWN = 3  # keys of a message


def check(
    report: Report, reports: Sequence[ShardReport], base: Base, config: DatasetConfig
) -> None:
    """Adds to a version's report what is wrong with its alignment, as errors, and how many of the base's
    samples it lacks. `reports` are its shards'. Raises SourceError.
    """
    assert config.overlay is not None
    parts = [distinct(each.members["key"]) for each in reports]
    keys = pa.chunked_array(parts, pa.large_string()).combine_chunks()
    shard = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    column = base.places["key"].combine_chunks()
    at = pc.fill_null(pc.index_in(keys, value_set=column), -1).to_numpy()
    found = [
        finding
        for what, rows in _misplaced(reports, shard, at, base)
        for finding in _findings(reports, shard, keys, rows, what)
    ]
    covered = np.zeros(len(column), bool)
    covered[at[at >= 0]] = True
    missing = int(np.count_nonzero(~covered))
    report.samples["overlay"] = {"missing": missing}
    report.about += (
        f"; an overlay of {base.named}, {missing:,} of whose {len(column):,} samples it lacks"
    )
    most = config.overlay.max_missing
    if missing - most * len(column) > 1e-6:
        some = column.filter(pa.array(~covered)).slice(0, _SHOWN).to_pylist()
        message = (
            f"{missing:,} of the {len(column):,} samples of {base.named} ({missing / len(column):.1%}) have "
            f"nothing here, such as {', '.join(some)}; overlay.max_missing allows {most:.1%}"
        )
        found.append(Finding("error", "missing_overlay", "", "", "", message))
    for finding in found:
        kind = finding.severity, finding.code
        report.counts[kind] = report.counts.get(kind, 0) + finding.count
    report.counts = {kind: report.counts[kind] for kind in sorted(report.counts)}
    report.findings = [*found, *report.findings]


def _misplaced(
    reports: Sequence[ShardReport], shard: np.ndarray, at: np.ndarray, base: Base
) -> Iterator[tuple[str, np.ndarray]]:
    """What is wrong with which samples; `at` are the rows of the base's places, -1 for none."""
    named = base.named
    yield (
        f"{named} has no sample of this key: a transform of an overlay keeps the key of each sample, and "
        "makes at most one of one",
        np.flatnonzero(at < 0),
    )
    known = np.flatnonzero(at >= 0)
    if not len(known):
        return
    there = base.places.select(["split", "slot"]).take(pa.array(at[known]))
    own = pa.array([each.split for each in reports], pa.string()).take(pa.array(shard[known]))
    slots = np.array([each.slot for each in reports], np.int64)[shard[known]]
    elsewhere = slots != there["slot"].to_numpy()
    same_split = pc.equal(there["split"].cast(pa.string()).combine_chunks(), own)
    elsewhere |= ~same_split.to_numpy(zero_copy_only=False)
    yield f"in {named} it is in another shard", known[elsewhere]
    row, of_shard = at[known], shard[known]
    back = np.zeros(len(known), bool)
    back[1:] = (row[1:] <= row[:-1]) & (of_shard[1:] == of_shard[:-1])
    yield (
        f"in {named} it comes earlier: the samples of an overlay are in the base's order",
        known[back & ~elsewhere],
    )


def _findings(
    reports: Sequence[ShardReport], shard: np.ndarray, keys: pa.Array, rows: np.ndarray, what: str
) -> Iterator[Finding]:
    """One for each shard, that names the first of its samples."""
    numbers, first, counts = np.unique(shard[rows], return_index=True, return_counts=True)
    for number, row, count in zip(
        numbers.tolist(), rows[first].tolist(), counts.tolist(), strict=True
    ):
        name, key = reports[number].name, keys[row].as_py()
        more = f" (and {count - 1:,} more samples of this shard)" if count > 1 else ""
        message = f"{name}: {key}: {what}{more}"
        yield Finding("error", "misaligned", name, key, "", message, count)
