"""Why a shard is built: how many of its samples are new, edited, read in another way, moved or gone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset import ledger, naming
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.places import Places
from wds_pipeline.dataset.samples import Samples

_CAUSES = ("new", "edited", "config", "moved", "deleted")


def why_stale(
    found: Samples,
    inventory: pa.Table,
    order: np.ndarray,
    starts: np.ndarray,
    places: Places,
    parent: Parent,
) -> dict[str, np.ndarray]:
    """How many samples of each shard are new, edited, …, against the parent version.

    `order` are the planned samples, shard by shard; a shard begins at each of `starts`.
    """
    before = parent.ledger
    old_digests = ledger.digests(before["digest"])
    was_row = np.full(len(found), -1, np.int64)
    still = np.flatnonzero(places.published >= 0)
    was_row[places.published[still]] = still
    old = was_row[order]
    known = old >= 0
    edited = np.zeros(len(order), bool)
    edited[known] = old_digests[old[known]] != found.digests[order[known]]
    config = np.zeros(len(order), bool)
    if edited.any() and parent.inventory is not None:
        config[edited] = ~_source_changed(found, order[edited], inventory, parent.inventory())
    now_in = {name: code for code, name in enumerate(places.split_names)}
    codes, names = ledger.names(before["split"])
    was_in = np.array([now_in.get(name, -1) for name in names], np.int32)[codes]
    slots = before["slot"].to_numpy()
    moved = np.zeros(len(order), bool)
    moved[known] = was_in[old[known]] != places.split[order[known]]
    moved[known] |= slots[old[known]] != places.slot[order[known]]
    counts = {
        "new": np.add.reduceat((~known).astype(np.int64), starts),
        "edited": np.add.reduceat((edited & ~config).astype(np.int64), starts),
        "config": np.add.reduceat(config.astype(np.int64), starts),
        "moved": np.add.reduceat(moved.astype(np.int64), starts),
    }
    counts["deleted"] = _left(found, order, starts, places, before, was_in)
    return {cause: counts[cause] for cause in _CAUSES}


def _left(
    found: Samples,
    order: np.ndarray,
    starts: np.ndarray,
    places: Places,
    before: pa.Table,
    was_in: np.ndarray,
) -> np.ndarray:
    """How many samples that each shard held before are gone, or in the quarantine."""
    left = np.zeros(len(starts), np.int64)
    if not before.num_rows:
        return left
    at = places.published
    gone = (at < 0) | (found.problem[at] != "")
    here = _place(places.split[order[starts]], places.slot[order[starts]])
    left_from = _place(was_in[gone], before["slot"].to_numpy()[gone])
    shard = np.searchsorted(here, left_from)
    shard = shard[here[np.minimum(shard, len(here) - 1)] == left_from]
    return left + np.bincount(shard, minlength=len(left))


def _place(split: np.ndarray, slot: np.ndarray) -> np.ndarray:
    """Split and slot as one number, in the order of both."""
    return (split.astype(np.int64) << 32) + slot


def _source_changed(
    found: Samples, edited: np.ndarray, inventory: pa.Table, before: pa.Table
) -> np.ndarray:
    """Which of these samples have other source files than the parent's inventory knows.

    The others differ because the configuration reads the same files in another way.
    """
    rows = found.rows(edited)
    files = found.files.take(pa.array(rows))
    near = before.filter(pc.is_in(before["path"], value_set=files["path"].combine_chunks()))
    at = pc.index_in(files["path"], value_set=near["path"].combine_chunks())
    there = pc.is_valid(at).to_numpy()
    if not there.any():
        return np.ones(len(edited), bool)
    old = near.take(pc.fill_null(at, 0))
    same = there & (old["size"].to_numpy() == files["size"].to_numpy())
    same &= pc.equal(old["fingerprint"], files["fingerprint"]).to_numpy()
    counts = found.first[edited + 1] - found.first[edited]
    starts = np.cumsum(counts) - counts
    changed = np.logical_or.reduceat(~same, starts)
    # A file that the sample had and that is gone from the source is a change as well.
    keys = found.keys.take(pa.array(edited))
    was = before.filter(pc.is_in(before["key"], value_set=keys))
    was = was.filter(pc.equal(was["status"].cast(pa.string()), naming.OK))
    paths = inventory["path"]
    kept = paths.filter(pc.is_in(paths, value_set=was["path"].combine_chunks())).combine_chunks()
    lost = was.filter(pc.invert(pc.is_in(was["path"], value_set=kept)))["key"].combine_chunks()
    return changed | np.asarray(pc.is_in(keys, value_set=lost))
