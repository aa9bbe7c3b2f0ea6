"""`wds-pipeline index`: what is in tars that somebody else made, and other tools' indexes of them."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.export_formats import formats_option
from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.dataset.shard_report import Finding
    from wds_pipeline.dataset.tar_index import TarIndex
    from wds_pipeline.dataset.tar_indexing import Indexed

_SHOWN = 20  # findings
_AMONG_TARS = ("energon", "open_clip")


@click.command("index")
@click.argument("tars", nargs=-1, required=True)
@click.option(
    "--output",
    metavar="FOLDER",
    help="Where the index goes, a folder or URL; by default .wds_pipeline/ beside the tars.",
)
@formats_option()
@click.option(
    "--name", metavar="NAME", help="The dataset's name in those; by default the folder's."
)
@click.option("--split", default="train", show_default=True, help="The split that the tars are of.")
@click.option("--add", is_flag=True, help="Keep the tars that the index has already.")
@click.option("--again", is_flag=True, help="Read tars that did not change, too.")
@click.option("--workers", type=click.IntRange(min=1), help="How many tars are read at a time.")
@json_option
def command(
    tars: tuple[str, ...],
    output: str | None,
    formats: list[str],
    name: str | None,
    split: str,
    add: bool,
    again: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Index tars that somebody else made, where they are, and check them.

    TARS are paths or URLs: 'cc3m-{0000..0575}.tar', several, joined by ::, with *, or folders; - reads
    them from stdin, one a line. Each tar is read once and never written to; one that did not change since
    the last time is not read.

    Exit code 1 if any is damaged: what is whole of it is indexed.
    """
    from wds_pipeline.cli.progress import progress_bars
    from wds_pipeline.dataset.tar_indexing import index_tars
    from wds_pipeline.dataset.wording import printable

    _check_split(split)
    named = sys.stdin.read().split("\n") if tars == ("-",) else tars
    with progress_bars() as progress:
        done = index_tars(
            [each for each in named if each],
            output,
            workers=workers,
            again=again,
            add=add,
            progress=progress,
        )
    index = done.index
    if not as_json:
        _print(done)
    # After what is wrong with the tars, which may be why a format cannot be written.
    written = _export(index, formats, name or _folder_name(index), split)
    if as_json:
        print_json(_values(done, written))
    else:
        for each, place in written.items():
            click.echo(printable(f"{each}: {place}"))
    if any(row.errors for row in index.rows):
        click.get_current_context().exit(1)


def _check_split(split: str) -> None:
    from wds_pipeline.config import check_split_name

    try:
        check_split_name(split)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--split") from None


def _folder_name(index: TarIndex) -> str:
    return index.tars.url.rstrip("/").rpartition("/")[2] or "tars"


def _export(index: TarIndex, formats: list[str], name: str, split: str) -> dict[str, str]:
    """Writes the formats; returns where each lies.

    Those that their tool looks for where the tars are go there; the others lie in the index's folder.
    """
    from concurrent.futures import ThreadPoolExecutor
    from datetime import datetime, timezone

    from wds_pipeline.dataset import export

    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    contents = export.of_index(index, name, split, created)
    export.check(formats, index.tars, name)

    def write(each: str) -> str:
        storage, folder = index.storage, f"{index.folder}{each}/"
        if each in _AMONG_TARS:
            storage, folder = index.tars, ""
        export.write(each, contents, storage, folder)
        return storage.locate(folder)

    with ThreadPoolExecutor(max(1, len(formats))) as threads:
        return dict(zip(formats, threads.map(write, formats), strict=True))


def _values(done: Indexed, written: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    index = done.index
    return {
        "index": index.place,
        "tars": index.tars.url,
        "samples": index.samples,
        "bytes": sum(row.bytes for row in index.rows),
        "members": sum(row.members for row in index.rows),
        "digest": index.digest,
        "fields": dict(_fields(index)),
        "read": len(done.read),
        "unchanged": done.kept,
        "renamed": done.renamed,
        "removed": done.removed,
        "formats": written,
        "shards": [
            {
                "path": row.path,
                "samples": row.samples,
                "bytes": row.bytes,
                "digest": row.digest,
                "findings": [asdict(each) for each in row.findings],
            }
            for row in index.rows
        ],
    }


def _fields(index: TarIndex) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for row in index.rows:
        counts.update(row.fields)
    return counts.most_common()


def _print(done: Indexed) -> None:
    from wds_pipeline.dataset.wording import counted, human_bytes, printable

    index = done.index
    total = human_bytes(sum(row.bytes for row in index.rows))
    fields = ", ".join(f"{name} {count:,}" for name, count in _fields(index)[:10])
    click.echo(
        printable(f"tars:    {counted(len(index.rows), 'tar')}, {total}, in {index.tars.url}")
    )
    click.echo(printable(f"samples: {index.samples:,} ({fields})"))
    parts = [f"{len(done.read):,} read", f"{done.kept:,} unchanged"]
    parts += [f"{len(done.renamed):,} renamed"] if done.renamed else []
    parts += [f"{len(done.removed):,} no longer there"] if done.removed else []
    click.echo(printable(f"index:   {index.place} ({', '.join(parts)})"))
    _print_findings([found for row in index.rows for found in row.findings])


def _print_findings(findings: list[Finding]) -> None:
    """Errors one by one; warnings, which all tars of one maker share, once a kind."""
    from wds_pipeline.dataset.wording import printable

    errors = [each for each in findings if each.severity == "error"]
    for found in errors[:_SHOWN]:
        times = f" ({found.count:,} times)" if found.count > 1 else ""
        click.echo(printable(f"error: {found.shard}: {found.code}{times}: {found.message}"))
    if len(errors) > _SHOWN:
        click.echo(f"… and {len(errors) - _SHOWN:,} more errors; --json has all")
    warnings: dict[str, list[Finding]] = {}
    for found in findings:
        if found.severity != "error":
            warnings.setdefault(found.code, []).append(found)
    for code, some in warnings.items():
        count = sum(each.count for each in some)
        others = f" and {len(some) - 1:,} more tars" if len(some) > 1 else ""
        click.echo(
            printable(f"warning: {some[0].shard}{others}: {code} ({count:,}): {some[0].message}")
        )
