"""`wds-pipeline plan`: what a build would do and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wds_pipeline.cli.dataset_argument import dataset_argument
from wds_pipeline.cli.json_output import json_option, print_json
from wds_pipeline.cli.progress import progress_bars

if TYPE_CHECKING:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.costs import PriceTable
    from wds_pipeline.dataset.preview import Preview, ShardPreview

_SHOWN = 30


@click.command("plan")
@dataset_argument
@click.option("--all", "every", is_flag=True, help="List all shards, also those that stay.")
@click.option("--repack", is_flag=True, help="What `wds-pipeline repack` would do.")
@click.option(
    "--price",
    "prices",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What it would cost, by this YAML file of your provider's prices (docs/how-to/object-stores.md).",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    config: DatasetConfig,
    every: bool,
    repack: bool,
    prices: Path | None,
    as_json: bool,
) -> None:
    """Show what a build would do and why; write nothing.

    What is wrong with a file's content (a broken image, json that does not parse) shows only when a
    build reads it. Exits with 1 when the build would fail.
    """
    from wds_pipeline.dataset.costs import read_prices
    from wds_pipeline.dataset.preview import preview

    table = read_prices(prices) if prices else None  # a mistake in it is told before the scan
    with progress_bars() as progress:
        found = preview(config, progress, repack=repack)
    if as_json:
        priced = {"price": table.price(found.costs)} if table else {}
        print_json({**found.to_json(), **priced})
    else:
        _print(found, every)
        _print_costs(found, table)
    if found.problems:
        ctx.exit(1)


def _print(found: Preview, every: bool) -> None:
    from wds_pipeline.dataset.wording import printable

    click.echo(_head(found))
    shards = found.shards if every else found.of("pack", "sealed", "repair")
    _print_shards(shards, None if every else _SHOWN)
    if found.gone:
        more = f" and {len(found.gone) - _SHOWN:,} more" if len(found.gone) > _SHOWN else ""
        click.echo(f"\ngone (no sample is left in them): {', '.join(found.gone[:_SHOWN])}{more}")
    if found.of("pack", "repair"):
        click.echo(f"\n{_totals(found)}")
    _print_left_out(found)
    for warning in found.warnings:
        click.echo(f"\nwarning: {printable(warning)}")
    for problem in found.problems:
        click.echo(printable(f"\nthe build would fail: {problem}", lines=True))


def _print_costs(found: Preview, table: PriceTable | None) -> None:
    if str(found.costs):
        click.echo(f"\nabout to be asked of the stores: {found.costs}")
    if table is None:
        return
    price = table.price(found.costs)
    unit = f" {table.currency}" if table.currency else ""
    click.echo(
        f"price: {price['total']:,.4g}{unit} (source {price['source']:,.4g}, destination "
        f"{price['destination']:,.4g}), and {price['a_month']:,.4g}{unit} a month to keep what is written"
    )


def _head(found: Preview) -> str:
    from wds_pipeline.dataset.wording import counted

    now = f"version {found.version}" if found.version else "nothing"
    samples, shards = counted(found.samples, "sample"), counted(len(found.shards), "shard")
    head = f"{found.dataset}: {now} is published; the source has {samples} for {shards}"
    if found.outcome == "nothing":
        return f"{head}\nnothing to do: nothing changed since version {found.version}"
    if found.outcome == "repair":
        return f"{head}\nnothing changed, but some shards are damaged or gone; a build repairs them"
    stay = len(found.of("keep"))
    if not found.version:
        return head
    head += f"; {stay:,} of these stay as they are"
    if not found.of("pack", "sealed", "repair"):
        left = (
            "what is left out changed, or an overlay's base"
            if not found.gone
            else "shards are dropped"
        )
        head += f"\nno shard to write, but a new version to publish: {left}"
    return head


def _print_shards(shards: list[ShardPreview], limit: int | None) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import human_bytes

    if not shards:
        return
    shown = shards[:limit]
    click.echo()
    print_table(
        ("shard", "what", "why", "samples", "bytes"),
        [
            (each.partition, each.action, each.cause, f"{each.samples:,}", human_bytes(each.bytes))
            for each in shown
        ],
        right=("samples", "bytes"),
    )
    if len(shards) > len(shown):
        click.echo(f"… and {len(shards) - len(shown):,} more (--all shows them)")


def _totals(found: Preview) -> str:
    from wds_pipeline.dataset.wording import counted, human_bytes

    packed = found.of("pack", "repair")
    line = f"to write: {counted(len(packed), 'shard')}, {human_bytes(found.bytes_written)}"
    if found.transforms:
        line += f" before the transforms ({', '.join(found.transforms)})"
    sealed = len(found.of("sealed"))
    if sealed:
        line += f"; {counted(sealed, 'shard')} of a build that was stopped will be taken up"
    elif found.bytes_added:
        ratio = found.bytes_written / found.bytes_added
        line += (
            f", for {human_bytes(found.bytes_added)} of new and edited samples "
            f"({ratio:,.1f} bytes written for each byte of these)"
        )
    return line


def _print_left_out(found: Preview) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import clip, counted

    if found.quarantined:
        count = sum(each.count for each in found.quarantined)
        total = count + found.samples
        click.echo(f"\nquarantine: {counted(count, 'sample')} of {total:,} ({count / total:.2%})")
        print_table(
            ("samples", "reason", "for example"),
            [
                (f"{each.count:,}", each.reason, clip(each.examples[0], 100))
                for each in found.quarantined
            ],
            right=("samples",),
        )
    ignored = {k: v for k, v in found.files.items() if k not in ("packed", "quarantined")}
    ignored |= found.skipped
    if ignored:
        named = ", ".join(f"{count:,} {reason}" for reason, count in ignored.items())
        click.echo(f"\nfiles that are part of no sample: {named}")
