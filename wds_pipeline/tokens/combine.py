"""Published token data sets to one memory-mapped folder that `TensorDict.load_memmap` reads.

Each shard's rows lie where the rows of the shards before it end; `idx` counts over all. What is known by the
same key comes once: the first of the sources has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, DataError, VerificationError
from wds_pipeline.storage import Storage
from wds_pipeline.tokens.combined import Column, Combined, Piece, Progress, listed
from wds_pipeline.tokens.target import Sink, Target, check_owner, open_target
from wds_pipeline.tokens.token_shard import IDENTITY, Rows, TokenShard

_MOST_ROWS = 2**31 - 1  # that idx can number


class TokenVersion(NamedTuple):
    """A published version of a token data set, and the split of it that is wanted."""

    storage: Storage
    manifest: Manifest
    split: str

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.manifest.dataset}: version {self.manifest.version}"

    def values(self) -> dict[str, Any]:
        """What the seal says of it."""
        return {
            "dataset": self.manifest.dataset,
            "version": self.manifest.version,
            "split": self.split,
            "digest": self.manifest.splits[self.split].digest,
            "destination": self.storage.url,
        }


class Result(NamedTuple):
    """What `combine` did: the sealed folder's facts, and how many of its shards it had to copy."""

    combined: Combined
    copied: int


@dataclass
class _Plan:
    """Which rows come from where. `kept` has the mask of the pieces of which rows are left out."""

    shards: list[TokenShard]
    pieces: list[Piece] = field(default_factory=list)
    kept: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    duplicates: int = 0
    unwritten: int = 0


def combine(
    sources: Sequence[TokenVersion],
    destination: Path | str,
    *,
    allow_missing: bool = False,
    duplicates: Literal["drop", "refuse"] = "drop",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Result:
    """Copies the rows of all sources' shards into one folder, and seals it. Run again, it goes on where it
    was; on a newer version it copies the shards whose bytes or place changed.

    With `allow_missing`, the rows of shards that are missing or damaged are there and not written: idx is
    -1, write_flag 0. Where not even their number is known, there are none. In memory there are 1 MB a
    worker, and about 40 bytes a row while the rows' keys are compared.

    Raises DestinationError, DataError when the sources do not fit together, VerificationError when shards
    are missing or damaged.
    """
    plan = _plan(sources, allow_missing, duplicates)
    workers = workers or min(
        4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
    )
    values: dict[str, Any] = {
        "sources": [each.values() for each in sources],
        "about": plan.about,
        "duplicates": plan.duplicates,
        "unwritten": plan.unwritten,
    }
    with open_target(Path(destination)) as target:
        check_owner(target.folder, values["sources"])
        sealed = target.unchanged(plan.columns, plan.pieces, **values)
        if sealed is not None:
            return Result(sealed, 0)
        left = target.begin(plan.columns, plan.pieces)
        _copy(plan, left, target, allow_missing, workers, progress)
        sealed = target.seal(plan.pieces, **values)
    return Result(sealed, len(left))


def _plan(sources: Sequence[TokenVersion], allow_missing: bool, duplicates: str) -> _Plan:
    plan = _Plan(
        [
            TokenShard(each.storage, entry, each.title)
            for each in sources
            for entry in each.manifest.of_split(each.split)
        ]
    )
    problems = _problems(plan.shards)
    if problems and not allow_missing:
        raise _refused(list(problems.values()), len(plan.shards))
    _check_heads(plan, set(problems))
    found = _rows(plan.shards, problems, allow_missing)
    masks = _masks(found, plan, duplicates)
    offset = 0
    for at, (shard, rows) in enumerate(zip(plan.shards, found, strict=True)):
        count = shard.entry.samples if rows is None else int(masks[at].sum())
        if rows is None:
            count = _known_rows(shard, plan.columns)
        elif count < len(rows.written):
            plan.kept[at] = masks[at]
        plan.pieces.append(_piece(shard, offset, count, plan.kept.get(at), rows is None))
        offset += count
    if not 0 < offset <= _MOST_ROWS:
        raise DataError(
            f"{', '.join(each.title for each in sources)}: found {offset:,} rows; expected 1 to "
            f"{_MOST_ROWS:,}, which idx (int32) can number"
        )
    return plan


def _problems(shards: Sequence[TokenShard]) -> dict[int, str]:
    if not shards:
        return {}
    found = shards[0].storage.at_once(TokenShard.problem, shards)
    return {at: problem for at, problem in enumerate(found) if problem is not None}


def _refused(problems: list[str], total: int) -> VerificationError:
    return VerificationError(
        listed(
            problems,
            f"{len(problems):,} of {total:,} shards are missing or damaged: `wds-pipeline verify NAME "
            "--repair` mends them; `--allow-missing` leaves their rows unwritten",
        )
    )


def _check_heads(plan: _Plan, missing: set[int]) -> None:
    """The columns, which must be the same everywhere, and so what `tokens.json` says."""
    whole = [shard for at, shard in enumerate(plan.shards) if at not in missing]
    first, head = next(((s, h) for s in whole if (h := s.head()) is not None), (None, None))
    if first is None or head is None:
        titles = sorted({shard.title for shard in plan.shards})
        raise VerificationError(
            f"{', '.join(titles) or 'nothing'}: no shard that can be read has a block of tokens"
        )
    plan.columns, plan.about = head
    plan.about.pop("subset", None)  # of the same tokens, more or fewer

    def compare(shard: TokenShard) -> None:
        columns, about = shard.head() or (plan.columns, plan.about)
        about.pop("subset", None)
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (columns, plan.columns),
            (about, plan.about),
        ]
        for here, there in pairs:
            for name in {**here, **there}:
                if here.get(name) != there.get(name):
                    raise DataError(
                        f"{shard.title}: {shard.where}: found {name}: {here.get(name)}; {first.where} "
                        f"has {there.get(name)}. Only tokens of one kind can be combined"
                    )

    first.storage.at_once(compare, whole)


def _rows(
    shards: Sequence[TokenShard], problems: dict[int, str], allow_missing: bool
) -> list[Rows | None]:
    """The rows of each shard; None for one that is missing."""

    def one(at: int) -> Rows | VerificationError | None:
        try:
            return None if at in problems else shards[at].rows()
        except VerificationError as error:
            return error

    found = shards[0].storage.at_once(one, range(len(shards))) if shards else []
    wrong = [str(each) for each in found if isinstance(each, VerificationError)]
    if wrong and not allow_missing:
        raise _refused(wrong, len(shards))
    return [each if isinstance(each, Rows) else None for each in found]


def _masks(found: Sequence[Rows | None], plan: _Plan, duplicates: str) -> list[NDArray[np.bool_]]:
    """Which rows of each shard are kept: those that are written, and of the same identity the first."""
    nothing = np.zeros(0, np.bool_)
    written = [nothing if each is None else each.written for each in found]
    parts = [each.identities[each.written] for each in found if each is not None]
    identities = np.concatenate(parts) if parts else np.zeros(0, IDENTITY)
    plan.unwritten = sum(map(len, written)) - len(identities)
    once = _once(identities)
    plan.duplicates = len(once) - int(once.sum())
    if plan.duplicates and duplicates == "refuse":
        raise DataError(
            f"{plan.duplicates:,} rows have the key of another one; combine fewer sources, or leave out "
            "`--duplicates refuse` to keep the first of each"
        )
    masks, at = [], 0
    for each in written:
        mask = each.copy()
        count = int(each.sum())
        mask[each] = once[at : at + count]
        masks.append(mask)
        at += count
    return masks


def _once(identities: NDArray[Any]) -> NDArray[np.bool_]:
    """Which are the first of their kind: by half of the hash, and by all of it where that is the same."""
    half = np.ascontiguousarray(identities["half"])
    order = np.argsort(half, kind="stable")
    half = half[order]
    same = np.flatnonzero(half[1:] == half[:-1])
    once = np.ones(len(identities), np.bool_)
    if len(same):
        doubtful = np.unique(order[np.concatenate([same, same + 1])])
        _, first = np.unique(identities[doubtful], return_index=True)
        once[doubtful] = False
        once[doubtful[first]] = True
    return once


def _known_rows(shard: TokenShard, columns: dict[str, Column]) -> int:
    """How many rows a missing shard has, by its member index; 0 where that is missing too."""
    try:
        members = shard.members()
    except VerificationError:
        return 0
    name, column = min(columns.items(), key=lambda each: -each[1].row_bytes)
    sizes = [each.size for each in members if each.field == f"{name}.npy"]
    # A header has a multiple of 64 bytes, 128 nearly always, and a row more than that or none at all.
    return sum((size - 128) // column.row_bytes for size in sizes)


def _piece(
    shard: TokenShard, offset: int, rows: int, kept: NDArray[np.bool_] | None, missing: bool
) -> Piece:
    mask = (
        "" if kept is None else f"xxh3-128:{xxhash.xxh3_128_hexdigest(np.packbits(kept).tobytes())}"
    )
    name = f"{shard.title}: {shard.entry.name}"
    return Piece(name, shard.entry.digest, rows, offset, mask, missing)


def _copy(
    plan: _Plan,
    left: Sequence[Piece],
    target: Target,
    allow_missing: bool,
    workers: int,
    progress: Progress | None,
) -> None:
    """Copies what is left. A damaged shard does not keep the others from being done."""
    numbers = {piece.offset: at for at, piece in enumerate(plan.pieces) if piece.rows}
    row = sum(column.row_bytes for column in plan.columns.values())
    done, total = 0, row * sum(piece.rows for piece in left)

    def one(piece: Piece) -> Sink | VerificationError:
        sink = target.sink(piece)
        if piece.missing or not piece.rows:
            sink.fill()
            return sink
        at = numbers[piece.offset]
        try:
            plan.shards[at].copy(plan.columns, sink, plan.kept.get(at))
        except VerificationError as error:
            return error
        return sink

    wrong: dict[int, str] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="combine") as threads:
        running = {threads.submit(one, piece): piece for piece in left}
        try:
            for future in as_completed(running):
                piece, result = running[future], future.result()
                if isinstance(result, Sink):
                    target.note(result)
                elif allow_missing:
                    at = numbers[piece.offset]
                    plan.pieces[at] = replace(piece, missing=True)
                    sink = target.sink(plan.pieces[at])
                    sink.fill()
                    target.note(sink)
                else:
                    wrong[piece.offset] = str(result)
                done += piece.rows * row
                if progress is not None:
                    progress("combine", done, total)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    target.flush()
    if wrong:
        raise _refused([wrong[at] for at in sorted(wrong)], len(plan.shards))


def default_destination(version: TokenVersion) -> Path:
    """Where a version is combined to if nobody says: beside its shards. Raises ConfigError for a store."""
    from wds_pipeline.storage import LocalStorage

    if not isinstance(version.storage, LocalStorage):
        raise ConfigError(
            f"{version.title}: {version.storage.url}: memory maps need a folder of this machine; name one: "
            "`wds-pipeline combine NAME DESTINATION`"
        )
    return version.storage.root / "combined" / f"{version.manifest.version:08d}" / version.split
