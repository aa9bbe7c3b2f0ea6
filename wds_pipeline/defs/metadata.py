"""What the UI shows of a listing, a plan, a shard and a version."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import dagster as dg
import pyarrow as pa
import xxhash

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import reading, samples, upstream, version, view
from wds_pipeline.dataset.costs import Costs
from wds_pipeline.dataset.plan import Plan
from wds_pipeline.dataset.preview import reasons
from wds_pipeline.dataset.scan import SKIPPED, Listing
from wds_pipeline.dataset.seal import MEMBERS, REPORT, TAR, Seal, path
from wds_pipeline.dataset.shard_report import ShardReport, Thumbnail
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import clip, human_bytes, printable
from wds_pipeline.defs import transforms
from wds_pipeline.storage import Storage

Metadata = dict[str, Any]

_ROWS = 100  # of a table: the UI shows it whole
SHEET_THUMBNAILS = 6
CODE_VERSION = "code version"  # of the shards of a version
_CAPTION = 48  # characters below a picture
_SHEET_BYTES = 10_000  # of an event, which is stored twice and for ever


def of_definition(
    config: DatasetConfig, code: ModuleType, columns: dg.TableSchema | None = None
) -> Metadata:
    """What is known of an asset before it is materialized: its columns, and where it is defined."""
    references: list[Any] = []
    if config.file is not None:
        references.append(_reference(str(config.file.absolute()), config.file.name))
    references.append(_reference(str(code.__file__), f"{code.__name__.rpartition('.')[2]}.py"))
    return {
        **({"dagster/column_schema": columns} if columns else {}),
        "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=references),
    }


def _reference(file: str, label: str) -> dg.LocalFileCodeReference:
    return dg.LocalFileCodeReference(file_path=file, line_number=1, label=label)


def sample_schema(config: DatasetConfig) -> dg.TableSchema:
    """A sample's fields."""
    fields = config.samples.fields or {name: [name] for name in config.samples.required}
    required = config.samples.required
    columns = [dg.TableColumn("__key__", "string", "what a sample's files share of their names")]
    for name, extensions in fields.items():
        made_of = ", ".join(f".{each}" for each in dict.fromkeys([name, *extensions]))
        columns.append(
            dg.TableColumn(
                name,
                "bytes",
                f"from {made_of}",
                constraints=dg.TableColumnConstraints(nullable=name not in required),
            )
        )
    return dg.TableSchema(columns=columns)


def of_listing(config: DatasetConfig, listing: Listing) -> Metadata:
    """What a scan saw."""
    found: Metadata = {
        "files": listing.files.num_rows,
        "size": human_bytes(listing.bytes),
        "bytes": listing.bytes,
        "digest": listing.digest,
        "dagster/row_count": listing.files.num_rows,
    }
    if config.source.dataset is None and config.source.merge is None:
        found["dagster/uri"] = config.shown_url("source")
    if taken := made_of(listing):
        found["made of"] = taken
    if listing.skipped:
        found["skipped"] = _table(
            {
                "reason": reason,
                "files": count,
                "example": next(iter(listing.examples.get(reason, [])), ""),
                "meaning": SKIPPED.get(reason, ""),
            }
            for reason, count in listing.skipped.items()
        )
    return found


def made_of(found: Listing | Manifest) -> str:
    """Which versions of other datasets a listing or a version is made of: `version 8 of captions`."""
    parts = upstream.taken_in(upstream.origin(found))
    return ", ".join(
        dict.fromkeys(f"version {each['version']} of {each['dataset']}" for each in parts)
    )


def of_plan(plan: Plan) -> Metadata:
    """What a build would do. A version may hold less: verification comes after the plan."""
    stale = plan.stale
    found: Metadata = {
        "dagster/row_count": plan.ledger.num_rows,
        "digest": plan_digest(plan),
        "parent_version": plan.parent,
        "shards": len(plan.shards),
        "shards_to_build": len(stale),
        "bytes_to_build": sum(shard.bytes for shard in stale),
        "shards_gone": len(plan.gone),
        "quarantined": plan.quarantine.num_rows,
    }
    if stale:
        shown = f" (the first {_ROWS:,})" if len(stale) > _ROWS else ""
        found[f"to build{shown}"] = _table(
            {
                "shard": shard.partition,
                "cause": shard.cause,
                "samples": shard.samples,
                "size": human_bytes(shard.bytes),
            }
            for shard in stale[:_ROWS]
        )
    if plan.quarantine.num_rows:
        found["quarantine"] = quarantine_table(plan.quarantine)
    if plan.warnings:
        found["warnings"] = _list(plan.warnings)
    return found


def plan_digest(plan: Plan) -> str:
    """The same for the same shards and the same quarantine."""
    state = xxhash.xxh3_128()
    for shard in plan.shards:
        state.update(shard.name.encode() + b"\0")
    for row in plan.quarantine.select(["key", "reason"]).to_pylist():
        state.update(f"{row['key']}\0{row['reason']}\0".encode())
    return state.hexdigest()


def of_shard(
    storage: Storage, seal: Seal, cause: str, report: ShardReport | None, rejected: int = 0
) -> Metadata:
    """One sealed shard, with some samples to show; `rejected` counts those of its slot that a transform
    could not use."""
    tar = storage.locate(path(seal.name, TAR))
    found: Metadata = {}
    if report and report.thumbnails:
        found["contact sheet"] = dg.MetadataValue.md(contact_sheet(report.thumbnails))
    return {
        **found,
        "cause": cause,
        "verification": verdict(report) if report else "not verified yet",
        "samples": seal.samples,
        **(of_transforms(seal.inputs, seal.left_out, rejected) if seal.inputs is not None else {}),
        "members": seal.members,
        "size": human_bytes(seal.bytes),
        "bytes": seal.bytes,
        "digest": seal.digest,
        "tar": dg.MetadataValue.path(tar),
        "dagster/row_count": seal.samples,
        "dagster/uri": tar,
    }


def of_transforms(inputs: int, left_out: Mapping[str, int], rejected: int) -> Metadata:
    """What went into transforms, and what did not come out: `inputs` are the samples of the source that
    passed, `left_out` counts by transform those of which nothing came, `rejected` those that failed."""
    found: Metadata = {"inputs": inputs, "left_out": sum(left_out.values()), "rejected": rejected}
    if left_out:
        found["left out"] = _table(
            {"transform": name, "samples": count} for name, count in left_out.items()
        )
    return found


def of_index(storage: Storage, seal: Seal) -> Metadata:
    """One shard's member index."""
    return {
        "dagster/row_count": seal.members,
        "dagster/uri": storage.locate(path(seal.name, MEMBERS)),
        "samples": seal.samples,
        "members": seal.members,
    }


def of_report(storage: Storage, report: ShardReport) -> Metadata:
    """What verification found in one shard."""
    problems = Counter(each for each in report.members["problem"].to_pylist() if each)
    found: Metadata = {
        "dagster/row_count": report.members.num_rows,
        "dagster/uri": storage.locate(path(report.name, REPORT)),
        "passed": report.passed,
        "verification": verdict(report),
        "level": report.level,
        "samples": report.samples,
        "unusable_members": sum(problems.values()),
        "findings": len(report.findings),
    }
    if problems:
        found["unusable"] = _table(
            {"problem": problem, "members": count, "meaning": samples.advice(problem)}
            for problem, count in problems.most_common()
        )
    if report.findings:
        found["damage"] = _list(f"{each.code}: {each.message}" for each in report.findings[:20])
    return found


def verdict(report: ShardReport) -> str:
    """A shard's verification in a few words."""
    if not report.passed:
        return f"damaged: {report.errors[0].code}: {report.errors[0].message}"
    problems = report.members.num_rows - report.members["problem"].null_count
    unusable = f"; {problems:,} members are unusable" if problems else ""
    return f"passed ({report.level}){unusable}"


def of_version(config: DatasetConfig, storage: Storage, manifest: Manifest) -> Metadata:
    """A published version, and how to read it."""
    summary = manifest.verification
    patterns = view.patterns(storage, manifest)
    quarantine = version.read_table(storage, manifest, version.QUARANTINE)
    folder = version.folder(manifest.version)
    found: Metadata = {
        "version": manifest.version,
        "verification": _version_verdict(manifest),
        "samples": manifest.total_samples,
        **of_origin(manifest),
        "size": human_bytes(manifest.total_bytes),
        "bytes": manifest.total_bytes,
        "shards": len(manifest.shards),
        "shards_built": sum(shard.since == manifest.version for shard in manifest.shards),
        "splits": _table(
            {
                "split": name,
                "shards": total.shards,
                "samples": total.samples,
                "size": human_bytes(total.bytes),
            }
            for name, total in manifest.splits.items()
        ),
        **(
            {f"shards of {name}": dg.MetadataValue.path(url) for name, url in patterns.items()}
            if storage.hard_links
            else {}
        ),
        "quarantined": quarantine.num_rows,
        "report": dg.MetadataValue.path(storage.locate(folder + version.REPORT_HTML)),
        "manifest": dg.MetadataValue.path(storage.locate(folder + "manifest.json")),
        "how to read it": dg.MetadataValue.md(_snippet(storage, manifest, patterns)),
        CODE_VERSION: transforms.code_version(config),
        "dagster/row_count": manifest.total_samples,
        "dagster/uri": storage.locate(folder),
    }
    if summary.get("findings"):
        found["findings"] = _table(
            {"finding": code, "count": count} for code, count in summary["findings"].items()
        )
    if quarantine.num_rows:
        found["quarantine"] = quarantine_table(quarantine)
    if config.description:
        found["description"] = config.description
    return found


def of_origin(manifest: Manifest) -> Metadata:
    """What a version is made of, where that is not just a folder of files."""
    found: Metadata = {}
    if taken := made_of(manifest):
        found["made of"] = taken
    if manifest.transforms:
        inputs = sum(split.of_source for split in manifest.splits.values())
        rejected = manifest.quarantined.get("transform_failed", 0)
        found["transforms"] = " → ".join(manifest.transforms)
        found |= of_transforms(inputs, manifest.left_out, rejected)
    return found


def of_costs(costs: Costs) -> Metadata:
    """What a run asked of its stores; nothing for folders."""
    found: Metadata = {}
    for end, usage in (("source", costs.source), ("destination", costs.destination)):
        if usage.requests:
            found[f"{end}: requests"] = usage.requests
            found |= {f"{end}: {name}": value for name, value in usage.values().items() if value}
    return found


def _version_verdict(manifest: Manifest) -> str:
    summary = manifest.verification
    word = "passed" if summary.get("passed") else "failed"
    published = f"{summary.get('published', 0):,} published"
    if manifest.transforms:
        used = sum(split.of_source for split in manifest.splits.values())
        published = f"{used:,} used ({published})"
    return (
        f"{word} ({summary.get('level')}): {summary.get('errors', 0):,} errors, "
        f"{summary.get('warnings', 0):,} warnings; {summary.get('samples_in', 0):,} samples in = "
        f"{published} + {summary.get('quarantined', 0):,} quarantined"
    )


def _snippet(storage: Storage, manifest: Manifest, patterns: Mapping[str, str]) -> str:
    urls: str | list[str] = next(iter(patterns.values()), "")
    if not storage.hard_links:  # there are brace-able names only where somebody asked for them
        urls = [storage.locate(each.path) for each in manifest.of_split(next(iter(patterns)))[:1]]
    return "\n".join(["```python", *reading.snippet(storage, urls), "```"])


def quarantine_table(quarantine: pa.Table) -> dg.TableMetadataValue:
    """The samples left out, by reason, each with an example."""
    return _table(
        {
            "reason": each.reason,
            "samples": each.count,
            "example": each.examples[0],
            "meaning": each.advice,
        }
        for each in reasons(quarantine)
    )


def contact_sheet(thumbnails: Sequence[Thumbnail]) -> str:
    """Some samples of a shard as Markdown, the pictures within it; a few kB."""
    shown: list[Thumbnail] = []
    size = 0
    for each in sorted(thumbnails, key=lambda each: not each.jpeg):
        size += len(each.jpeg) * 4 // 3
        if len(shown) == SHEET_THUMBNAILS or (shown and size > _SHEET_BYTES):
            break
        shown.append(each)
    pictures = [
        f"![{_plain(each.key)}](data:image/jpeg;base64,{base64.b64encode(each.jpeg).decode()})"
        if each.jpeg
        else " "
        for each in shown
    ]
    captions = [_plain(each.caption or each.key, _CAPTION) for each in shown]
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in (pictures, ["---"] * len(shown), captions)
    )


def _plain(text: str, width: int = 80) -> str:
    """Text that Markdown shows as it is."""
    text = html.escape(clip(text, width), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|!#~" else letter for letter in text)


def _list(lines: Any) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md("\n".join(f"- {_plain(line, 500)}" for line in lines))


def _table(rows: Any) -> dg.TableMetadataValue:
    records = [dg.TableRecord({name: _shown(value) for name, value in row.items()}) for row in rows]
    first = records[0].data if records else {}
    columns = [
        dg.TableColumn(name, "int" if isinstance(value, int) else "string")
        for name, value in first.items()
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """A Parquet file's columns, as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                each.name,
                _type_name(each.type),
                constraints=dg.TableColumnConstraints(nullable=each.nullable),
            )
            for each in schema
        ]
    )


def _type_name(kind: pa.DataType) -> str:
    """A column's type in a reader's words: how Arrow lays it out in memory says nothing to people."""
    if pa.types.is_dictionary(kind):
        return _type_name(kind.value_type)
    if pa.types.is_large_string(kind):
        return "string"
    if pa.types.is_fixed_size_binary(kind):
        return f"bytes ({kind.byte_width})"
    return str(kind)
