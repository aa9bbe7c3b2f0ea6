"""`<name>_verify`: a published version is read back; what is not as it was published fails the run."""

import time
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.audit import Audit, audit, audit_rules
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.shard_report import LEVELS, ShardReport
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import counted, human_bytes, printable
from wds_pipeline.defs import checks, keys, metadata
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline.defs.upkeep_job import LEVEL, published, session_of, upkeep_job
from wds_pipeline.errors import VerificationError, VersionError
from wds_pipeline.storage import Storage

_LOGGED = 200  # damaged shards that get lines and an observation; more is a disk that is gone
_SHOWN = 10  # damaged shards in the run's error
_FINDINGS = 5  # of a shard


def verify_job(config: DatasetConfig) -> dg.JobDefinition:
    """The job that verifies one dataset's published version."""
    return upkeep_job(
        config,
        read_back,
        keys.verify_job_name(config.name),
        f"Reads a published version of {config.name} back, all of it, and compares it with what was "
        "published: bit rot shows. Changes nothing. Fails when anything is not as it was; "
        f"{keys.repair_job_name(config.name)} mends damaged shards.",
        {
            "level": dg.Field(
                LEVEL,
                is_required=False,
                default_value=config.verify.level,
                description="How deep: `stat`: every shard is there, in its size; `digest`: and in "
                "its bytes; `samples`: and its members are those that were planned; `decode`: and "
                "images, json, text and arrays decode. By default as the dataset's file says.",
            ),
            "sample": dg.Field(
                float,
                is_required=False,
                default_value=config.verify.sample,
                description="The share of the samples to decode, 0 to 1; the other levels are always "
                "whole.",
            ),
            "version": dg.Field(
                dg.Noneable(int),
                is_required=False,
                default_value=None,
                description="The number of the version; none is the newest.",
            ),
        },
    )


def read_back(context: dg.OpExecutionContext) -> None:
    """Reads a published version back with all the workers, and compares it with what was published."""
    session = session_of(context)
    config, wanted = session.config, context.op_config
    with session.step(context):
        storage, manifest = published(session, wanted["version"])
        rules = audit_rules(config, manifest, wanted["level"], wanted["sample"])
        context.log.info(
            f"version {manifest.version} of {manifest.created}: reading back "
            f"{counted(len(manifest.shards), 'shard')}, {human_bytes(manifest.total_bytes)}, at level "
            f"{rules.level}"
        )
        start = time.monotonic()
        try:
            found = audit(config, storage, manifest, rules, session.pool, progress_lines(context))
        except (VersionError, VerificationError) as error:  # its own files cannot be read
            if wanted["version"] is None:
                checks.log_unreadable(context, session, error)
            raise
        observe(context, config, manifest, found, time.monotonic() - start)
        checks.log_audit(context, session, manifest, found.report, found.damaged)
        if wanted["version"] is None:  # nobody else looks, if what builds it does not run
            checks.log_fresh(context, session)
        failure = None if found.report.passed else _failure(config, storage, manifest, found)
    if failure is not None:
        raise dg.Failure(failure, allow_retries=False)


def observe(
    context: dg.OpExecutionContext,
    config: DatasetConfig,
    manifest: Manifest,
    found: Audit,
    seconds: float,
) -> None:
    """Writes what an audit found into the log and the catalogue: an observation of the version, and
    one of each damaged shard."""
    report = found.report
    damaged = sorted(found.damaged.values(), key=lambda each: each.name)
    for shard in damaged[:_LOGGED]:
        for line in _lines(shard):
            context.log.error(line)
        context.log_event(_of_shard(config, manifest, shard))
    if len(damaged) > _LOGGED:
        context.log.error(f"and {counted(len(damaged) - _LOGGED, 'more damaged shard')}")
    known = _damaged_before(context.instance, config.name)
    for entry in manifest.shards:
        level = known.get(entry.name)
        mended = level is not None and entry.name not in found.damaged
        if mended and LEVELS.index(report.level) >= LEVELS.index(str(level)):
            context.log_event(_sound(config, manifest, entry.name, report.level))
    for finding in report.findings:
        if finding.shard not in found.damaged:
            say = context.log.error if finding.severity == "error" else context.log.warning
            say(printable(f"{finding.code}: {finding.message}"))
    words = _verdict(report, len(damaged))
    context.log_event(
        dg.AssetObservation(
            keys.asset_key(config.name, keys.PUBLISHED_VERSION),
            description=f"version {manifest.version} read back: {words}",
            metadata=of_audit(manifest, found, seconds),
        )
    )
    context.log.info(f"version {manifest.version} read back in {seconds:,.1f} s: {words}")


def of_audit(manifest: Manifest, found: Audit, seconds: float) -> metadata.Metadata:
    """What the catalogue says of a version that was read back."""
    report = found.report
    read = 0 if report.level == "stat" else manifest.total_bytes
    values: metadata.Metadata = {
        "version": manifest.version,
        "passed": report.passed,
        "level": report.level,
        "share of samples decoded": report.sample if report.level == "decode" else 0.0,
        "shards": len(report.shards),
        "damaged shards": len(found.damaged),
        "samples": report.samples["published"],
        "bytes": manifest.total_bytes,
        "errors": report.errors,
        "warnings": report.warnings,
        "seconds": round(seconds, 3),
        "bytes read": read,
        "bytes read per second": round(read / max(seconds, 1e-3)),
    }
    if report.counts:
        values["findings"] = dg.MetadataValue.table(list(_rows(report)))
    return values


def _rows(report: Report) -> Iterator[dg.TableRecord]:
    examples: dict[tuple[str, str], str] = {}
    for finding in report.findings:
        examples.setdefault((finding.severity, finding.code), printable(finding.message))
    for (severity, code), count in report.counts.items():
        example = examples.get((severity, code), "")
        yield dg.TableRecord(
            {"finding": code, "severity": severity, "count": count, "example": example}
        )


def _verdict(report: Report, damaged: int) -> str:
    if report.passed:
        head = f"passed ({report.level})"
    else:
        head = f"failed ({report.level}): {counted(report.errors, 'error')}, " + (
            counted(damaged, "damaged shard") if damaged else "no shard damaged"
        )
    return f"{head}, {counted(report.warnings, 'warning')}" if report.warnings else head


def _lines(shard: ShardReport) -> Iterator[str]:
    """A line for each finding of a damaged shard: which member, and what."""
    partition = seal.partition_of(shard.name)
    for finding in shard.errors:
        member = f"{finding.key}.{finding.field}" if finding.key else ""
        member = "" if member in finding.message else f"{member}: "
        yield printable(f"{partition}: {member}{finding.code}: {finding.message}")


def _of_shard(config: DatasetConfig, manifest: Manifest, shard: ShardReport) -> dg.AssetObservation:
    partition = seal.partition_of(shard.name)
    lines = "\n".join(f"- `{line.replace('`', '')}`" for line in list(_lines(shard))[:20])
    return dg.AssetObservation(
        keys.asset_key(config.name, keys.SHARDS),
        partition=partition,
        description=f"{partition}: {metadata.verdict(shard)}",
        metadata={
            "version": manifest.version,
            "shard": shard.name,
            "passed": False,
            "verification": metadata.verdict(shard),
            "level": shard.level,
            "errors": len(shard.errors),
            "findings": dg.MetadataValue.md(lines),
        },
    )


def _sound(config: DatasetConfig, manifest: Manifest, name: str, level: str) -> dg.AssetObservation:
    """Of a shard that an earlier verification found damaged, and this one, as deep, does not."""
    partition = seal.partition_of(name)
    return dg.AssetObservation(
        keys.asset_key(config.name, keys.SHARDS),
        partition=partition,
        description=f"{partition}: passed ({level})",
        metadata={
            "version": manifest.version,
            "shard": name,
            "passed": True,
            "verification": f"passed ({level})",
            "level": level,
        },
    )


def _damaged_before(instance: dg.DagsterInstance, dataset: str) -> dict[str, str]:
    """By the shards' names, the level at which the latest reading found damage."""
    latest: dict[str, str | None] = {}
    key = keys.asset_key(dataset, keys.SHARDS)
    for record in instance.fetch_observations(key, limit=1000).records:
        observed = record.asset_observation
        if observed is not None and {"shard", "passed", "level"} <= observed.metadata.keys():
            name, passed, level = (
                observed.metadata[each].value for each in ("shard", "passed", "level")
            )
            latest.setdefault(str(name), None if passed else str(level))
    return {name: level for name, level in latest.items() if level is not None}


def _failure(config: DatasetConfig, storage: Storage, manifest: Manifest, found: Audit) -> str:
    """What is not as it was published, and what to do."""
    head = (
        f"{config.name}: version {manifest.version} is not as it was published: "
        f"{_verdict(found.report, len(found.damaged))}"
    )
    if not found.damaged:
        errors = [each for each in found.report.findings if each.severity == "error"]
        shown = [printable(f"{each.code}: {each.message}") for each in errors]
        return _listed(head, shown) + (
            "\nNo shard is damaged. Mend the source or the configuration, and run "
            f"{keys.job_name(config.name)}"
        )
    shown = [
        "\n    ".join(list(_lines(shard))[:_FINDINGS]) for _, shard in sorted(found.damaged.items())
    ]
    return f"{_listed(head, shown)}\n{_advice(config, storage, manifest, found.damaged)}"


def _listed(head: str, shown: Sequence[str]) -> str:
    more = f"\n  and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return "\n  ".join([f"{head}:", *shown[:_SHOWN]]) + more


def _advice(
    config: DatasetConfig,
    storage: Storage,
    manifest: Manifest,
    damaged: Mapping[str, ShardReport],
) -> str:
    newest = version.read(storage, None, config.name)
    lost = set(damaged) - {shard.name for shard in newest.shards}
    parts = []
    if len(lost) < len(damaged):
        parts.append(
            f"Run {keys.repair_job_name(config.name)}: it packs damaged shards of the newest version "
            "anew from the source, to the bytes that were published"
        )
    if lost:
        parts.append(
            f"Not in the newest version, {newest.version}, any more: "
            f"{counted(len(lost), 'damaged shard')}. Restore the files from a backup, or let "
            f"{keys.gc_job_name(config.name)} remove version {manifest.version} when its time has come"
        )
    return "\n".join(parts)
