"""The report across a version: what went in, what came out, and what is not as it should be.

`report.json` is `Report.to_json()`; the page for people is `report_html`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.dataset import report_checks as checks
from wds_pipeline.dataset.distributions import Distribution
from wds_pipeline.dataset.report_checks import Members
from wds_pipeline.dataset.report_findings import (
    Findings,
    Group,
    Limits,
    Place,
    check_content,
    check_duplicates,
    check_keys,
    check_required,
)
from wds_pipeline.dataset.shard_report import Finding, ShardReport, Thumbnail

FORMAT_VERSION = 1


class ShardRow(NamedTuple):
    """A shard of the version; `cause` says why this build packed it, or that it did not."""

    name: str
    split: str
    slot: int
    samples: int
    bytes: int
    cause: str


@dataclass(frozen=True)
class Card:
    """A sample to show."""

    place: Place
    thumbnail: Thumbnail


@dataclass
class Report:
    """A version, verified. `samples` and `files` state what went in and where it is now.

    `counts` has all findings by (severity, code); `findings`, `groups` and `quarantine` list a
    bounded part. Sizes are in bytes.
    """

    dataset: str
    about: str
    level: str
    sample: float
    samples: dict[str, Any]
    files: dict[str, Any]
    splits: list[dict[str, Any]]
    shards: list[ShardRow]
    fields: list[dict[str, Any]]
    counts: dict[tuple[str, str], int]
    findings: list[Finding]
    groups: list[Group]
    distributions: list[Distribution]
    quarantine: list[dict[str, Any]]
    sheet: list[Card]
    pictures: list[Card]

    @property
    def errors(self) -> int:
        return sum(count for (severity, _), count in self.counts.items() if severity == "error")

    @property
    def warnings(self) -> int:
        return sum(count for (severity, _), count in self.counts.items() if severity == "warning")

    @property
    def passed(self) -> bool:
        return not self.errors

    def summary(self) -> dict[str, Any]:
        """A few numbers, for logs and for Dagster's metadata."""
        return {
            "passed": self.passed,
            "level": self.level,
            "samples_in": self.samples["in"],
            "published": self.samples["published"],
            "quarantined": self.samples["quarantined"],
            "shards": len(self.shards),
            "bytes": sum(each.bytes for each in self.shards),
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": {code: count for (_, code), count in self.counts.items()},
        }

    def to_json(self) -> bytes:
        """The content of report.json: the same for the same version, keys in a fixed order."""
        values = {
            "format_version": FORMAT_VERSION,
            "dataset": self.dataset,
            "about": self.about,
            "passed": self.passed,
            "level": self.level,
            "sample": self.sample,
            "samples": self.samples,
            "files": self.files,
            "splits": self.splits,
            "fields": self.fields,
            "findings": {
                "errors": self.errors,
                "warnings": self.warnings,
                "counts": [
                    {"severity": severity, "code": code, "count": count}
                    for (severity, code), count in self.counts.items()
                ],
                "listed": [asdict(each) for each in self.findings],
            },
            "same_content": [
                asdict(each) | {"places": [place._asdict() for place in each.places]}
                for each in self.groups
            ],
            "distributions": [asdict(each) for each in self.distributions],
            "quarantine": self.quarantine,
            "shards": [each._asdict() for each in self.shards],
        }
        return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode(
            errors="backslashreplace"
        )


def make_report(
    *,
    dataset: str,
    level: str,
    reports: Iterable[ShardReport],
    samples_in: int,
    quarantine: pa.Table,
    files: dict[str, int],
    required: Sequence[str],
    shards: Sequence[ShardRow],
    on_leak: Literal["warn", "error"],
    duplicate_fields: Sequence[str] | None = None,
    limits: Limits | None = None,
    picture: Callable[[str, str], Thumbnail | None] | None = None,
    about: str = "",
    inputs: Mapping[str, int] | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Report:
    """Puts the shards' reports together and checks what no single shard can show.

    `samples_in` is how many samples the source had, counted before anything was left out. `quarantine`
    has the columns key, reason, detail, files (list of source paths), bytes. `files` counts the
    source's files: `seen`, and where each of them went. `duplicate_fields` are those whose equal
    content makes samples duplicates; None: images, sound, video and arrays, and only where there are
    none of these, text. `picture` gives the thumbnail of a sample by its shard and key, for those of
    findings (see `verify.read_thumbnail`). `about` says which version this is. Where transforms made
    the samples, `inputs` counts by split those that they were made of, `left_out` by transform those of
    which nothing came.
    """
    limits = limits or Limits()
    shards = [ShardRow(*each) for each in shards]
    by_name = {each.name: each for each in reports}
    listed = [by_name[each.name] for each in shards if each.name in by_name]
    members = checks.gather(listed)
    findings = Findings(limits)
    for report in listed:
        for finding in report.findings:
            findings.add(finding)
    for row in shards:
        if row.name not in by_name:
            findings.note("error", "unverified", f"shard {row.name} was not verified", row.name)
    check_keys(members, findings)
    check_content(members, findings)
    check_required(members, required, findings)
    extensions = listed[0].rules.extensions if listed else {}
    compared = (
        checks.compared_fields(members, extensions)
        if duplicate_fields is None
        else [each for each in duplicate_fields if each in members.fields]
    )
    groups = check_duplicates(members, compared, on_leak, findings)
    samples = _account_samples(samples_in, members, shards, quarantine, findings, inputs)
    if inputs is not None:
        samples["left_out"] = dict(left_out or {})
    cards = _sheet(listed, limits)
    return Report(
        dataset=dataset,
        about=about,
        level=level,
        sample=min((each.sample for each in listed), default=1.0),
        samples=samples,
        files=_account_files(files, findings),
        splits=_splits(shards, inputs),
        shards=list(shards),
        fields=checks.field_rows(members, required),
        counts=findings.counts(),
        findings=findings.listed(),
        groups=groups,
        distributions=checks.distributions(members),
        quarantine=quarantine.slice(0, limits.quarantine).to_pylist(),
        sheet=cards,
        pictures=_pictures(findings.listed(), groups, shards, cards, picture, limits),
    )


def _account_samples(
    samples_in: int,
    members: Members,
    shards: Sequence[ShardRow],
    quarantine: pa.Table,
    findings: Findings,
    inputs: Mapping[str, int] | None,
) -> dict[str, Any]:
    reasons = pc.value_counts(quarantine.column("reason")).to_pylist()
    by_reason = {each["values"]: each["counts"] for each in reasons}
    claimed = sum(each.samples for each in shards)
    left_out = quarantine.num_rows
    if members.samples != claimed:
        findings.note(
            "error", "accounting",
            f"{members.samples:,} samples were read back; the version says {claimed:,}",
        )  # fmt: skip
    used = members.samples if inputs is None else sum(inputs.values())
    balanced = samples_in == used + left_out
    if not balanced:
        findings.note(
            "error", "accounting",
            f"{samples_in:,} samples went in; {used:,} published + {left_out:,} "
            f"quarantined = {used + left_out:,}",
        )  # fmt: skip
    return {
        "in": samples_in,
        "published": members.samples,
        **({} if inputs is None else {"inputs_published": used}),
        "quarantined": left_out,
        "balanced": balanced,
        "quarantined_by_reason": dict(
            sorted(by_reason.items(), key=lambda each: (-each[1], each[0]))
        ),
        "quarantined_bytes": pc.sum(quarantine.column("bytes")).as_py() or 0,
    }


def _account_files(files: dict[str, int], findings: Findings) -> dict[str, Any]:
    went = {name: count for name, count in files.items() if name != "seen"}
    seen, total = files.get("seen", sum(went.values())), sum(went.values())
    if seen != total:
        parts = " + ".join(f"{count:,} {name}" for name, count in went.items())
        findings.note("error", "accounting", f"{seen:,} files were seen; {parts} = {total:,}")
    return {"seen": seen, "balanced": seen == total, "went": went}


def _splits(shards: Sequence[ShardRow], inputs: Mapping[str, int] | None) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for each in shards:
        row = rows.setdefault(
            each.split, {"split": each.split, "samples": 0, "shards": 0, "bytes": 0}
        )
        row["samples"] += each.samples
        row["shards"] += 1
        row["bytes"] += each.bytes
        if inputs is not None:
            row["inputs"] = inputs.get(each.split, 0)
    return sorted(rows.values(), key=lambda each: (-each["samples"], each["split"]))


def _sheet(reports: Sequence[ShardReport], limits: Limits) -> list[Card]:
    """The shards' thumbnails, as evenly over the shards as the limit allows."""
    if not reports:
        return []
    each_shard = math.ceil(limits.thumbnails / len(reports))
    count = min(len(reports), limits.thumbnails)
    chosen = [reports[number * len(reports) // count] for number in range(count)]
    cards = [
        (rank, number, Card(Place(report.split, report.name, shown.key), shown))
        for number, report in enumerate(chosen)
        for rank, shown in enumerate(report.thumbnails[:each_shard])
    ]
    kept = sorted(cards, key=lambda each: each[:2])[: limits.thumbnails]
    return [card for _, _, card in sorted(kept, key=lambda each: (each[1], each[0]))]


def _pictures(
    findings: Sequence[Finding],
    groups: Sequence[Group],
    shards: Sequence[ShardRow],
    sheet: Sequence[Card],
    picture: Callable[[str, str], Thumbnail | None] | None,
    limits: Limits,
) -> list[Card]:
    """Thumbnails of the samples in findings, those side by side in groups first."""
    if picture is None:
        return []
    places = [place for group in groups for place in group.places]
    split_of = {each.name: each.split for each in shards}
    places += [
        Place(split_of.get(each.shard, ""), each.shard, each.key) for each in findings if each.key
    ]
    known = {(each.place.shard, each.place.key) for each in sheet}
    cards: list[Card] = []
    for place in places:
        if len(cards) >= limits.pictures:
            break
        if (place.shard, place.key) in known:
            continue
        known.add((place.shard, place.key))
        if (shown := picture(place.shard, place.key)) is not None:
            cards.append(Card(place, shown))
    return cards
