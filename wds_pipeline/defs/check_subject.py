"""What the asset checks look at: a published version, or the candidate for the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import settle, stored_report, version
from wds_pipeline.dataset.plan import Plan
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.report_findings import Group
from wds_pipeline.dataset.shard_report import Finding, Thumbnail
from wds_pipeline.dataset.stored_report import Found
from wds_pipeline.dataset.verify import read_thumbnail
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import Storage


@dataclass(frozen=True)
class Subject:
    """What is checked: `about` names it in sentences; `version` is 0 for what is not published.

    The tables are those of the version (schemas `ledger.LEDGER`, `ledger.QUARANTINE`,
    `naming.INVENTORY`); `splits` has how many samples of the source each split has by its shards.
    `picture` gives the thumbnail of a sample by its shard and key. `read_back` says that the report is of
    reading everything now, `damaged` which shards that found damaged.
    """

    config: DatasetConfig
    about: str
    version: int
    found: Found
    ledger: pa.Table
    quarantine: pa.Table
    inventory: pa.Table
    splits: Mapping[str, int]
    picture: Callable[[str, str], Thumbnail | None]
    read_back: bool = False
    damaged: Sequence[str] = ()

    @cached_property
    def examples(self) -> list[tuple[int, Finding]]:
        """The first finding of each kind, with how many there are; errors first."""
        first: dict[tuple[str, str], Finding] = {}
        for each in self.found.findings:
            first.setdefault((each.severity, each.code), each)
        kinds = sorted(self.found.counts.items())
        return [(count, first[kind]) for kind, count in kinds if kind in first]

    @cached_property
    def files(self) -> dict[tuple[str, str], tuple[str, int]]:
        """(key, field) → source path and size in bytes, of the samples that are given as examples."""
        wanted = {each.key for _, each in self.examples if each.key}
        wanted |= {group.places[0].key for group in self.found.groups}
        if not wanted:
            return {}
        chosen = pc.is_in(self.inventory["key"], pa.array(sorted(wanted), pa.large_string()))
        rows = self.inventory.filter(chosen).select(["key", "field", "path", "size"]).to_pylist()
        return {(row["key"], row["field"]): (row["path"], row["size"]) for row in rows}

    def groups(self, code: str) -> list[Group]:
        """The groups of equal samples that are listed, of one code."""
        return [each for each in self.found.groups if each.code == code]

    def count(self, code: str) -> int:
        """How many findings of a code there are, of any severity."""
        return sum(count for (_, of), count in self.found.counts.items() if of == code)

    def facts(self) -> dict[str, Any]:
        """What every check tells of its subject."""
        return {"checked": self.about} | ({"version": self.version} if self.version else {})


def candidate_name(plan: Plan) -> str:
    """How a plan is called before it is a version."""
    return f"the candidate for the version after {plan.parent}" if plan.parent else "the candidate"


def of_candidate(config: DatasetConfig, plan: Plan, report: Report) -> Subject:
    """A settled plan with its report."""
    return Subject(
        config=config,
        about=candidate_name(plan),
        version=0,
        found=stored_report.of_report(report),
        ledger=plan.ledger,
        quarantine=plan.quarantine,
        inventory=plan.inventory,
        splits={each["split"]: each.get("inputs", each["samples"]) for each in report.splits},
        picture=_pictures(report),
    )


def of_version(config: DatasetConfig, storage: Storage, manifest: Manifest) -> Subject:
    """A published version, by what is stored of it: no shard is read, but all have to be there.

    Raises DestinationError, VersionError, VerificationError when it cannot be read.
    """
    found = stored_report.read(storage, manifest)
    gone = stored_report.missing(storage, manifest)
    counts = Counter(found.counts) + Counter((each.severity, each.code) for each in gone)
    rules = settle.rules(config)
    return _published(
        config,
        storage,
        manifest,
        found=replace(found, counts=counts, findings=[*gone, *found.findings]),
        picture=lambda shard, key: read_thumbnail(storage, rules, shard, key),
    )


def of_audit(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    report: Report,
    damaged: Collection[str],
) -> Subject:
    """A published version that was read back. Raises as `of_version`."""
    return _published(
        config,
        storage,
        manifest,
        found=stored_report.of_report(report),
        picture=_pictures(report),
        read_back=True,
        damaged=sorted(damaged),
    )


def _published(config: DatasetConfig, storage: Storage, manifest: Manifest, **more: Any) -> Subject:
    return Subject(
        config=config,
        about=f"version {manifest.version}",
        version=manifest.version,
        ledger=version.read_table(storage, manifest, version.LEDGER),
        quarantine=version.read_table(storage, manifest, version.QUARANTINE),
        inventory=version.read_table(storage, manifest, version.INVENTORY),
        splits={name: total.of_source for name, total in manifest.splits.items()},
        **more,
    )


def _pictures(report: Report) -> Callable[[str, str], Thumbnail | None]:
    """Those that the report has made."""
    cards = {
        (each.place.shard, each.place.key): each.thumbnail
        for each in (*report.sheet, *report.pictures)
    }
    return lambda shard, key: cards.get((shard, key))
