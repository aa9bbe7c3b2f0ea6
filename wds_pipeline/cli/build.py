"""`wds-pipeline build`: what changed, published as a new version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.dataset_argument import dataset_argument, open_destination
from wds_pipeline.cli.interrupt import interruptible
from wds_pipeline.cli.json_output import json_option, print_json
from wds_pipeline.cli.progress import progress_bars

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.build import BuildResult


@click.command("build")
@dataset_argument
@click.option(
    "--share",
    metavar="K/N",
    callback=lambda _ctx, _param, text: _share(text),
    help="Pack the K-th of N parts of the shards, and publish nothing: for array jobs.",
)
@json_option
def command(config: DatasetConfig, share: tuple[int, int] | None, as_json: bool) -> None:
    """Build what changed and publish it as a new version.

    Killed at any point, the next build goes on where it stopped; readers see the old version or the
    new one. Exits with 0 when a version was published, and when nothing changed.

    \b
    With --share, tasks of an array job pack the shards between them; a build without it then publishes:
      wds-pipeline build NAME --share $SLURM_ARRAY_TASK_ID/16      (sbatch --array=1-16)
    """
    if share is not None:
        _build_share(config, share, as_json)
    else:
        print_result(config, run_build(config), as_json)


def _share(text: str | None) -> tuple[int, int] | None:
    from wds_pipeline.dataset.share import parse_share

    try:
        return None if text is None else parse_share(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--share") from None


def _build_share(config: DatasetConfig, share: tuple[int, int], as_json: bool) -> None:
    from dataclasses import asdict

    from wds_pipeline.dataset.share import build_share
    from wds_pipeline.dataset.wording import counted

    kept = "the shards sealed so far are kept, and the same command goes on from there"
    with interruptible(kept), progress_bars() as progress:
        done = build_share(config, *share, progress)
    if as_json:
        print_json(asdict(done))
    elif done.status == "unchanged":
        click.echo("nothing changed: there is nothing to pack")
    else:
        rejected = f", {counted(done.rejected, 'sample')} rejected" if done.rejected else ""
        click.echo(
            f"share {share[0]} of {share[1]}: {counted(len(done.shards), 'shard')}, {done.packed:,} packed "
            f"now{rejected}; when all shares are done, `wds-pipeline build {config.name}` publishes"
        )
        for each in done.changed:
            click.echo(f"warning: {each}: source files changed meanwhile; the last build packs it")


def run_build(config: DatasetConfig, **options: bool) -> BuildResult:
    """Builds with progress bars; a stop says what is kept."""
    from wds_pipeline.dataset.build import build

    kept = (
        "nothing was published; the shards sealed so far are kept, and "
        f"`wds-pipeline build {config.name}` goes on from there"
    )
    with interruptible(kept), progress_bars() as progress:
        return build(config, progress, **options)


def print_result(config: DatasetConfig, result: BuildResult, as_json: bool) -> None:
    """Says what a build did, and what the version holds."""
    if as_json:
        print_json(_values(result))
        return
    from wds_pipeline.dataset.summary import summary
    from wds_pipeline.dataset.wording import counted, human_bytes, printable

    manifest = result.manifest
    if result.status == "unchanged" and not result.warnings:
        click.echo(f"nothing changed: version {manifest.version} is up to date")
        _print_costs(result)
        click.echo(f"(`wds-pipeline versions {config.name} --summary` shows what it holds)")
        return
    text = summary(config, open_destination(config), manifest)
    if result.status == "unchanged":
        click.echo(f"nothing changed: version {manifest.version} is up to date\n")
    elif result.status == "repaired":
        packed = counted(result.packed, "shard")
        click.echo(f"nothing changed; repaired {packed} of version {manifest.version}\n")
    else:
        written = sum(s.bytes for s in manifest.shards if s.since == manifest.version)
        gone = f", dropped {counted(len(result.gone), 'shard')}" if result.gone else ""
        mended = result.packed - len(result.causes)
        if mended > 0:
            gone += f", repaired {counted(mended, 'shard')}"
        elif mended < 0:
            gone += f", {-mended:,} of which a build that was stopped had sealed"
        click.echo(
            f"published version {manifest.version}: "
            f"{counted(len(result.causes), 'new shard')} ({human_bytes(written)}){gone}\n"
        )
    for warning in result.warnings:
        click.echo(f"warning: {printable(warning)}\n")
    _print_costs(result)
    click.echo(text, nl=False)


def _print_costs(result: BuildResult) -> None:
    if str(result.costs):
        click.echo(f"asked of the stores: {result.costs}\n")


def _values(result: BuildResult) -> dict[str, Any]:
    manifest = result.manifest
    return {
        "status": result.status,
        "version": manifest.version,
        "packed": result.packed,
        "causes": result.causes,
        "gone": result.gone,
        "warnings": result.warnings,
        "costs": result.costs.to_json(),
        **manifest.model_dump(include={"dataset", "splits", "files", "quarantined"}),
        "verification": manifest.verification,
    }
