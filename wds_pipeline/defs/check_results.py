"""What each asset check says of a version, or of one that is about to be: passed or not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pyarrow as pa

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal
from wds_pipeline.dataset.accounts import recount
from wds_pipeline.dataset.freshness import Freshness
from wds_pipeline.dataset.plan import check_policies
from wds_pipeline.dataset.report_findings import Group
from wds_pipeline.dataset.shard_report import Finding, Thumbnail
from wds_pipeline.dataset.wording import clip, counted, human_bytes, printable
from wds_pipeline.defs import keys, metadata
from wds_pipeline.defs.check_subject import Subject
from wds_pipeline.errors import DataError

VERIFICATION_PASSED = "verification_passed"
NO_KEY_LOST = "no_key_lost"
QUARANTINE_WITHIN_BUDGET = "quarantine_within_budget"
NO_LEAK = "no_leak_between_splits"
DUPLICATES = "duplicates"
FRESH = "fresh"

_ERROR, _WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
DAMAGED_LISTED = 1000  # shards
_GROUPS = 20  # groups of equal samples in a table
_WIDTH = 300  # characters of a cell


def result(
    config: DatasetConfig,
    name: str,
    passed: bool,
    description: str,
    more: Mapping[str, Any],
    severity: dg.AssetCheckSeverity | None = None,
) -> dg.AssetCheckResult:
    """A check's result; its severity is the check's own unless another is given."""
    return dg.AssetCheckResult(
        passed=passed,
        asset_key=keys.asset_key(config.name, keys.PUBLISHED_VERSION),
        check_name=name,
        metadata=more,
        severity=severity or severity_of(config, name),
        description=printable(description, lines=True),
    )


def as_version(found: dg.AssetCheckResult, about: str, number: int) -> dg.AssetCheckResult:
    """What was found of a candidate, called `about`, when it is the version of this number."""
    name = f"version {number}"
    more = {**found.metadata, "checked": dg.TextMetadataValue(name)}
    more["version"] = dg.IntMetadataValue(number)
    return found._replace(metadata=more, description=str(found.description).replace(about, name, 1))


def severity_of(config: DatasetConfig, name: str) -> dg.AssetCheckSeverity:
    """How bad it is when a check fails."""
    if name == NO_LEAK:
        return _ERROR if config.verify.on_leak == "error" else _WARN
    return _WARN if name in (DUPLICATES, FRESH) else _ERROR


def verification_passed(subject: Subject) -> dg.AssetCheckResult:
    """Whether the report has no error."""
    found, name = subject.found, subject.config.name
    errors, warnings = found.total("error"), found.total("warning")
    level = found.level
    if level == "decode" and found.sample < 1:
        level += f" ({found.sample:.3g} of the samples)"
    how = "read back" if subject.read_back else "verified"
    said = f"{name}: {subject.about}, {how} at level {level}: {counted(errors, 'error')}, "
    said += counted(warnings, "warning")
    if errors:
        worst = [(count, each) for count, each in subject.examples if each.severity == "error"]
        lines = [f"  {each.code}: {count:,}, such as {each.message}" for count, each in worst]
        advice = (
            f"{keys.repair_job_name(name)} packs damaged shards anew, to the same bytes"
            if subject.version
            else f"Nothing is published; mend that, and run {keys.job_name(name)} again"
        )
        said = "\n".join([said + ":", *lines[:10], advice])
    more: dict[str, Any] = {
        **subject.facts(),
        "level": found.level,
        "read_back": subject.read_back,
        "errors": errors,
        "warnings": warnings,
    }
    if subject.examples:
        more["findings"] = _table(_finding(subject, *each) for each in subject.examples)
    if subject.damaged:
        more["damaged_shards"] = len(subject.damaged)
        more["damaged"] = dg.MetadataValue.json(list(subject.damaged[:DAMAGED_LISTED]))
    return result(subject.config, VERIFICATION_PASSED, not errors, said, more)


def _finding(subject: Subject, count: int, finding: Finding) -> dict[str, Any]:
    place = (finding.key, finding.field)
    member = ".".join(place) if finding.key and finding.field else finding.key
    path, _ = subject.files.get(place, (member, 0))
    return {
        "severity": finding.severity,
        "finding": finding.code,
        "count": count,
        "shard": finding.shard,
        "sample": finding.key,
        "file": path,
        "example": finding.message,
    }


def no_key_lost(subject: Subject) -> dg.AssetCheckResult:
    """Whether samples in = published + quarantined, by the report and counted anew."""
    accounts = recount(subject.inventory, subject.ledger, subject.quarantine, subject.splits)
    samples = subject.found.samples
    rows = [
        ("in the source", samples["in"], accounts.samples_in),
        ("published", samples.get("inputs_published", samples["published"]), accounts.published),
        ("in the quarantine", samples["quarantined"], accounts.quarantined),
    ]
    problems = list(accounts.problems)
    for what, reported, anew in rows:
        # What was read back of a damaged shard lacks samples that the tables rightly have.
        if reported != anew and not subject.damaged:
            problems.append(f"the report has {reported:,} samples {what}; counted anew: {anew:,}")
    total = accounts.published + accounts.quarantined
    if accounts.samples_in != total:
        problems.append(f"{accounts.samples_in:,} samples went in, {total:,} came out")
    rows += [
        (f"published in {split}", subject.splits.get(split, 0), count)
        for split, count in accounts.splits.items()
    ]
    said = (
        f"{subject.config.name}: {subject.about}: {accounts.samples_in:,} samples in = "
        f"{accounts.published:,} published + {accounts.quarantined:,} quarantined"
    )
    if problems:
        said = (
            f"{subject.config.name}: {subject.about}: samples are not accounted for:\n  "
            + "\n  ".join(problems)
            + "\nThis is a fault of wds_pipeline or of the stored tables, not of the source: "
            + (
                "restore the version's tables from a backup, or `wds-pipeline restore` another version"
                if subject.version
                else "nothing is published; report it, with this message"
            )
        )
    more = {
        **subject.facts(),
        "samples_in": accounts.samples_in,
        "published": accounts.published,
        "quarantined": accounts.quarantined,
        "counted": _table(
            {"samples": what, "report": reported, "counted anew": anew}
            for what, reported, anew in rows
        ),
    }
    return result(subject.config, NO_KEY_LOST, not problems, said, more)


def quarantine_within_budget(
    config: DatasetConfig, ledger: pa.Table, quarantine: pa.Table, facts: Mapping[str, Any]
) -> dg.AssetCheckResult:
    """Whether as few samples are left out as the configuration wants; see `plan.check_policies`."""
    left_out, total = quarantine.num_rows, quarantine.num_rows + ledger.num_rows
    allowed = config.samples.max_quarantined
    share = left_out / total if total else 0.0
    said = (
        f"{config.name}: {facts['checked']}: {left_out:,} of {total:,} samples ({share:.1%}) are in "
        f"the quarantine; samples.max_quarantined allows {allowed:.1%}"
    )
    passed = True
    try:
        check_policies(_Tables(ledger, quarantine), config)
    except DataError as error:
        passed = False
        said = str(error)
        if "version" in facts:  # published, by what was allowed then
            said = said.removesuffix(" Nothing was published.")
    more: dict[str, Any] = {
        **facts,
        "quarantined": left_out,
        "samples": total,
        "share": share,
        "allowed": float(allowed),
    }
    if left_out:
        more["quarantine"] = metadata.quarantine_table(quarantine)
    return result(config, QUARANTINE_WITHIN_BUDGET, passed, said, more)


@dataclass(frozen=True)
class _Tables:
    """What `check_policies` looks at of a plan."""

    ledger: pa.Table
    quarantine: pa.Table


def no_leak_between_splits(subject: Subject) -> dg.AssetCheckResult:
    """Whether no content is in two splits."""
    config = subject.config
    said, more = _same(subject, "leak", "have content that another split has too")
    advice = "Set split.group_by so that they share a split, or remove one of each from the source"
    strict = config.verify.on_leak == "error"
    if not subject.found.read_members:
        # Who wants a leak to be an error should know that none is looked for.
        return result(config, NO_LEAK, not strict, said, more, _WARN)
    leaks = subject.count("leak")
    if leaks:
        said += f". {advice}" + ("" if subject.version or not strict else ". Nothing is published")
    return result(config, NO_LEAK, not leaks, said, more)


def duplicates(subject: Subject) -> dg.AssetCheckResult:
    """Whether no content is in a split twice."""
    said, more = _same(subject, "duplicate", "have content that their split has more than once")
    count = subject.count("duplicate")
    if count and subject.found.read_members:
        said += ". Remove all but one of each from the source, if they are not meant"
    return result(subject.config, DUPLICATES, not count, said, more)


def _same(subject: Subject, code: str, what: str) -> tuple[str, dict[str, Any]]:
    """What is known of equal samples, in words and as metadata."""
    found, groups, total = subject.found, subject.groups(code), subject.count(code)
    head = f"{subject.config.name}: {subject.about}"
    more: dict[str, Any] = {**subject.facts(), "looked_for": found.read_members}
    if not found.read_members:
        said = f"{head}: not looked for at level {found.level}; expected verify.level: samples or decode"
        return said, more
    samples = sum(group.count for group in groups)
    wasted = sum(_bytes(subject, group) * (group.count - 1) for group in groups)
    least = "at least " if total > len(groups) else ""
    more |= {"groups": total, "samples": samples, "bytes_wasted": wasted}
    if not total:
        return f"{head}: no samples {what}", more
    said = f"{head}: {least}{samples:,} samples {what} ({counted(total, 'group')}"
    said += f", {least}{human_bytes(wasted)} for nothing)" if code == "duplicate" else ")"
    if groups:
        first = groups[0]
        some = ", ".join(f"{each.key} ({each.split})" for each in first.places[:4])
        said += f", such as the same {first.field} in {some}"
    shown = f" (the first {_GROUPS:,})" if total > _GROUPS else ""
    more[f"examples{shown}"] = _table(_group(subject, group) for group in groups[:_GROUPS])
    shown_groups = groups[: metadata.SHEET_THUMBNAILS]
    thumbnails = [each for group in shown_groups if (each := _show(subject, group)) is not None]
    if any(each.jpeg for each in thumbnails):
        more["pictures"] = dg.MetadataValue.md(metadata.contact_sheet(thumbnails))
    return said, more


def _bytes(subject: Subject, group: Group) -> int:
    return subject.files.get((group.places[0].key, group.field), ("", 0))[1]


def _group(subject: Subject, group: Group) -> dict[str, Any]:
    places = group.places
    return {
        "field": group.field,
        "samples": group.count,
        "keys": ", ".join(each.key for each in places),
        "splits": ", ".join(dict.fromkeys(each.split for each in places)),
        "shards": ", ".join(dict.fromkeys(seal.partition_of(each.shard) for each in places)),
        "bytes": _bytes(subject, group),
    }


def _show(subject: Subject, group: Group) -> Thumbnail | None:
    """One sample of a group, with the keys of two as its caption."""
    place = group.places[0]
    found = subject.picture(place.shard, place.key)
    if found is None:
        return None
    caption = " = ".join(f"{each.key} ({each.split})" for each in group.places[:2])
    return replace(found, caption=caption)


def fresh(config: DatasetConfig, found: Freshness | None) -> dg.AssetCheckResult:
    """Whether no change of the source has been waiting for longer than is allowed."""
    if found is None:
        return unpublished(config, FRESH)
    allowed = timedelta(hours=config.freshness.max_lag_hours)
    more: dict[str, Any] = {
        "checked": f"version {found.version}",
        "version": found.version,
        "added": found.added,
        "edited": found.edited,
        "deleted": found.deleted,
        "lag_hours": round(found.lag.total_seconds() / 3600, 3),
        "max_lag_hours": float(config.freshness.max_lag_hours),
    }
    head = f"{config.name}: version {found.version}"
    if not found.changes:
        return result(config, FRESH, True, f"{head} has all that is in the source", more)
    if found.since is not None:
        more["waiting_since"] = dg.MetadataValue.timestamp(found.since)
    more["examples"] = _table(
        {"change": change, "file": path}
        for change, paths in found.examples.items()
        for path in paths
    )
    kinds = {"added": found.added, "edited": found.edited, "deleted": found.deleted}
    counts = [counted(number, f"{kind} file") for kind, number in kinds.items() if number]
    path = next(path for paths in found.examples.values() for path in paths)
    said = f"{head} lacks changes of the source: {', '.join(counts)}, such as {path}; "
    said += (
        f"the oldest has been waiting for {_hours(found.lag)}"
        if found.since
        else "for how long is not known"
    )
    said += f" (freshness.max_lag_hours allows {_hours(allowed)})"
    late = found.lag > allowed
    if late:
        said += f". Run {keys.job_name(config.name)}, or see why its last run failed"
    return result(config, FRESH, not late, said, more)


def _hours(lag: timedelta) -> str:
    hours = lag.total_seconds() / 3600
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:.3g} days"


def unpublished(config: DatasetConfig, name: str) -> dg.AssetCheckResult:
    """A check's result where there is nothing to check."""
    said = f"{config.name}: no version is published; expected one. Run {keys.job_name(config.name)}"
    return result(config, name, False, said, {"checked": "no version"})


def unreadable(config: DatasetConfig, name: str, error: Exception) -> dg.AssetCheckResult:
    """A check's result where what it needs cannot be read."""
    said = str(error)
    if not said.startswith(config.name + ":"):
        said = f"{config.name}: {said}"
    return result(config, name, False, said, {"checked": "not readable"})


def _table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue:
    records = [{name: _cell(value) for name, value in row.items()} for row in rows]
    columns = [
        dg.TableColumn(name, "int" if isinstance(value, int) else "string")
        for name, value in (records[0] if records else {}).items()
    ]
    return dg.MetadataValue.table(
        [dg.TableRecord(row) for row in records], dg.TableSchema(columns=columns)
    )


def _cell(value: Any) -> Any:
    return clip(value, _WIDTH) if isinstance(value, str) else value
