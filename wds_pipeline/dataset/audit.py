"""Verifying a published version: every shard read back, against manifest, ledger and inventory.

Writes nothing, so that it also runs where the destination is read-only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.compute import run_all
from wds_pipeline.config import DatasetConfig, SamplesConfig
from wds_pipeline.dataset import ledger, naming, seal, settle, version
from wds_pipeline.dataset.report import Report, ShardRow, make_report
from wds_pipeline.dataset.seal import Seal
from wds_pipeline.dataset.settle import Progress
from wds_pipeline.dataset.shard_report import LEVELS, Finding, Rules, ShardReport, load_report
from wds_pipeline.dataset.verify import read_thumbnail, verify_shard
from wds_pipeline.dataset.verify_compare import Damage
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.errors import ConfigError, VerificationError
from wds_pipeline.storage import Place, Storage, open_storage


@dataclass(frozen=True)
class Audit:
    """What an audit found; `damaged` are all shards that are not what was published, by name."""

    report: Report
    damaged: Mapping[str, ShardReport]


@dataclass(frozen=True)
class AuditJob:
    """All that a worker needs to verify one published shard; `wanted` is its seal as published."""

    wanted: Seal
    destination: Place | str
    rules: Rules
    expected: pa.Table | None


def audit_rules(
    config: DatasetConfig,
    manifest: Manifest,
    level: str | None = None,
    sample: float | None = None,
) -> Rules:
    """How a version is verified: as the dataset says, unless a level or a share of the samples to
    decode is given; by the fields that the version was built by.

    Raises ConfigError for a level or a share that is none.
    """
    usual = settle.rules(config)
    level = usual.level if level is None else level
    sample = usual.sample if sample is None else sample
    if level not in LEVELS:
        raise ConfigError(
            f"{config.name}: level: found {level!r}; expected one of {', '.join(LEVELS)}"
        )
    if not 0 <= sample <= 1:
        raise ConfigError(
            f"{config.name}: sample: found {sample:g}; expected a share from 0 to 1, such as 0.1"
        )
    extensions = dict(samples_config(config, manifest).fields or {})
    return Rules(level, sample, usual.max_pixels, extensions)


def run(job: AuditJob) -> ShardReport:
    """Verifies one shard as it was published, and its seal; damage is among the findings."""
    storage = open_storage(job.destination)
    report = verify_shard(storage, job.wanted, job.rules, job.expected)
    if not report.passed:
        report.findings += _changed_members(storage, report)
    try:
        found = seal.read_seal(storage, job.wanted.name)
    except VerificationError as error:
        problem = str(error)
    else:
        if found == job.wanted:
            return report
        where = storage.locate(seal.path(job.wanted.name, seal.SEAL))
        problem = f"{where} is gone" if found is None else f"{where} is not as it was published"
    finding = Finding(
        "error",
        "bad_seal",
        job.wanted.name,
        "",
        "",
        f"{problem}. `verify --repair` packs the shard anew",
    )
    report.findings.append(finding)
    return report


def _changed_members(storage: Storage, report: ShardReport) -> list[Finding]:
    """Which members of a damaged shard have other content than when it was published: the report
    that was made then has the digest of each."""
    before = load_report(storage, report.name)
    if before is None or before.digest != report.digest:
        return []
    columns = ("key", "field", "digest")
    rows = zip(*(before.members[each].to_pylist() for each in columns), strict=True)
    known = {(key, field): digest for key, field, digest in rows if digest is not None}
    damage = Damage(report.name, storage.locate(seal.path(report.name, seal.TAR)))
    for key, field, digest in zip(
        *(report.members[each].to_pylist() for each in columns), strict=True
    ):
        published = known.get((key, field), digest)
        if digest is not None and digest != published:
            damage.add(
                "wrong_content",
                f"{key}.{field}: its content has the digest xxh3-128:{digest.hex()}; it was "
                f"published with xxh3-128:{published.hex()}",
                key,
                field,
            )
    return damage.findings()


def audit(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    rules: Rules,
    pool: Executor,
    progress: Progress | None = None,
) -> Audit:
    """Reads a whole version back with the pool and reports on it; nothing is stored.

    Raises VersionError, VerificationError when the version's own files cannot be read.
    """
    members = {} if manifest.transforms else expected_members(storage, manifest)
    counts = {name: table.num_rows for name, table in members.items()}
    if manifest.transforms:  # what they make of the source's files, the seal says
        seals = seal.read_seals(storage, [shard.name for shard in manifest.shards])
        counts = {s.partition: getattr(seals[s.name], "members", -1) for s in manifest.shards}
    quarantine = version.read_table(storage, manifest, version.QUARANTINE)
    jobs = [
        AuditJob(
            Seal(
                shard.name, shard.split, shard.slot, shard.recipe, shard.samples,
                counts[shard.partition], shard.bytes, shard.digest,
            ),
            config.destination_place, rules, members.get(shard.partition),
        )
        for shard in manifest.shards
    ]  # fmt: skip
    total, done = manifest.total_bytes, 0
    reports = []
    for job, report in run_all(pool, run, jobs):
        reports.append(report)
        done += job.wanted.bytes
        if progress is not None:
            progress("verify", done, total)
    published = version.read_table(storage, manifest, version.LEDGER).num_rows
    whole = make_report(
        dataset=config.name,
        level=rules.level,
        reports=reports,
        samples_in=published + quarantine.num_rows,
        quarantine=quarantine.drop_columns(["digest", "split", "slot"]),
        files=manifest.files,
        required=samples_config(config, manifest).required,
        shards=[
            ShardRow(s.name, s.split, s.slot, s.samples, s.bytes, s.cause) for s in manifest.shards
        ],
        on_leak=config.verify.on_leak,
        picture=lambda shard, key: read_thumbnail(storage, rules, shard, key),
        about=f"version {manifest.version} of {manifest.created}",
        inputs={name: each.of_source for name, each in manifest.splits.items()}
        if manifest.transforms
        else None,
        left_out=manifest.left_out,
    )
    return Audit(whole, {each.name: each for each in reports if not each.passed})


def samples_config(config: DatasetConfig, manifest: Manifest) -> SamplesConfig:
    """The rules that the version was built by; the dataset's present ones if these are not legible."""
    try:
        return SamplesConfig.model_validate(manifest.config.get("samples") or {})
    except ValueError:
        return config.samples


def expected_members(
    storage: Storage, manifest: Manifest, more: Sequence[str] = ()
) -> dict[str, pa.Table]:
    """By partition, the members (name, size) that the version's ledger and inventory say, in order.

    `more` are columns of the inventory that are wanted too.

    Raises VersionError, VerificationError when these cannot be read or do not fit the manifest.
    """
    places = version.read_table(storage, manifest, version.LEDGER)
    inventory = version.read_table(storage, manifest, version.INVENTORY)
    files = inventory.filter(pc.equal(inventory["status"].cast(pa.string()), naming.OK))
    at = pc.index_in(files["key"], value_set=places["key"].combine_chunks())
    files, row = files.filter(pc.is_valid(at)), pc.drop_null(at).to_numpy()
    fields = files["field"].cast(pa.string())
    # Fields by code point, as the recipe has them.
    order = np.lexsort((pc.rank(fields, tiebreaker="dense").to_numpy(), row))
    dot = pa.scalar(".", pa.large_string())
    names = pc.binary_join_element_wise(files["key"], fields.cast(pa.large_string()), dot)
    columns = {"name": names, "size": files["size"], **{each: files[each] for each in more}}
    members = pa.table(columns).take(pa.array(order))
    found = dict(_by_partition(places, members, row[order]))
    wanted = {shard.partition for shard in manifest.shards}
    if found.keys() != wanted:
        odd = sorted(found.keys() ^ wanted)
        raise VerificationError(
            f"{manifest.dataset}: version {manifest.version}: its ledger and its manifest differ in "
            f"{len(odd):,} shards, such as {odd[0]}; restore either from a backup"
        )
    return found


def _by_partition(
    places: pa.Table, members: pa.Table, row: np.ndarray
) -> Iterator[tuple[str, pa.Table]]:
    if not len(row):
        return
    codes, split_names = ledger.names(places["split"])
    slots = places["slot"].to_numpy()
    split, slot = codes[row], slots[row]
    starts = np.flatnonzero((np.diff(split) != 0) | (np.diff(slot) != 0)) + 1
    bounds = [0, *starts.tolist(), len(row)]
    for start, stop in pairwise(bounds):
        yield (
            f"{split_names[split[start]]}-{slot[start]:06d}",
            members.slice(start, stop - start).combine_chunks(),
        )
