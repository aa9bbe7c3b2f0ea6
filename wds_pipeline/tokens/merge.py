"""Results of other programs to one memory-mapped folder: each idx once, and nothing is lost.

See `partial` for what a result is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from wds_pipeline.errors import DataError, DestinationError, SourceError
from wds_pipeline.tokens import combined
from wds_pipeline.tokens.combined import META, Column, Combined, Piece, Progress
from wds_pipeline.tokens.layouts import WRITTEN
from wds_pipeline.tokens.partial import FILE, PartialResult, find, finish_deleting
from wds_pipeline.tokens.target import check_owner, open_target

_COMPARED = 4096  # rows at a time


class Merged(NamedTuple):
    """What was done: the sealed folder's facts, how many results were copied, which were left out since
    their workers did not end, and how many were deleted."""

    combined: Combined
    copied: int
    unfinished: list[Path]
    deleted: int


def merge(
    folders: Sequence[Path | str],
    destination: Path | str,
    *,
    partial: bool = False,
    move: bool = False,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Copies the rows of all results in the folders to one folder, each idx once, and seals it. Results of
    workers that did not end (`tmp_…`) only count with `partial`, and behind the others. With `move`, results
    are deleted once the sealed folder is read back and found right.

    Raises DestinationError; SourceError for a result that is not readable; DataError when columns differ, or
    the same idx stands for other tokens, or, without `allow_missing`, when there are holes in idx.
    """
    target_folder = Path(destination)
    found = find(folders, target_folder) if not move else _left(folders, target_folder)
    used = [each for each in found if partial or not each.unfinished]
    unfinished = [each.path for each in found if each.unfinished and not partial]
    sealed = combined.read(target_folder)
    copied = 0
    if not (move and sealed is not None and _all_there(used, sealed)):
        _refuse_to_lose(target_folder, sealed, used)
        if not used:
            raise _nothing(folders, len(unfinished))
        used.sort(key=lambda each: (each.unfinished, _least(each), str(each.path)))
        sealed, copied = _combine(used, target_folder, allow_missing, progress)
    deleted = _delete(used, folders, target_folder, sealed, progress) if move else 0
    return Merged(sealed, copied, unfinished, deleted)


def _nothing(folders: Sequence[Path | str], unfinished: int) -> SourceError:
    but = f" but {unfinished} of workers that did not end (`--partial`)" if unfinished else ""
    return SourceError(
        f"{', '.join(map(str, folders))}: found no result{but}; expected folders with {META}, as "
        f"TensorDict.memmap writes them, or {FILE} files"
    )


def _left(folders: Sequence[Path | str], destination: Path) -> list[PartialResult]:
    """The results; of those that were moved before, nothing may be left."""
    there = [each for each in folders if Path(each).exists()]
    return find(there if (destination / combined.SEAL).exists() else folders, destination)


def _least(result: PartialResult) -> int:
    written = result.idx[result.written]
    return int(written.min()) if len(written) else 0


def _combine(
    used: list[PartialResult], folder: Path, allow_missing: bool, progress: Progress | None
) -> tuple[Combined, int]:
    columns = used[0].columns()
    for each in used[1:]:
        if each.columns() != columns:
            raise DataError(
                f"{each.path}: found the columns {_told(each.columns())}; {used[0].path} has "
                f"{_told(columns)}. Only results of one kind can be combined"
            )
    masks, duplicates = _unique(used)
    _check_holes(used, masks, allow_missing)
    pieces, offset = [], 0
    for result, mask in zip(used, masks, strict=True):
        rows = int(mask.sum())
        kept = f"xxh3-128:{xxhash.xxh3_128_hexdigest(np.packbits(mask).tobytes())}"
        pieces.append(Piece(str(result.path), result.fingerprint, rows, offset, kept))
        offset += rows
    if not offset:
        raise DataError(f"{used[0].path}: found no written row in {len(used)} results")
    values: dict[str, Any] = {
        "sources": [{"path": str(r.path), "fingerprint": r.fingerprint} for r in used],
        "about": {},
        "duplicates": duplicates,
        "unwritten": sum(int((~each.written).sum()) for each in used),
    }
    with open_target(folder) as target:
        check_owner(folder, values["sources"])
        sealed = target.unchanged(columns, pieces, **values)
        if sealed is not None:
            return sealed, 0
        left = target.begin(columns, pieces)
        total, row = sum(piece.rows for piece in left), sum(c.row_bytes for c in columns.values())
        done = 0
        places = {piece.name: at for at, piece in enumerate(pieces)}
        for piece in left:
            sink, at = target.sink(piece), places[piece.name]
            used[at].copy(sink, masks[at])
            if used[at].fingerprint != piece.digest:
                raise SourceError(f"{piece.name}: it was changed while it was read; combine again")
            target.note(sink)
            done += piece.rows
            if progress is not None:
                progress("combine", done * row, total * row)
        return target.seal(pieces, **values), len(left)


def _told(columns: dict[str, Column]) -> str:
    return ", ".join(f"{name} {each.dtype} {list(each.shape)}" for name, each in columns.items())


def _unique(used: list[PartialResult]) -> tuple[list[NDArray[np.bool_]], int]:
    """Which rows of each result are kept: the first of each idx. Raises DataError when others of the same
    idx have other tokens."""
    masks = [each.written for each in used]
    idx = np.concatenate([each.idx[mask] for each, mask in zip(used, masks, strict=True)])
    owner = np.repeat(np.arange(len(used)), [int(mask.sum()) for mask in masks])
    place = np.concatenate([np.flatnonzero(mask) for mask in masks])
    _, first, back = np.unique(idx, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[back] != np.arange(len(idx)))
    if len(again):
        _compare(used, idx, owner, place, again, first[back[again]])
    for at in np.unique(owner[again]):
        masks[at] = masks[at].copy()
        masks[at][place[again[owner[again] == at]]] = False
    return masks, len(again)


def _compare(
    used: list[PartialResult],
    idx: NDArray[Any],
    owner: NDArray[Any],
    place: NDArray[Any],
    again: NDArray[Any],
    kept: NDArray[Any],
) -> None:
    pairs = np.stack([owner[again], owner[kept]])
    for here, there in np.unique(pairs, axis=1).T:
        of_pair = np.flatnonzero((pairs[0] == here) & (pairs[1] == there))
        for start in range(0, len(of_pair), _COMPARED):
            some = of_pair[start : start + _COMPARED]
            for name in used[here].arrays:
                one = used[here].arrays[name][place[again[some]]]
                other = used[there].arrays[name][place[kept[some]]]
                if name != WRITTEN and not np.array_equal(one, other):
                    differ = (one != other).reshape(len(some), -1).any(1)
                    number = idx[again[some[int(np.flatnonzero(differ)[0])]]]
                    raise DataError(
                        f"{used[here].path}: idx {number} has other values of {name} than in "
                        f"{used[there].path}; expected an idx that counts over the whole data set, not over "
                        "each result; mend or move away one of them"
                    )


def _check_holes(
    used: list[PartialResult], masks: list[NDArray[np.bool_]], allow_missing: bool
) -> None:
    idx = np.sort(np.concatenate([each.idx[mask] for each, mask in zip(used, masks, strict=True)]))
    if allow_missing or not len(idx):
        return
    holes = int(idx[-1]) + 1 - len(idx)
    if holes:
        missing = np.flatnonzero(idx != np.arange(len(idx)))[0]
        raise DataError(
            f"{used[0].path.parent}: {holes:,} rows are missing from 0 to {idx[-1]:,}, the first is idx "
            f"{missing}; add the results that have them, or allow it: `--allow-missing`"
        )


def _all_there(used: list[PartialResult], sealed: Combined) -> bool:
    known = {(each.get("path"), each.get("fingerprint")) for each in sealed.sources}
    return (None, None) not in known and all(
        (str(each.path), each.fingerprint) in known for each in used
    )


def _refuse_to_lose(folder: Path, sealed: Combined | None, used: list[PartialResult]) -> None:
    """What was moved into the folder is nowhere else."""
    here = {str(each.path) for each in used}
    gone = [
        each["path"]
        for each in (sealed.sources if sealed is not None else [])
        if "path" in each and each["path"] not in here and not os.path.exists(each["path"])
    ]
    if gone:
        raise DestinationError(
            f"{folder}: has the rows of {len(gone)} results that are gone ({gone[0]}); combine into another "
            "folder, and name this one among the results"
        )


def _delete(
    used: list[PartialResult],
    folders: Sequence[Path | str],
    target: Path,
    sealed: Combined,
    progress: Progress | None,
) -> int:
    """Deletes results that are in a folder that is sealed and right. Raises VerificationError if it is not,
    SourceError for a result that changed."""
    with open_target(target):
        combined.check(target, progress)
        known = {each["path"]: each["fingerprint"] for each in sealed.sources}
        for each in used:
            if known.get(str(each.path)) != each.fingerprint:
                raise SourceError(
                    f"{each.path}: it was changed after it was combined; combine again"
                )
        finish_deleting(folders)
        for each in used:
            each.delete()
    return len(used)
