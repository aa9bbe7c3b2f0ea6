"""The findings of a version: those of its shards, and those that no single shard can show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wds_pipeline.dataset import report_checks as checks
from wds_pipeline.dataset.report_checks import Members
from wds_pipeline.dataset.shard_report import Finding


@dataclass(frozen=True)
class Limits:
    """How much is listed or shown; what is left out is always counted."""

    findings: int = 50  # of each code
    members: int = 8  # of a group with the same content
    quarantine: int = 200
    thumbnails: int = 60
    pictures: int = 40  # of samples that findings speak of


class Place(NamedTuple):
    """Where a sample is."""

    split: str
    shard: str
    key: str


@dataclass(frozen=True)
class Group:
    """Samples with the same content in `field`; `severity` is warning or error.

    `code` is duplicate (in one split) or leak (in several); `count` is of all, `places` a part.
    """

    severity: str
    code: str
    field: str
    digest: str
    count: int
    places: list[Place]


class Findings:
    """Counts all, lists a bounded part of each code."""

    def __init__(self, limits: Limits) -> None:
        self.limit = limits.findings
        self.members = limits.members
        self._counts: Counter[tuple[str, str]] = Counter()
        self._listed: dict[tuple[str, str], list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        """Counts a finding, and lists it within the limit."""
        kind = finding.severity, finding.code
        self._counts[kind] += finding.count
        listed = self._listed.setdefault(kind, [])
        if len(listed) < self.limit:
            listed.append(finding)

    def count(self, severity: str, code: str, more: int) -> None:
        """Counts findings that are not listed."""
        if more > 0:
            self._counts[severity, code] += more

    def note(self, severity: str, code: str, message: str, shard: str = "") -> None:
        """Adds a finding that is of no single sample."""
        self.add(Finding(severity, code, shard, "", "", message))

    def counts(self) -> dict[tuple[str, str], int]:
        """How many there are, by (severity, code), errors first."""
        return {kind: self._counts[kind] for kind in sorted(self._counts)}

    def listed(self) -> list[Finding]:
        """Those listed, in the same order."""
        return [each for kind in sorted(self._listed) for each in self._listed[kind]]


def _place(members: Members, row: int) -> Place:
    return Place(
        members.splits[members.split[row]], members.shards[members.shard[row]], members.key(row)
    )


def check_keys(members: Members, findings: Findings) -> None:
    """Notes keys that are in several places."""
    groups = checks.repeated_keys(members)
    for rows in groups[: findings.limit]:
        places = [_place(members, row) for row in rows]
        where = ", ".join(f"{each.shard} ({each.split})" for each in places[: findings.members])
        findings.add(
            Finding(
                "error", "duplicate_key", places[0].shard, places[0].key, "",
                f"the key {places[0].key!r} is {len(rows):,} times in the version: {where}; "
                "expected once",
            )
        )  # fmt: skip
    findings.count("error", "duplicate_key", len(groups) - findings.limit)


def check_content(members: Members, findings: Findings) -> None:
    """Notes content that does not decode, which the policy kept."""
    for code, rows in checks.problems(members).items():
        for row in rows[: findings.limit].tolist():
            place, name = _place(members, row), members.fields[members.field[row]]
            detail = members.table.column("detail")[row].as_py()
            findings.add(
                Finding(
                    "warning", code, place.shard, place.key, name,
                    f"{place.key}.{name}: {detail}; published all the same, by on_invalid",
                )
            )  # fmt: skip
        findings.count("warning", code, len(rows) - findings.limit)


def check_required(members: Members, required: Sequence[str], findings: Findings) -> None:
    """Notes samples without a required field, which the policy kept."""
    for name in required:
        rows = checks.samples_without(members, name)
        for row in rows[: findings.limit].tolist():
            place = _place(members, row)
            findings.add(
                Finding(
                    "warning", "missing_field", place.shard, place.key, name,
                    f"{place.key} has no {name}, which is required; published all the same, by "
                    "on_missing",
                )
            )  # fmt: skip
        findings.count("warning", "missing_field", len(rows) - findings.limit)


def check_duplicates(
    members: Members, fields: Sequence[str], on_leak: str, findings: Findings
) -> list[Group]:
    """Notes samples whose content in one of `fields` is the same; returns those listed."""
    listed: list[Group] = []
    taken: Counter[str] = Counter()
    for rows in checks.same_content(members, fields):
        leak = bool((members.split[rows] != members.split[rows[0]]).any())
        code = "leak" if leak else "duplicate"
        severity = "error" if leak and on_leak == "error" else "warning"
        taken[code] += 1
        if taken[code] > findings.limit:
            findings.count(severity, code, 1)
            continue
        group = _group(members, rows, severity, code, findings.members)
        listed.append(group)
        first, more = group.places[0], group.count - len(group.places)
        where = ", ".join(f"{each.key} ({each.split})" for each in group.places)
        findings.add(
            Finding(
                severity, code, first.shard, first.key, group.field,
                f"{group.count:,} samples have the same {group.field}: {where}"
                + (f" and {more:,} more" if more else ""),
            )
        )  # fmt: skip
    return sorted(listed, key=lambda each: each.code == "duplicate")  # leaks first


def _group(
    members: Members, rows: NDArray[np.int64], severity: str, code: str, limit: int
) -> Group:
    # At least one of each split: a leak must show where it leaks.
    _, first_of_split = np.unique(members.split[rows], return_index=True)
    rest = [each for each in range(len(rows)) if each not in set(first_of_split[:limit].tolist())]
    shown = sorted([*first_of_split[:limit].tolist(), *rest[: max(0, limit - len(first_of_split))]])
    return Group(
        severity,
        code,
        members.fields[members.field[rows[0]]],
        "xxh3-128:" + members.table.column("digest")[int(rows[0])].as_py().hex(),
        len(rows),
        [_place(members, rows[each]) for each in shown],
    )
