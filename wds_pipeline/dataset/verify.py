"""Reads a stored shard back: is it what its seal, its member index and the plan say?

The reader is independent of the writer (see `tar_read`). Levels, each including those before:

stat     the tar and the member index are there, in the seal's size
digest   and the tar has the seal's digest
samples  and its members are the plan's and the index's, and form samples by WebDataset's rules
decode   and the content decodes, see `content`
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from wds_pipeline.dataset import content
from wds_pipeline.dataset.content import Facts
from wds_pipeline.dataset.seal import MEMBER_INDEX, MEMBERS, TAR, Seal, path, read_member_index
from wds_pipeline.dataset.shard_report import LEVELS, Rules, ShardReport, Thumbnail
from wds_pipeline.dataset.shard_report import MEMBERS as REPORT_MEMBERS
from wds_pipeline.dataset.tar_read import Member, OnePass, TarDamage, hasher, members
from wds_pipeline.dataset.verify_compare import (
    Damage,
    Held,
    compare_with_index,
    compare_with_plan,
)
from wds_pipeline.errors import VerificationError
from wds_pipeline.storage import Storage

THUMBNAILS = 8  # samples shown of each shard
_CAPTION = 240  # characters
# webdataset/tariterators.py: base_plus_ext; and what its readers skip
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_SKIPPED = re.compile(r"__[^/]*__($|/)")
_WHOLE_WINDOW = 1024 * 1024  # members up to this size are seen in place, without a copy
_CHEAP = 1024  # decoding less again costs less than remembering it
_NOT_DECODED = Facts()


def verify_shard(
    storage: Storage,
    seal: Seal,
    rules: Rules,
    expected: pa.Table | None = None,
    known: Mapping[tuple[str, bytes], Facts] | None = None,
) -> ShardReport:
    """Verifies one shard; damage does not raise but is among the report's findings.

    `expected` is what the plan says: columns name and size (bytes), in order. `known` holds facts
    that are true by `rules`, by field and content digest (see `known_facts`): such content is not
    decoded again. Memory: two MB, plus one member of at most `content.MAX_IN_MEMORY` bytes and what
    decoding it takes.
    """
    if rules.level not in LEVELS:
        raise ValueError(f"level {rules.level!r}; expected one of {', '.join(LEVELS)}")
    damage = Damage(seal.name, storage.locate(path(seal.name, TAR)))
    index = _read_index(storage, seal, damage)
    report = ShardReport(
        seal.name, seal.split, seal.slot, rules, seal.digest, seal.samples, seal.bytes,
        _claimed(index),
    )  # fmt: skip
    try:
        if rules.level == "stat":
            _check_stat(storage, seal, damage)
        else:
            with storage.open(path(seal.name, TAR)) as file:
                _read(file, seal, rules, index, expected, known or {}, report, damage)
    except FileNotFoundError:
        damage.add("missing_tar", f"is gone; expected {seal.bytes:,} bytes. Build the shard again")
    except OSError as error:
        damage.add("unreadable", f"cannot be read: {error.strerror}")
    report.findings = damage.findings()
    return report


def read_thumbnail(storage: Storage, rules: Rules, shard: str, key: str) -> Thumbnail | None:
    """One sample of a stored shard, to show; None if it cannot be read.

    For the few samples that a version's report speaks of: reads the member index, then the sample.
    """
    card = _Card(key)
    try:
        index = read_member_index(storage, shard)
        rows = index.filter(pc.equal(index.column("key"), key)).to_pylist()
        with storage.open(path(shard, TAR)) as file:
            for row in rows:
                if row["size"] <= content.MAX_IN_MEMORY and card.wants(rules, row["field"]):
                    file.seek(row["offset"])
                    card.look(rules, row["field"], file.read(row["size"]))
    except (OSError, ValueError, KeyError, VerificationError, pa.ArrowException):
        return None
    return card.thumbnail() if rows else None


def _read_index(storage: Storage, seal: Seal, damage: Damage) -> pa.Table | None:
    where = path(seal.name, MEMBERS)
    try:
        return read_member_index(storage, seal.name).select(MEMBER_INDEX.names).cast(MEMBER_INDEX)
    except FileNotFoundError:
        damage.add("missing_index", f"its member index {where} is gone. Build the shard again")
    except (VerificationError, pa.ArrowException, ValueError, KeyError, OSError) as error:
        damage.add("bad_index", f"its member index {where} cannot be read: {error}")
    return None


def _claimed(index: pa.Table | None) -> pa.Table:
    """What the index says of the members: all that is known where the tar is not read."""
    if index is None:
        return REPORT_MEMBERS.empty_table()
    columns = [
        index.column(each.name).combine_chunks()
        if each.name in ("key", "field", "size")
        else pa.array([False] * index.num_rows)
        if each.name == "decoded"
        else pa.nulls(index.num_rows, each.type)
        for each in REPORT_MEMBERS
    ]
    return pa.Table.from_arrays(columns, schema=REPORT_MEMBERS)


def _check_stat(storage: Storage, seal: Seal, damage: Damage) -> None:
    found = storage.stat(path(seal.name, TAR))
    if found is None:
        raise FileNotFoundError
    _check_size(found.size, seal, damage)


def _check_size(size: int, seal: Seal, damage: Damage) -> None:
    if size != seal.bytes:
        damage.add("wrong_size", f"has {size:,} bytes; its seal says {seal.bytes:,}")


def _read(
    file: BinaryIO,
    seal: Seal,
    rules: Rules,
    index: pa.Table | None,
    expected: pa.Table | None,
    known: Mapping[tuple[str, bytes], Facts],
    report: ShardReport,
    damage: Damage,
) -> None:
    hash = hasher(seal.digest)
    tar = OnePass(file, hash)
    _check_size(tar.size, seal, damage)
    if rules.level != "digest":
        walk = _Walk(tar, rules, _shown(index, rules), known, damage)
        whole = walk.run()
        report.members = walk.table()
        report.samples = walk.samples
        report.thumbnails = walk.thumbnails
        if whole and (walk.samples, len(walk.held.keys)) != (seal.samples, seal.members):
            damage.add(
                "wrong_count",
                f"has {walk.samples:,} samples of {len(walk.held.keys):,} members; its seal says "
                f"{seal.samples:,} of {seal.members:,}",
            )
        if index is not None:
            compare_with_index(walk.held, index, whole, damage)
        if expected is not None:
            compare_with_plan(walk.held, expected, whole, damage)
    for _ in tar.chunks(tar.size):
        pass
    if hash is None:
        damage.add("wrong_digest", f"its seal's digest {seal.digest!r} is of an unknown kind")
    elif (found := hash.hexdigest()) != seal.digest.partition(":")[2]:
        kind = seal.digest.partition(":")[0]
        damage.add("wrong_digest", f"has the digest {kind}:{found}; its seal says {seal.digest}")


def _hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(), seed=1)


def _shown(index: pa.Table | None, rules: Rules) -> set[str]:
    """The samples to show: those of the smallest hashes, which every sampling contains too."""
    if index is None or rules.level != "decode":
        return set()
    keys = pc.unique(index.column("key")).to_pylist()
    return {key for key in heapq.nsmallest(THUMBNAILS, keys, key=_hash) if _chosen(key, rules)}


def _chosen(key: str, rules: Rules) -> bool:
    if rules.level != "decode":
        return False
    return rules.sample >= 1 or _hash(key) < rules.sample * 2**64


@dataclass
class _Card:
    """Gathers what is shown of a sample: its first image, and how its first text starts."""

    key: str
    field: str = ""
    jpeg: bytes = b""
    width: int | None = None
    height: int | None = None
    caption: str = ""

    def wants(self, rules: Rules, name: str) -> str:
        """What the content of a field would be used for: image, text, or nothing."""
        kind = content.kind(rules.extensions_of(name))
        wanted = (kind == "image" and not self.jpeg) or (kind == "text" and not self.caption)
        return kind if wanted else ""

    def look(self, rules: Rules, name: str, data: bytes | memoryview) -> Facts | None:
        """Takes what it wants from the content; returns the facts if that meant to decode it."""
        kind = self.wants(rules, name)
        if kind == "text":
            start = bytes(data[: 4 * _CAPTION]).decode(errors="ignore")
            self.caption = " ".join(start.split())[:_CAPTION]
        if kind != "image":
            return None
        facts = content.check(name, rules.extensions_of(name), data, rules.max_pixels, True)
        if facts.thumbnail:
            self.field, self.jpeg = name, facts.thumbnail
            self.width, self.height = facts.width, facts.height
        return replace(facts, thumbnail=None)

    def thumbnail(self) -> Thumbnail:
        return Thumbnail(self.key, self.field, self.jpeg, self.caption, self.width, self.height)


@dataclass
class _Walk:
    """One pass over the members: what each is, its content's digest, and whether it decodes."""

    tar: OnePass
    rules: Rules
    shown: set[str]
    known: Mapping[tuple[str, bytes], Facts]
    damage: Damage
    held: Held = field(default_factory=Held)
    thumbnails: list[Thumbnail] = field(default_factory=list)
    samples: int = 0
    _digests: list[bytes] = field(default_factory=list)
    _facts: list[Facts] = field(default_factory=list)
    _seen: dict[tuple[str, bytes], Facts] = field(default_factory=dict)
    _keys: set[str] = field(default_factory=set)
    _fields: set[str] = field(default_factory=set)
    _key: str | None = None
    _decodes: bool = False
    _card: _Card | None = None

    def run(self) -> bool:
        """Walks to the end; says whether it came there."""
        try:
            for member in members(self.tar):
                self._take(member)
        except TarDamage as error:
            self.damage.add(error.code, str(error))
            return False
        finally:
            self._end_sample()
        return True

    def table(self) -> pa.Table:
        """The members, by `shard_report.MEMBERS`."""
        held, facts = self.held, self._facts
        columns = [held.keys, held.fields, held.sizes, self._digests]
        columns += [list(map(attrgetter(each), facts)) for each in REPORT_MEMBERS.names[4:]]
        arrays = [
            pa.array(values, each.type)
            for values, each in zip(columns, REPORT_MEMBERS, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=REPORT_MEMBERS)

    def _take(self, member: Member) -> None:
        name = member.name
        if not name.isascii():  # bytes that are not UTF-8 came as surrogates
            name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if member.type != b"0":
            self.damage.add(
                "unexpected_member",
                f"{name!r} is of tar's type {member.type!r}; expected regular files only",
            )
        match = _NAME.fullmatch(name)
        if match is None or _SKIPPED.search(name):
            self.damage.add("bad_name", f"{name!r} is a name that webdataset's readers skip")
        key, extension = match.groups() if match else (name, "")
        extension = extension.lower()
        if key != self._key:
            self._start_sample(key)
        elif extension in self._fields:
            self.damage.add("duplicate_field", f"the field {extension!r} twice", key, extension)
        self._fields.add(extension)
        self.held.names.append(name)
        self.held.keys.append(key)
        self.held.fields.append(extension)
        self.held.offsets.append(member.offset)
        self.held.sizes.append(member.size)
        self._take_content(extension, member.size)

    def _start_sample(self, key: str) -> None:
        self._end_sample()
        self._key = key
        self._fields = set()
        self._decodes = _chosen(key, self.rules)
        if key in self._keys:
            self.damage.add(
                "key_not_adjacent", f"the members of {key!r} are not next to each other", key
            )
            return
        self._keys.add(key)
        self.samples += 1
        if key in self.shown:
            self._card = _Card(key)

    def _end_sample(self) -> None:
        if self._card is not None:
            self.thumbnails.append(self._card.thumbnail())
            self._card = None

    def _take_content(self, name: str, size: int) -> None:
        data: memoryview | None = None
        if size <= _WHOLE_WINDOW:
            data = self.tar.take(size)
            digest = xxhash.xxh3_128_digest(data)
        else:
            hash = xxhash.xxh3_128()
            keep = bytearray() if self._decodes and size <= content.MAX_IN_MEMORY else None
            for chunk in self.tar.chunks(size):
                hash.update(chunk)
                if keep is not None:
                    keep += chunk
            digest, data = hash.digest(), None if keep is None else memoryview(keep)
        self._digests.append(digest)
        self._facts.append(
            self._decode(name, size, digest, data) if self._decodes else _NOT_DECODED
        )

    def _decode(self, name: str, size: int, digest: bytes, data: memoryview | None) -> Facts:
        if data is None:
            return content.too_large(size)
        looked = self._card.look(self.rules, name, data) if self._card is not None else None
        facts = self._seen.get((name, digest)) or self.known.get((name, digest)) or looked
        if facts is None:
            extensions = self.rules.extensions_of(name)
            facts = content.check(name, extensions, data, self.rules.max_pixels)
        if size > _CHEAP:
            self._seen[name, digest] = facts
        return facts
