"""`wds-pipeline read-bench`: how fast a dataset is read, and what is the limit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.training.read_bench import Pass, ReadBench

_SHUFFLES = ("window", "full", "stored")


@click.command("read-bench")
@click.argument("url")
@click.option("--version", metavar="NUMBER", default="latest", show_default=True)
@click.option("--split", metavar="SPLIT", help="By default all of them.")
@click.option("--fields", metavar="FIELD,…", help="Read only these.")
@click.option(
    "--decode",
    multiple=True,
    metavar="SPEC",
    help="pil, rgb8, torchrgb, auto, …; or FIELD=SPEC, several times; or package.module:function of "
    "a sample. By default samples stay bytes.",
)
@click.option(
    "--collate",
    metavar="MODULE:FUNCTION",
    help="Makes batches, as torch.utils.data:default_collate.",
)
@click.option("--on-error", type=click.Choice(["raise", "skip"]), default="raise")
@click.option("--shuffle", type=click.Choice(_SHUFFLES), default="window", show_default=True)
@click.option("--batch-size", type=click.IntRange(min=0), default=64, show_default=True)
@click.option("--threads", type=click.IntRange(min=0), help="That decode and collate.")
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Processes of torch's DataLoader."
)
@click.option("--cache", metavar="FOLDER", help="Keep there what a store gave.")
@click.option("--storage", multiple=True, metavar="KEY=VALUE", help="As in a dataset's YAML file.")
@click.option("--cold", is_flag=True, help="Drop local shards from the page cache before a pass.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=10.0, show_default=True, help="In all."
)
@json_option
def command(url: str, as_json: bool, **options: Any) -> None:
    """Measure how fast a dataset is read, and what is the limit.

    URL is a dataset's destination, a folder or a store, or tars of others that have an index; the
    options are a job's own settings. The same samples are taken as asked, without decoding, and as plain
    bytes; the difference says where the time goes. Nothing is written, but to --cache.
    """
    from wds_pipeline.cli.progress import progress_bars
    from wds_pipeline.training.dataset import open_dataset
    from wds_pipeline.training.read_bench import Settings, measure

    collate = options["collate"]
    settings = Settings(
        seconds=options["seconds"],
        batch_size=options["batch_size"] or None,
        shuffle=options["shuffle"],
        threads=options["threads"],
        workers=options["workers"],
        collate=None if collate is None else _function(collate, "--collate"),
        cold=options["cold"],
    )
    decode, fields = _decode(options["decode"]), options["fields"]
    begin = time.perf_counter()
    dataset = open_dataset(
        url,
        options["version"],
        options["split"],
        fields=None if fields is None else [each for each in fields.split(",") if each],
        decode=decode,
        on_error=options["on_error"],
        storage=_pairs(options["storage"], "--storage"),
        cache=options["cache"],
    )
    opening = time.perf_counter() - begin
    with dataset, progress_bars() as progress:
        found = measure(dataset, settings, progress)
    if as_json:
        print_json(_values(found, opening))
    else:
        _print(found, opening)


def _decode(given: Sequence[str]) -> Any:
    """What `open_dataset` takes: one spec or function for all, or a mapping."""
    if not given:
        return None
    if any("=" in each for each in given):
        rules = _pairs(given, "--decode")
        return {
            name: _function(spec, "--decode") if ":" in spec else spec or None
            for name, spec in rules.items()
        }
    if len(given) > 1:
        raise click.BadParameter(
            f"found {' and '.join(given)}; expected one for all fields, or FIELD=SPEC for each",
            param_hint="--decode",
        )
    return _function(given[0], "--decode") if ":" in given[0] else given[0]


def _pairs(given: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for each in given:
        name, separator, value = each.partition("=")
        if not separator or not name:
            raise click.BadParameter(f"found {each!r}; expected NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def _function(path: str, option: str) -> Any:
    import os
    import sys
    from importlib import import_module

    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` has it
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint=option) from None
    if not callable(found):
        raise click.BadParameter(f"{path} is no function", param_hint=option)
    return found


def _print(found: ReadBench, opening: float) -> None:
    from wds_pipeline.cli.tables import print_table
    from wds_pipeline.dataset.wording import human_bytes, printable
    from wds_pipeline.training.read_bench import advice

    dataset = found.dataset
    size = human_bytes(found.sample_bytes)
    click.echo(printable(f"{dataset.catalog.named}: {dataset.catalog.storage.url}"))
    click.echo(f"{len(dataset):,} samples of {size} on average; {_settings(found)}\n")
    print_table(
        ("what", "samples/s", "MB/s", "samples", "seconds"),
        [
            (what, f"{each.rate:,.0f}", _speed(each), f"{each.samples:,}", f"{each.seconds:.2f}")
            for what, each in _passes(found).items()
        ],
        right=("samples/s", "MB/s", "samples", "seconds"),
    )
    again = found.again
    waits = " · ".join(f"{1000 * again.percentile(part):.1f}" for part in (0.5, 0.99, 1.0))
    step = "batch" if found.settings.batch_size else "sample"
    click.echo(f"\nfirst {step}: {1000 * found.first_pass.first:,.0f} ms after the start", nl=False)
    click.echo(f"; opening took {1000 * opening:,.0f} ms")
    click.echo(f"wait for a {step}, ms: {waits} (median · 99 % · longest)")
    click.echo(f"cache: {_cache(found)}")
    if dataset.errors.count:
        click.echo(f"left out: {dataset.errors.count:,} samples do not decode")
    parts = sorted(found.parts.items(), key=lambda each: -each[1])
    whole = sum(found.parts.values()) or 1.0
    shares = ", ".join(f"{name} {part / whole:.0%}" for name, part in parts if part)
    click.echo(f"\nbottleneck: {found.bottleneck} ({shares})")
    click.echo(advice(found))


def _settings(found: ReadBench) -> str:
    from wds_pipeline.dataset.wording import counted

    settings = found.settings
    hands = counted(found.hands, "thread")
    if settings.workers:
        hands = counted(settings.workers, "worker")
    batch = f"batches of {settings.batch_size}" if settings.batch_size else "single samples"
    return f"{batch}, shuffle {settings.shuffle}, {hands}"


def _passes(found: ReadBench) -> dict[str, Pass]:
    from wds_pipeline.dataset.wording import counted

    threads = counted(found.hands, "thread")
    every = {
        "as asked, first pass": found.first_pass,
        "as asked, again": found.again,
        "reading alone": found.raw,
        f"decoding alone, {threads}": found.decode,
        f"collating alone, {threads}": found.collate,
        "shards in large blocks": found.disk,
    }
    return {what: each for what, each in every.items() if each is not None}


def _speed(found: Pass) -> str:
    return f"{found.bytes / found.seconds / 1e6:,.0f}" if found.bytes and found.seconds else ""


def _cache(found: ReadBench) -> str:
    if found.settings.cold:
        return "cold: shards were dropped from the page cache before each pass"
    known = found.cached is not None
    state = f"{found.cached:.0%} of the shards were in the page cache at first" if known else ""
    if found.was_cold:
        slower = found.again.rate / found.first_pass.rate
        rest = (
            f"the first pass was {slower:.1f} times as slow as the second: what does not stay in a cache "
            "is read at its speed"
        )
        return f"{state}; {rest}" if state else rest
    if found.disk is None:
        return "a store; the second pass was no faster than the first"
    return f"{state or 'warm'}; --cold measures without"


def _values(found: ReadBench, opening: float) -> dict[str, Any]:
    from wds_pipeline.training.read_bench import advice

    settings, dataset = found.settings, found.dataset
    names = ("first_pass", "again", "raw", "decode", "collate", "disk")
    return {
        "dataset": dataset.catalog.dataset,
        "version": dataset.version,
        "split": dataset.split,
        "url": dataset.catalog.storage.url,
        "samples": len(dataset),
        "sample_bytes": found.sample_bytes,
        "settings": {
            "batch_size": settings.batch_size,
            "shuffle": settings.shuffle,
            "threads": settings.threads,
            "workers": settings.workers,
            "hands": found.hands,
            "cold": settings.cold,
            "seconds": settings.seconds,
        },
        "open_seconds": opening,
        "first_seconds": found.first_pass.first,
        "samples_per_second": found.again.rate,
        "bytes_per_second": found.again.rate * found.sample_bytes,
        "passes": {
            name: _pass_values(each) for name in names if (each := getattr(found, name)) is not None
        },
        "skipped": dataset.errors.count,
        "cached": found.cached,
        "was_cold": found.was_cold,
        "seconds_per_sample": found.parts,
        "bottleneck": found.bottleneck,
        "advice": advice(found),
    }


def _pass_values(found: Pass) -> dict[str, Any]:
    return {
        "samples": found.samples,
        "bytes": found.bytes,
        "seconds": found.seconds,
        "samples_per_second": found.rate,
        "wait_seconds": {
            "median": found.percentile(0.5),
            "p99": found.percentile(0.99),
            "longest": found.percentile(1.0),
        },
    }
