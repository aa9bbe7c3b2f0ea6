"""A version's report.json, read back; and whether what it speaks of is still there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wds_pipeline.dataset import report, seal, settle, version
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.report_findings import Group, Place
from wds_pipeline.dataset.shard_report import LEVELS, Finding
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import VersionError
from wds_pipeline.storage import Storage


@dataclass(frozen=True)
class Found:
    """What a report found, without what it shows. `counts` has all findings, by (severity, code);
    `findings` and `groups` list a bounded part; `samples` as in `Report`."""

    level: str
    sample: float
    samples: Mapping[str, Any]
    counts: Mapping[tuple[str, str], int]
    findings: list[Finding]
    groups: list[Group]

    @property
    def read_members(self) -> bool:
        """Whether the level is deep enough to know what content is the same."""
        return LEVELS.index(self.level) >= LEVELS.index("samples")

    def total(self, severity: str) -> int:
        """How many findings there are of this severity."""
        return sum(count for (of, _), count in self.counts.items() if of == severity)


def of_report(made: Report) -> Found:
    """What a report that was just made found."""
    return Found(
        made.level, made.sample, made.samples, made.counts, made.findings, made.groups
    )  # fmt: skip


def read(storage: Storage, manifest: Manifest) -> Found:
    """What a version's stored report found. Raises VersionError when it cannot be read."""
    data = version.read_file(storage, manifest, version.REPORT_JSON)
    where = storage.locate(version.folder(manifest.version) + version.REPORT_JSON)
    try:
        values = json.loads(data)
        if values["format_version"] > report.FORMAT_VERSION:
            raise VersionError(
                f"{where}: found format version {values['format_version']}; this release reads up to "
                f"{report.FORMAT_VERSION}. Update wds_pipeline"
            )
        samples = {name: values["samples"][name] for name in ("in", "published", "quarantined")}
        if "inputs_published" in values["samples"]:  # of samples that transforms made others of
            samples["inputs_published"] = values["samples"]["inputs_published"]
        return Found(
            level=LEVELS[LEVELS.index(values["level"])],
            sample=float(values["sample"]),
            samples=samples,
            counts={
                (each["severity"], each["code"]): int(each["count"])
                for each in values["findings"]["counts"]
            },
            findings=[Finding(**each) for each in values["findings"]["listed"]],
            groups=[
                Group(**{**each, "places": [Place(**place) for place in each["places"]]})
                for each in values["same_content"]
            ],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise VersionError(
            f"{where}: not readable as a report ({str(error).splitlines()[0]}); restore the file from "
            f"a backup, or verify the version anew (`wds-pipeline verify {manifest.dataset}`)"
        ) from None


def missing(storage: Storage, manifest: Manifest) -> list[Finding]:
    """The version's shards whose files are gone or have another size: a look, nothing is read.

    Raises DestinationError.
    """
    there = settle.stored_sizes(storage)
    found = []

    def note(code: str, shard: str, message: str) -> None:
        found.append(Finding("error", code, shard, "", "", message))

    for shard in manifest.shards:
        size = there.get(shard.name + seal.TAR)
        where = storage.locate(shard.path)
        if size is None:
            note("missing_tar", shard.name, f"{where}: is gone; expected {shard.bytes:,} bytes")
        elif size != shard.bytes:
            said = f"{where}: has {size:,} bytes; expected {shard.bytes:,}"
            note("wrong_size", shard.name, said)
        for end, code in ((seal.MEMBERS, "missing_index"), (seal.SEAL, "missing_seal")):
            if shard.name + end not in there:
                note(code, shard.name, f"{storage.locate(seal.path(shard.name, end))}: is gone")
    return found
