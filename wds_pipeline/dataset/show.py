"""One sample of a published version: found through the ledger and the member index, read by ranges."""

from __future__ import annotations

import difflib
import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import SamplesConfig
from wds_pipeline.dataset import content, samples, seal, version
from wds_pipeline.dataset.version import Manifest, ShardEntry
from wds_pipeline.errors import DestinationError, VerificationError, VersionError
from wds_pipeline.storage import Storage

_TEXT = 1000  # bytes of a text that are looked at
_NEAR = 2000  # keys that are compared with one that is not there
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Member:
    """One field of a sample: where its data are in the tar, in bytes, and what they look like."""

    field: str
    offset: int
    size: int
    kind: str
    text: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None


@dataclass(frozen=True)
class Sample:
    """A sample and its place; `position` counts from 0 within the shard."""

    key: str
    split: str
    shard: ShardEntry
    position: int
    members: list[Member]


def read_sample(storage: Storage, manifest: Manifest, key: str | None = None) -> Sample:
    """A sample of a version, or its first one.

    Raises VersionError when there is no such sample, naming its reason if it is in the quarantine,
    or else the nearest keys; VerificationError when its shard is damaged.
    """
    shard, key, position = _find(storage, manifest, key)
    try:
        index = seal.read_member_index(storage, shard.name)
        rows = index.filter(pc.equal(index["key"], key)).to_pylist()
    except FileNotFoundError:
        raise _damaged(manifest, shard, "its member index is gone") from None
    if not rows:
        raise _damaged(manifest, shard, f"its member index lacks {key!r}")
    rules = _samples_config(manifest)
    members = [_look(storage, manifest, shard, row, rules) for row in rows]
    return Sample(key, shard.split, shard, position, members)


def save_sample(storage: Storage, sample: Sample, folder: Path) -> list[Path]:
    """Writes a sample's files into a folder, each under the last part of its key.

    In place of files of the same names, also if these are links to elsewhere. Raises
    DestinationError when that is not possible.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for member in sample.members:
            target = folder / f"{sample.key.rpartition('/')[2]}.{member.field}".replace(os.sep, "_")
            unfinished = folder / f".tmp-{uuid.uuid4().hex}"
            try:
                with open(unfinished, "xb") as file:
                    for chunk in _chunks(storage, sample.shard, member):
                        file.write(chunk)
                os.replace(unfinished, target)
            finally:
                unfinished.unlink(missing_ok=True)
            written.append(target)
    except OSError as error:
        raise DestinationError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; choose another folder"
        ) from error
    return written


def _find(storage: Storage, manifest: Manifest, key: str | None) -> tuple[ShardEntry, str, int]:
    ledger = version.read_table(storage, manifest, version.LEDGER)
    if manifest.transforms:
        return _find_made(storage, manifest, ledger, key)
    row = 0 if key is None else pc.index(ledger["key"], pa.scalar(key, pa.large_string())).as_py()
    if row < 0:
        assert key is not None
        raise VersionError(_unknown(storage, manifest, ledger, key))
    split, slot = ledger["split"][row].as_py(), ledger["slot"][row].as_py()
    before = ledger.slice(0, row)
    same = pc.and_(
        pc.equal(before["split"].cast(pa.string()), split), pc.equal(before["slot"], slot)
    )
    for shard in manifest.shards:
        if (shard.split, shard.slot) == (split, slot):
            return shard, ledger["key"][row].as_py(), pc.sum(same).as_py() or 0
    raise VersionError(
        f"{manifest.dataset}: version {manifest.version}: its ledger names a shard "
        f"{split}-{slot:06d} that its manifest lacks; restore either from a backup"
    )


def _find_made(
    storage: Storage, manifest: Manifest, ledger: pa.Table, key: str | None
) -> tuple[ShardEntry, str, int]:
    """A sample that transforms made: in the shard that its key begins with, or that of its origin."""
    shards = {(shard.split, shard.slot): shard for shard in manifest.shards if shard.samples}
    if key is None:
        candidates = list(shards.values())[:1]
    else:
        ends = [at for at, char in enumerate(key) if char in "/-_"]
        names = [key, *(key[:end] for end in reversed(ends))]
        candidates = [shard for shard in shards.values() if shard.partition in names]
        rows = ledger.filter(pc.is_in(ledger["key"], pa.array(names, pa.large_string())))
        places = zip(rows["split"].to_pylist(), rows["slot"].to_pylist(), strict=True)
        candidates += [shards[place] for place in places if place in shards]
    for shard in candidates:
        try:
            keys = pc.unique(seal.read_member_index(storage, shard.name)["key"]).to_pylist()
        except FileNotFoundError:
            raise _damaged(manifest, shard, "its member index is gone") from None
        if key is None or key in keys:
            return shard, key or keys[0], keys.index(key) if key else 0
    if key is None:
        raise VersionError(f"{manifest.dataset}: version {manifest.version} has no samples")
    known = pc.index(ledger["key"], pa.scalar(key, pa.large_string())).as_py() >= 0
    if known:
        raise VersionError(
            f"{manifest.dataset}: version {manifest.version} has no sample {key!r}: the transforms "
            f"({', '.join(manifest.transforms)}) left it out, or gave it other keys"
        )
    raise VersionError(_unknown(storage, manifest, ledger, key))


def _unknown(storage: Storage, manifest: Manifest, ledger: pa.Table, key: str) -> str:
    where = f"{manifest.dataset}: version {manifest.version} has no sample {key!r}"
    quarantine = version.read_table(storage, manifest, version.QUARANTINE)
    rows = quarantine.filter(pc.equal(quarantine["key"], key)).to_pylist()
    if rows:
        reason, detail = rows[0]["reason"], rows[0]["detail"]
        return f"{where}: it is in the quarantine: {reason}: {detail or samples.advice(reason)}"
    stem = key.rpartition("/")[0] + "/" if "/" in key else ""
    stem += key.rpartition("/")[2].partition(".")[0]
    if stem != key and pc.index(ledger["key"], pa.scalar(stem, pa.large_string())).as_py() >= 0:
        return f"{where}; did you mean {stem!r}? A key has no extension"
    near = difflib.get_close_matches(key, _neighbours(ledger["key"], key), n=3, cutoff=0.3)
    if not near:
        near = [ledger["key"][0].as_py()]
    return f"{where}; the nearest keys: {', '.join(map(repr, near))}"


def _neighbours(keys: pa.ChunkedArray, key: str) -> list[str]:
    """Keys that are worth a comparison: that hold the last part, or are near in the alphabet."""
    last = key.rpartition("/")[2] or key
    found = keys.filter(pc.match_substring(keys, last, ignore_case=True)).slice(0, _NEAR // 4)
    after = pc.greater_equal(keys, pa.scalar(key, pa.large_string()))
    following = pc.array_sort_indices(keys.filter(after))[: _NEAR // 4]
    preceding = pc.array_sort_indices(keys.filter(pc.invert(after)), order="descending")
    return [
        *found.to_pylist(),
        *keys.filter(after).take(following).to_pylist(),
        *keys.filter(pc.invert(after)).take(preceding[: _NEAR // 4]).to_pylist(),
    ]


def _samples_config(manifest: Manifest) -> SamplesConfig:
    """The version's own rules, which the YAML file may have left behind."""
    try:
        return SamplesConfig.model_validate(manifest.config.get("samples") or {})
    except ValueError:
        return SamplesConfig()


def _look(
    storage: Storage,
    manifest: Manifest,
    shard: ShardEntry,
    row: dict[str, object],
    config: SamplesConfig,
) -> Member:
    name, offset, size = str(row["field"]), int(str(row["offset"])), int(str(row["size"]))
    extensions = tuple((config.fields or {}).get(name) or (name,))
    kind = content.kind(extensions)
    plain = Member(name, offset, size, kind)
    wanted = size if kind == "image" and size <= content.MAX_IN_MEMORY else min(size, _TEXT)
    try:
        with storage.open(shard.path) as file:
            file.seek(offset)
            data = file.read(wanted)
    except FileNotFoundError:
        raise _damaged(manifest, shard, "it is gone") from None
    if len(data) < wanted:
        raise _damaged(manifest, shard, "it is cut short")
    if kind in ("text", "json", "number"):
        # The last character may be cut.
        text = data.decode("utf-8", "ignore" if wanted < size else "replace")
        return Member(name, offset, size, kind, text=text)
    if kind == "image":
        width, height, form = _image_size(data)
        return Member(name, offset, size, kind, width=width, height=height, format=form)
    return plain


def _image_size(data: bytes) -> tuple[int | None, int | None, str | None]:
    """From the header alone."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.width, image.height, image.format
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None, None, None


def _chunks(storage: Storage, shard: ShardEntry, member: Member) -> Iterator[bytes]:
    with storage.open(shard.path) as file:
        file.seek(member.offset)
        left = member.size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise VerificationError(f"{storage.locate(shard.path)}: it is cut short")
            left -= len(chunk)
            yield chunk


def _damaged(manifest: Manifest, shard: ShardEntry, what: str) -> VerificationError:
    return VerificationError(
        f"{manifest.dataset}: {shard.name}: {what}; `wds-pipeline verify {manifest.dataset}` shows "
        "the damage; remove the damaged files and build again"
    )
