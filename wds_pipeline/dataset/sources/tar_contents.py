"""What one tar of others holds: its members with the digests of their contents, and what is wrong with it.

The tar is read once, front to back; what was found is kept, so that it is not read again while it is the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.config_storage import Place
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.tar_members import read_members
from wds_pipeline.dataset.tar_scan import Walk
from wds_pipeline.errors import SourceError, VerificationError, may_pass
from wds_pipeline.storage import FileInfo, Storage, open_storage

# One row a member that is part of a sample, in the tar's order: `field` is in lower case, `offset` (bytes)
# where its data begin, `digest` the xxh3-128 of its content. `problem` as in `listing.LISTING`.
CONTENTS = pa.schema(
    [
        pa.field("key", pa.large_string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(16), nullable=False),
        pa.field("problem", pa.string()),
    ]
)
# Behind these, a tar has members that nobody can see, or may have had some.
DAMAGE = ("not_a_tar", "truncated", "bad_header", "no_end", "concatenated", "trailing_data")
_CUTS = ("truncated", "bad_header", "no_end")
_LEFT_OUT = {
    "dropping": "apple_double",
    "no_key": "no_key",
    "hidden": "reserved",
    "no_file": "no_file",
}
_FORMAT = 1
_NOTES = b"wds_pipeline.contents"


@dataclass(frozen=True)
class TarJob:
    """All that a worker needs to read one tar, and where it keeps what it finds, if anywhere."""

    place: Place
    file: FileInfo
    keep: Place | None
    kept: str


@dataclass
class TarContents:
    """A tar's members (`CONTENTS`), and by code what is wrong with it as a whole (`DAMAGE`).

    `left_out` counts the members that are in no sample, by the codes of `select.SKIPPED`; `examples` says
    what was found.
    """

    table: pa.Table
    damage: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)


def read_tar(job: TarJob) -> TarContents:
    """Reads a tar once, front to back, in windows of a few MB; writes what it found to `keep`.

    Raises SourceError when it cannot be read, or is written to; DestinationError.
    """
    tars = open_storage(job.place)
    where = tars.locate(job.file.path)
    try:
        with tars.open(job.file.path) as file:
            walk = Walk(file)
            digests = _digests(walk)
    except OSError as error:
        told = SourceError(f"{where}: cannot be read: {error.strerror or error}")
        told.passing = may_pass(error)
        raise told from error
    if walk.found.bytes != job.file.size or tars.stat(job.file.path) != job.file:
        told = SourceError(
            f"{where}: was written while it was read; build again when nobody writes it"
        )
        told.passing = True
        raise told
    found = _contents(walk, digests, job.file.path)
    if job.keep is not None:
        open_storage(job.keep).put(job.kept, _dump(found))
    return found


def load(keep: Storage, kept: str) -> TarContents | None:
    """What an earlier scan kept of a tar; None if there is nothing that can be read."""
    try:
        table = seal.read_parquet(keep, kept)
        notes = json.loads(table.schema.metadata[_NOTES])
        if notes.pop("format") != _FORMAT:
            return None
        return TarContents(table.replace_schema_metadata(None).cast(CONTENTS), **notes)
    except (FileNotFoundError, VerificationError, ValueError, KeyError, TypeError):
        return None


def _dump(found: TarContents) -> bytes:
    notes = {
        "format": _FORMAT, "damage": found.damage,
        "left_out": found.left_out, "examples": found.examples,
    }  # fmt: skip
    return seal.parquet_bytes(found.table.replace_schema_metadata({_NOTES: json.dumps(notes)}))


def _digests(walk: Walk) -> bytes:
    """Walks to the end; the digests of all its members' contents, 16 bytes each, in their order."""
    done = bytearray()
    state: Any = None  # of a member that goes on in the next window
    at = count = 0
    for found in walk.steps():
        buffer, base, end = walk.window
        with memoryview(buffer) as view:
            while count < len(found.sizes):
                begin = found.offsets[count] if state is None else at
                stop = found.offsets[count] + found.sizes[count]
                if stop <= end:
                    part = view[begin - base : stop - base]
                    if state is None:
                        done += xxhash.xxh3_128_digest(part)
                    else:
                        state.update(part)
                        done += state.digest()
                        state = None
                    part.release()
                    count += 1
                    continue
                state = state or xxhash.xxh3_128()
                if end > begin:
                    state.update(view[begin - base : end - base])
                at = max(begin, end)
                break
    return bytes(done)


def _contents(walk: Walk, digests: bytes, path: str) -> TarContents:
    walked = walk.found
    found = read_members(walked, path)
    table = found.table
    rows = np.searchsorted(np.array(walked.offsets, np.int64), table["offset"].to_numpy())
    every = np.frombuffer(digests, "V16")[: len(walked.offsets)]
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(rows), [None, pa.py_buffer(every[rows].tobytes())]
    )
    keys = table["key"].cast(pa.large_string()).combine_chunks()
    damage = {
        each.code: f"at byte {each.offset:,} {each.text}" if each.offset else each.text
        for each in walked.problems
        if each.code in DAMAGE
    }
    problems = np.full(len(rows), None, object)
    if {"not_utf8", "key_not_adjacent"} & {each.code for each in found.findings}:
        problems[_come_back(keys.to_pylist())] = "key_not_adjacent"
        problems[[not _is_utf8(walked.names[row]) for row in rows.tolist()]] = "name_not_utf8"
    if len(rows) and any(code in _CUTS for code in damage):
        last = keys[len(keys) - 1].as_py()
        problems[[key == last for key in keys.to_pylist()]] = "cut_off"
    columns = [
        keys, table["field"], table["offset"], table["size"], column, pa.array(problems, pa.string())
    ]  # fmt: skip
    contents = pa.table(columns, schema=CONTENTS)
    sparse = [each.text for each in walked.problems if each.code == "sparse"]
    if sparse:
        contents = pa.concat_tables([contents, _sparse(sparse)]).combine_chunks()
    result = TarContents(contents, damage)
    for each in found.findings:
        code = _LEFT_OUT.get(each.code)
        if code is not None:
            result.left_out[code] = result.left_out.get(code, 0) + each.count
            result.examples.setdefault(code, f"{path}: {each.message}")
    return result


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _come_back(keys: list[str]) -> np.ndarray:
    """Which rows are of a key whose members are not all next to each other."""
    seen: set[str] = set()
    again: set[str] = set()
    before = None
    for key in keys:
        if key != before:
            (again if key in seen else seen).add(key)
        before = key
    return np.fromiter((key in again for key in keys), bool, len(keys))


def _sparse(names: Iterable[str]) -> pa.Table:
    """Rows that put the samples of sparse members into the quarantine: without these they would be short."""

    def split() -> Iterator[dict[str, Any]]:
        for name in names:
            folder, slash, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            if stem and extension:
                yield {
                    "key": f"{folder}{slash}{stem}", "field": extension.lower(), "offset": 0,
                    "size": 0, "digest": bytes(16), "problem": "sparse_member",
                }  # fmt: skip

    return pa.Table.from_pylist(list(split()), schema=CONTENTS)
