"""A foreign tar's members as samples, by WebDataset's rules; and what readers would trip over.

Which members are in no sample, and why, is counted and told: nothing is dropped in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from wds_pipeline.dataset.seal import MEMBER_INDEX
from wds_pipeline.dataset.shard_report import Finding
from wds_pipeline.dataset.tar_scan import Problem, Walked

# `start` is where the member's first header begins, `extension` the field as the tar has it.
TAR_MEMBERS = pa.schema(
    [
        *MEMBER_INDEX,
        pa.field("start", pa.int64(), nullable=False),
        pa.field("extension", pa.string(), nullable=False),
    ]
)
# webdataset/tariterators.py: base_plus_ext; and what its readers skip
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_SKIPPED = re.compile(r"__[^/]*__($|/)")
_DROPPING = re.compile(r"(.*/)?(\._[^/]*|\.DS_Store)|(.*/)?__MACOSX/.*", re.DOTALL)
_PLAIN_NAME = 100  # bytes; behind it, headers have a prefix or an extension

_ADVICE = {
    "not_a_tar": "Offsets need a plain tar: decompress it, or leave it out",
    "truncated": "Fetch or write it again; what is whole is indexed",
    "bad_header": "Fetch it again; the members before it are indexed",
    "no_end": "It was cut between two members, or its writer never closed it: compare its size with the "
    "original's; all members that are there are indexed",
    "lone_zero_block": "Every reader takes it; GNU tar warns",
    "concatenated": "Readers stop at the first archive's end: join them with `tar --concatenate`, or split "
    "the file there. The first is indexed",
    "trailing_data": "Readers never see them; fetch it again if that is not meant",
    "sparse": "Its holes are not stored, so it cannot be read by its offset: pack it again without "
    "--sparse. It is not indexed",
}
_WARNINGS = ("lone_zero_block",)


@dataclass
class Members:
    """What one tar holds: `table` has the columns of `TAR_MEMBERS`, in the tar's order.

    `misread` says, by code, why other readers would see something else than this index.
    """

    table: pa.Table
    samples: int
    fields: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    misread: dict[str, str] = field(default_factory=dict)


class _Columns:
    """The members that are in samples, and examples of those that are not."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.keys: list[str] = []
        self.extensions: list[int] = []
        self.codes: dict[str, int] = {}
        self.left_out: dict[str, list[str]] = {}

    def leave_out(self, code: str, name: str) -> None:
        self.left_out.setdefault(code, []).append(name)

    def add(self, row: int, name: str) -> None:
        """One name, by the rule: the key ends at the first dot behind the last slash."""
        dot = name.find(".", name.rfind("/") + 1)
        match = None if dot > 0 and name[dot - 1] != "/" and "__" not in name else name
        if match is not None:
            if name.endswith("/"):
                return
            if _DROPPING.fullmatch(name):
                return self.leave_out("dropping", name)
            found = _NAME.fullmatch(name)
            if found is None or _SKIPPED.search(name):
                return self.leave_out("no_key" if found is None else "hidden", name)
            dot = len(found[1])
        elif name.startswith("__MACOSX/"):
            return self.leave_out("dropping", name)
        self.rows.append(row)
        self.keys.append(name[:dot])
        extension = name[dot + 1 :]
        code = self.codes.get(extension)
        if code is None:
            code = self.codes[extension] = len(self.codes)
        self.extensions.append(code)
        return None


def read_members(walked: Walked, shard: str) -> Members:
    """The samples of a tar; `shard` is its name in the findings."""
    columns = _Columns()
    unreadable = _add_all(columns, walked.names)
    samples = _samples(columns)
    found = Members(_table(columns, walked), samples.count, samples.fields)
    notes = _Notes(shard, found)
    for problem in walked.problems:
        notes.of_archive(problem)
    notes.of_samples(samples)
    notes.of_names(columns, walked, unreadable)
    return found


def _add_all(columns: _Columns, names: list[bytes]) -> list[str]:
    """Takes all names; returns those that are not UTF-8, as they are shown."""
    unreadable = []
    add = columns.add
    for row, raw in enumerate(names):
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = raw.decode(errors="backslashreplace")
            unreadable.append(name)
        add(row, name)
    return unreadable


def _table(columns: _Columns, walked: Walked) -> pa.Table:
    codes = pa.array(columns.extensions, pa.int32())
    written = pa.array(list(columns.codes), pa.string())
    lower = pa.array([each.lower() for each in columns.codes], pa.string())
    rows = np.array(columns.rows, np.int64)

    def numbers(values: list[int]) -> np.ndarray:
        return np.array(values, np.int64)[rows] if len(rows) else np.empty(0, np.int64)

    arrays = [
        pa.array(columns.keys, pa.string()),
        lower.take(codes),
        pa.array(numbers(walked.offsets)),
        pa.array(numbers(walked.sizes)),
        pa.array(numbers(walked.starts)),
        written.take(codes),
    ]
    return pa.Table.from_arrays(arrays, schema=TAR_MEMBERS)


@dataclass
class _Samples:
    count: int
    fields: dict[str, int]
    again: list[str]  # keys that come back later
    twice: list[tuple[str, str]]  # a field twice in one sample
    upper: list[str]


def _samples(columns: _Columns) -> _Samples:
    keys = columns.keys
    first = [n for n in range(len(keys)) if not n or keys[n] != keys[n - 1]]
    names = sorted({each.lower() for each in columns.codes})
    number = {name: at for at, name in enumerate(names)}
    lower = np.array([number[each.lower()] for each in columns.codes] or [0], np.int64)
    codes = lower[np.array(columns.extensions, np.int64)] if keys else np.empty(0, np.int64)
    counts = np.bincount(codes, minlength=len(names)).tolist() if keys else []
    again: list[str] = []
    seen: set[str] = set()
    if len({keys[n] for n in first}) < len(first):
        for n in first:
            if keys[n] in seen:
                again.append(keys[n])
            seen.add(keys[n])
    begins = np.zeros(len(keys), np.int64)
    begins[first] = 1
    cells = (np.cumsum(begins) - 1) * max(1, len(names)) + codes
    unique, times = np.unique(cells, return_counts=True)
    twice = [
        (keys[first[cell // len(names)]], names[cell % len(names)])
        for cell in unique[times > 1].tolist()
    ]
    upper = [each for each in columns.codes if each != each.lower()]
    return _Samples(len(first), dict(zip(names, counts, strict=False)), again, twice, upper)


class _Notes:
    """Puts findings into words."""

    def __init__(self, shard: str, found: Members) -> None:
        self.shard = shard
        self.found = found

    def add(
        self, severity: str, code: str, message: str, count: int = 1, key: str = "", name: str = ""
    ) -> None:
        self.found.findings.append(Finding(severity, code, self.shard, key, name, message, count))

    def misread(self, code: str, text: str) -> None:
        """Other readers see something else than the index says."""
        self.found.misread[code] = text

    def of_archive(self, problem: Problem) -> None:
        severity = "warning" if problem.code in _WARNINGS else "error"
        place = "" if problem.code == "not_a_tar" else f"at byte {problem.offset:,} "
        what = f"the sparse file {problem.text!r}" if problem.code == "sparse" else problem.text
        self.add(severity, problem.code, f"{place}{what}. {_ADVICE[problem.code]}")
        if severity == "error":
            self.misread(problem.code, what)

    def of_samples(self, samples: _Samples) -> None:
        if samples.again:
            key, count = samples.again[0], len(samples.again)
            self.add(
                "error",
                "key_not_adjacent",
                f"the members of {key!r} are not next to each other: readers see a second, partial "
                "sample. Sort the members by name when you write the tar (tar --sort=name)",
                count,
                key,
            )
            self.misread("key_not_adjacent", f"{key!r} comes back later")
        if samples.twice:
            (key, name), count = samples.twice[0], len(samples.twice)
            self.add(
                "error",
                "duplicate_field",
                f"{key!r} has the field {name!r} twice: webdataset fails there. Write the tar again "
                "with one of them",
                count,
                key,
                name,
            )
            self.misread("duplicate_field", f"{key!r} has {name!r} twice")
        if samples.upper:
            self.add(
                "warning",
                "upper_case",
                f"extensions in upper case, such as {samples.upper[0]!r}: readers take them in lower "
                "case, Energon and DALI as they are",
                len(samples.upper),
            )

    def of_names(self, columns: _Columns, walked: Walked, unreadable: list[str]) -> None:
        left = columns.left_out
        if names := left.get("dropping"):
            self.add(
                "warning",
                "dropping",
                f"droppings of macOS, such as {names[0]!r}, are left out; other readers make samples "
                "of them. Write the tar with COPYFILE_DISABLE=1, or remove them with `tar --delete`",
                len(names),
            )
            self.misread("dropping", f"{names[0]!r} is a dropping of macOS")
        if names := left.get("no_key"):
            self.add(
                "warning",
                "no_key",
                f"names without a key and an extension, such as {names[0]!r}: webdataset skips them, "
                "and so does the index",
                len(names),
            )
            if seen := [each for each in names if "." in each]:
                self.misread("no_key", f"{seen[0]!r} has no key and extension by webdataset's rule")
        if names := left.get("hidden"):
            text = f"names with __…__, such as {names[0]!r}: webdataset skips them, and so does the index"
            self.add("warning", "hidden", text, len(names))
            self.misread("hidden", f"{names[0]!r} is skipped by webdataset alone")
        for what, count in walked.others.items():
            self.add("warning", "no_file", f"{what}: readers skip them", count)
        if unreadable:
            text = f"names that are not UTF-8, such as {unreadable[0]!r}; the index shows them with escapes"
            self.add("warning", "not_utf8", text, len(unreadable))
            self.misread("not_utf8", f"{unreadable[0]!r} is not UTF-8")
        long = [each for each in walked.names if len(each) > _PLAIN_NAME]
        if long:
            shown = long[0].decode(errors="backslashreplace")
            self.misread("long_name", f"the name {shown!r} has {len(long[0])} bytes")
        for kind, count in walked.extended.items():
            if kind == "gnu":
                self.add("warning", "gnu_names", "long names by GNU's extension", count)
            elif count > 1 or count == len(walked.names):
                text = "PAX headers, 1,024 bytes each: pack without them to save the room"
                self.add("warning", "pax", text, count)
