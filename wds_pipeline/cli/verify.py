"""`wds-pipeline verify`: a published version, read back and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.dataset_argument import (
    dataset_argument,
    open_destination,
    open_version,
    version_option,
)
from wds_pipeline.cli.interrupt import interruptible
from wds_pipeline.cli.json_output import json_option, print_json
from wds_pipeline.cli.progress import progress_bars

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.audit import Audit
    from wds_pipeline.dataset.report import Report
    from wds_pipeline.dataset.version import Manifest

_SHOWN = 5  # findings of each code


def _share(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r}; expected a share such as 10% or 0.1")
    return share


@click.command("verify")
@dataset_argument
@version_option
@click.option(
    "--level",
    type=click.Choice(("stat", "digest", "samples", "decode")),
    help="How deep: files and sizes; their bytes; their members; their content. "
    "By default as the dataset says.",
)
@click.option("--sample", metavar="SHARE", callback=_share, help="Decode only a share, as 10%.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.json and report.html there.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Pack damaged shards of the newest version anew, as they were published.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    config: DatasetConfig,
    number: int | None,
    level: str | None,
    sample: float | None,
    output: Path | None,
    repair: bool,
    as_json: bool,
) -> None:
    """Read a published version back and check all of it.

    Every shard is compared with the version's manifest, ledger and inventory; without --repair
    nothing is written. Exits with 1 when anything is not as it was published, and was not repaired.
    """
    if repair and number is not None:
        raise click.UsageError("--repair is for the newest version; leave out --version")
    found, manifest = _audit(config, number, level, sample)
    if repair and found.damaged:
        _repair(config, found, manifest, level)
        found, manifest = _audit(config, None, level, sample)
    report, version = found.report, manifest.version
    written = _write(report, output) if output is not None else []
    if as_json:
        print_json({"version": version, **_values(report)})
    else:
        _print(report, version)
        for path in written:
            click.echo(f"written: {path}")
    if not report.passed:
        ctx.exit(1)


def _audit(
    config: DatasetConfig, number: int | None, level: str | None, sample: float | None
) -> tuple[Audit, Manifest]:
    from wds_pipeline.compute import open_pool
    from wds_pipeline.dataset.audit import audit, audit_rules

    storage, manifest = open_version(config, number)
    rules = audit_rules(config, manifest, level, sample)
    compute = config.compute
    if rules.level == "stat":  # not worth starting processes for
        compute = compute.model_copy(update={"kind": "threads"})
    with (
        interruptible("nothing was changed"),
        progress_bars() as progress,
        open_pool(compute) as pool,
    ):
        return audit(config, storage, manifest, rules, pool, progress), manifest


def _repair(config: DatasetConfig, found: Audit, manifest: Manifest, level: str | None) -> None:
    from wds_pipeline.compute import open_pool
    from wds_pipeline.dataset.repair import repair, unrepaired
    from wds_pipeline.dataset.wording import counted

    again = f"`wds-pipeline verify {config.name} --repair`"
    kept = f"a shard was replaced whole or not at all; {again} finds what is left"
    with (
        interruptible(kept),
        progress_bars() as progress,
        open_pool(config.compute) as pool,
    ):
        storage = open_destination(config)
        result = repair(config, storage, manifest, found.damaged, pool, level, progress)
    if result.repaired:
        count = counted(len(result.repaired), "damaged shard")
        click.echo(f"{count} packed anew: version {manifest.version} repaired\n", err=True)
    if result.failed:
        job = f"`wds-pipeline build {config.name}`"
        click.echo(unrepaired(config, manifest, result.failed, job) + "\n", err=True)


def _write(report: Report, folder: Path) -> list[Path]:
    from wds_pipeline.dataset import report_html
    from wds_pipeline.errors import DestinationError

    page, data = folder / "report.html", folder / "report.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data.write_bytes(report.to_json())
        page.write_text(report_html.render(report), encoding="utf-8")
    except OSError as error:
        raise DestinationError(
            f"--output {folder}: cannot be written: {error.strerror}; choose another folder"
        ) from error
    return [data, page]


def _values(report: Report) -> dict[str, Any]:
    from dataclasses import asdict

    return {**report.summary(), "listed": [asdict(each) for each in report.findings]}


def _print(report: Report, version: int) -> None:
    from wds_pipeline.dataset.wording import counted, human_bytes, printable

    size = human_bytes(sum(shard.bytes for shard in report.shards))
    depth = report.level
    if report.level == "decode" and report.sample < 1:
        depth += f", {report.sample:.3g} of the samples"
    click.echo(
        f"{report.dataset}, version {version}: read {counted(len(report.shards), 'shard')} "
        f"({size}) at level {depth}"
    )
    for (severity, code), count in report.counts.items():
        click.echo(f"\n{severity}: {code}: {count:,}")
        listed = [f for f in report.findings if (f.severity, f.code) == (severity, code)]
        for finding in listed[:_SHOWN]:
            click.echo(printable(f"  {finding.message}"))
        if count > len(listed[:_SHOWN]):
            click.echo("  …")
    verdict = "passed" if report.passed else f"failed: {counted(report.errors, 'error')}"
    if report.warnings:
        verdict += f", {counted(report.warnings, 'warning')}"
    click.echo(f"\nverification {verdict}")
    if not report.passed:
        click.echo(
            f"`wds-pipeline verify {report.dataset} --repair` packs damaged shards of the newest "
            "version anew"
        )
