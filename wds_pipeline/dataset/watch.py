"""One bounded look at a source: how far it came in its seconds, and a digest of what it saw.

A source too large for one look is seen in several, each going on where the one before stopped. What is
kept between them is small, whatever the source's size. Together they give the digest that a scan of
the source gives, if it held still; if not, another one, and the next pass over it tells the truth.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pydantic import BaseModel, ConfigDict, Field

from wds_pipeline.config import SourceConfig
from wds_pipeline.dataset.key_listing import KeyListing
from wds_pipeline.dataset.listing import LISTING, NOTHING, PART, fold
from wds_pipeline.dataset.select import check_any
from wds_pipeline.dataset.walk import Position, Step, Walk
from wds_pipeline.errors import SourceError
from wds_pipeline.storage import LocalStorage, Storage

_CHUNK_ROWS = 100_000
_FORMAT = "1"
Seconds = Annotated[float, Field(ge=0, lt=1e11)]  # since 1970


class Place(BaseModel):
    """A walk's position as JSON can hold it: names are any bytes, so they are percent-encoded."""

    model_config = ConfigDict(frozen=True)

    folder: str
    step: Step
    after: str

    @classmethod
    def of(cls, position: Position) -> Place:
        folder, after = (quote(os.fsencode(each)) for each in (position.folder, position.after))
        return cls(folder=folder, step=position.step, after=after)

    @property
    def position(self) -> Position:
        folder, after = (os.fsdecode(unquote_to_bytes(each)) for each in (self.folder, self.after))
        return Position(folder, self.step, after)


class Look(BaseModel):
    """How far a pass over a source has come.

    `files` and `bytes` count what it has seen, `began` and `ended` are the times of the pass's first
    look and of its last. `place` is where it goes on; None when the pass is complete.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = 1
    rules: str
    device: int
    began: Seconds
    ended: Seconds
    files: int = Field(ge=0)
    bytes: int = Field(ge=0)
    state: str = Field(pattern=r"^[0-9a-f]{32}$")
    place: Place | None

    @property
    def complete(self) -> bool:
        return self.place is None

    @property
    def digest(self) -> str:
        """Of a complete pass: what `Listing.digest` is, where fingerprints are times."""
        return self.state

    @property
    def reached(self) -> str:
        """Where the pass goes on, for people."""
        if self.place is None:
            return "the end"
        at = self.place
        return f"{at.folder}{at.after}" or "the beginning"


def look(
    source: Storage,
    config: SourceConfig,
    dataset: str,
    seconds: float,
    before: Look | None = None,
    *,
    now: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Look:
    """Looks at the source for so many seconds, and as long as it takes to come a step further.

    It goes on behind `before`, or begins a pass: if that one was complete, other files were wanted
    then, or the source is on another device now.

    Raises SourceError when the source is gone, empty, or has folders that cannot be read.
    """
    until = clock() + seconds
    if not isinstance(source, LocalStorage):
        return _look_at_keys(source, config, dataset, before, now, lambda: clock() >= until)
    began = now()
    walk = Walk(source, config, dataset, lenient=True)
    device = walk.check_root().st_dev
    rules = _rules(source, config)
    files, size, state = 0, 0, NOTHING
    if before and before.place and (before.rules, before.device) == (rules, device):
        walk.go_to(before.place.position)
        began, files, size = before.began, before.files, before.bytes
        state = bytes.fromhex(before.state)
    while walk.position is not None:
        walk.step(lambda: clock() >= until)
        over = clock() >= until
        if over or walk.position is None or len(walk.rows.paths) >= _CHUNK_ROWS:
            table, folders = walk.rows.take()
            state = fold(state, table, folders)
            files += table.num_rows
            size += pc.sum(table["size"]).as_py() or 0
        if over:
            break
    walk.check()
    if walk.check_root().st_dev != device:
        raise SourceError(
            f"{dataset}: source.url: {source.url}: was mounted or unmounted while it was looked at; "
            "the next look begins anew"
        )
    if walk.position is None:
        check_any(files, source.url, walk.left_out, dataset)
    return Look(
        rules=rules,
        device=device,
        began=began,
        ended=now(),
        files=files,
        bytes=size,
        state=state.hex(),
        place=Place.of(walk.position) if walk.position else None,
    )


def _look_at_keys(
    source: Storage,
    config: SourceConfig,
    dataset: str,
    before: Look | None,
    now: Callable[[], float],
    over: Callable[[], bool],
) -> Look:
    """Goes on behind a key. The digest's state is only known between two of its parts, so a look ends
    there."""
    began = now()
    source.check()
    rules = _rules(source, config)
    files, size, state, after = 0, 0, NOTHING, ""
    if before and before.place and before.rules == rules:
        after = before.place.position.after
        began, files, size = before.began, before.files, before.bytes
        state = bytes.fromhex(before.state)
    keys = KeyListing(source, config, after)
    pending = LISTING.empty_table()
    place: Place | None = None

    def take(count: int) -> None:
        nonlocal files, size, state, pending
        table, pending = pending.slice(0, count), pending.slice(count)
        state = fold(state, table.combine_chunks(), [count])
        files += count
        size += pc.sum(table["size"]).as_py() or 0

    for table in keys.tables():
        pending = pa.concat_tables([pending, table])
        whole = pending.num_rows // PART * PART
        if whole:
            last = pending["path"][whole - 1].as_py()
            take(whole)
            if over():
                place = Place.of(Position("", "files", last))
                break
    else:
        take(pending.num_rows)
        check_any(files, source.url, keys.left_out, dataset)
    return Look(
        rules=rules,
        device=0,
        began=began,
        ended=now(),
        files=files,
        bytes=size,
        state=state.hex(),
        place=place,
    )


def _rules(source: Storage, config: SourceConfig) -> str:
    """A digest of what decides which files are seen, and in which order."""
    parts = [_FORMAT, source.url, config.include, config.exclude, config.follow_symlinks]
    return xxhash.xxh3_64_hexdigest(json.dumps(parts).encode())
