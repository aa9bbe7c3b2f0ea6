"""Verifying one shard as a worker does it: read its seal, verify, put the report beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.shard_report import (
    Finding,
    Rules,
    known_facts,
    load_report,
    save_report,
)
from wds_pipeline.dataset.verify import verify_shard
from wds_pipeline.storage import Place, Usage, open_storage


@dataclass(frozen=True)
class VerifyJob:
    """All that a worker, here or elsewhere, needs to verify one shard.

    `expected` are the members (name, size) of the plan, or None to go by the member index alone;
    `known` are shards whose reports may say what the same content decoded to.
    """

    name: str
    destination: Place | str
    rules: Rules
    expected: pa.Table | None = None
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What came of it: the structural findings; what the content is like stands in the report. `usage` is
    what was asked of the destination."""

    name: str
    findings: list[Finding]
    problems: int
    usage: Usage = field(default_factory=Usage)


def run(job: VerifyJob) -> Verified:
    """Verifies one shard and stores its report. Raises DestinationError if that cannot be stored."""
    storage = open_storage(job.destination)
    sealed = seal.read_seal(storage, job.name)
    if sealed is None:
        missing = Finding("error", "missing_seal", job.name, "", "", "the shard is not sealed")
        return Verified(job.name, [missing], 0, storage.usage)
    earlier = (load_report(storage, name) for name in job.known)
    known = known_facts((report for report in earlier if report is not None), job.rules)
    report = verify_shard(storage, sealed, job.rules, job.expected, known)
    save_report(storage, report)
    problems = len(report.members) - report.members["problem"].null_count
    return Verified(job.name, report.findings, problems, storage.usage)
