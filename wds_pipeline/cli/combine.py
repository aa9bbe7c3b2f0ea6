"""`wds-pipeline combine`: a token data set as one memory-mapped folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.tokens.combine import TokenVersion
    from wds_pipeline.tokens.combined import Combined

_SHOWN = 5


@click.command("combine")
@click.argument("names", nargs=-1, required=True, metavar="[NAME] [DESTINATION]")
@click.option(
    "--version", "number", type=click.IntRange(min=1), metavar="N", help="Default: newest."
)
@click.option("--split", metavar="SPLIT", help="Which, where there are several.")
@click.option(
    "--also",
    multiple=True,
    metavar="NAME[:N]",
    help="Another token dataset, or version; of rows with the same key, the first one's is kept.",
)
@click.option(
    "--duplicates",
    type=click.Choice(["drop", "refuse"]),
    default="drop",
    show_default=True,
    help="What to do with rows that have the same key.",
)
@click.option(
    "--allow-missing",
    is_flag=True,
    help="Go on without shards that are missing or damaged: their rows get idx -1, write_flag 0.",
)
@click.option("--workers", type=click.IntRange(min=1), help="How many shards are copied at a time.")
@click.option("--check", is_flag=True, help="Read the result back.")
@click.option(
    "--from",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Combine other programs' results instead; may be repeated.",
)
@click.option(
    "--partial", is_flag=True, help="With --from: also results of workers that did not end."
)
@click.option("--move", is_flag=True, help="With --from: delete the results, once all is checked.")
@json_option
def command(
    names: tuple[str, ...],
    number: int | None,
    split: str | None,
    also: tuple[str, ...],
    duplicates: Any,
    allow_missing: bool,
    workers: int | None,
    check: bool,
    folders: tuple[Path, ...],
    partial: bool,
    move: bool,
    as_json: bool,
) -> None:
    """Make one memory-mapped folder of a token dataset.

    It is what TensorDict.load_memmap reads.

    DESTINATION is by default what the dataset's file says (combine.url), else combined/<version>/<split>
    beside the shards. Killed and run again, it goes on;
    run for a newer version, it copies what changed. The folder is whole when it has combined.json.

    \b
    With --from, results of other programs are combined: folders that TensorDict.memmap wrote, or
    .safetensors files, each row with its idx.
      wds-pipeline combine DESTINATION --from FOLDER [--from FOLDER …] [--partial] [--move]
    """
    if folders:
        if len(names) != 1 or number or split or also:
            raise click.UsageError("--from takes one DESTINATION, and no dataset, version or split")
        _merge(Path(names[0]), folders, partial, move, allow_missing, check, as_json)
        return
    if len(names) > 2:
        raise click.UsageError(
            "expected NAME and DESTINATION; another dataset comes with --also NAME"
        )
    if partial or move:
        raise click.UsageError(
            "--partial and --move go with --from: shards of a version are not deleted"
        )
    from wds_pipeline.cli.dataset_argument import find_dataset
    from wds_pipeline.cli.progress import progress_bars
    from wds_pipeline.tokens import combined
    from wds_pipeline.tokens.combine import combine, default_destination

    first = _version(names[0], number, split)
    sources = [first, *(_version(*_named(each), split) for each in also)]
    if len(names) > 1:
        destination = Path(names[1])
    else:
        folder = find_dataset(names[0]).combine_folder
        destination = folder / first.split if folder else default_destination(first)
    with progress_bars() as progress:
        result = combine(
            sources,
            destination,
            allow_missing=allow_missing,
            duplicates=duplicates,
            workers=workers,
            progress=progress,
        )
        if check:
            combined.check(destination, progress)
    if as_json:
        print_json({**_values(destination, result.combined), "copied": result.copied})
        return
    titles = ", ".join(f"{each.title}, split {each.split}" for each in sources)
    _print(titles, destination, result.combined, f"{result.copied:,} of {{:,}} shards copied")


def _version(name: str, number: int | None, split: str | None) -> TokenVersion:
    from wds_pipeline.cli.dataset_argument import find_dataset, open_version
    from wds_pipeline.errors import ConfigError
    from wds_pipeline.tokens.combine import TokenVersion

    storage, manifest = open_version(find_dataset(name), number)
    if split is None and len(manifest.splits) > 1:
        raise ConfigError(
            f"{name}: version {manifest.version} has the splits {', '.join(manifest.splits)}; say which: "
            "--split"
        )
    chosen = split or next(iter(manifest.splits))
    manifest.of_split(chosen)  # says so if there is none of that name
    return TokenVersion(storage, manifest, chosen)


def _named(also: str) -> tuple[str, int | None]:
    name, colon, number = also.partition(":")
    if colon and not number.isdecimal():
        raise click.BadParameter(f"{also!r}: expected NAME or NAME:7", param_hint="--also")
    return name, int(number) if colon else None


def _merge(
    destination: Path,
    folders: tuple[Path, ...],
    partial: bool,
    move: bool,
    allow_missing: bool,
    check: bool,
    as_json: bool,
) -> None:
    from wds_pipeline.cli.progress import progress_bars
    from wds_pipeline.tokens import combined
    from wds_pipeline.tokens.merge import merge

    with progress_bars() as progress:
        done = merge(
            folders,
            destination,
            partial=partial,
            move=move,
            allow_missing=allow_missing,
            progress=progress,
        )
        if check:
            combined.check(destination, progress)
    if as_json:
        unfinished = [str(path) for path in done.unfinished]
        values = {"copied": done.copied, "unfinished": unfinished, "deleted": done.deleted}
        print_json({**_values(destination, done.combined), **values})
        return
    title = f"{len(folders)} folder{'s' if len(folders) > 1 else ''}"
    _print(title, destination, done.combined, f"{done.copied:,} of {{:,}} results copied")
    for path in done.unfinished[:_SHOWN]:
        click.echo(f"left out: {path}: its worker did not end (--partial takes it in)")
    if len(done.unfinished) > _SHOWN:
        click.echo(f"… and {len(done.unfinished) - _SHOWN:,} more")
    if done.deleted:
        click.echo(f"deleted: {done.deleted:,} results, after reading the folder back")


def _values(destination: Path, found: Combined) -> dict[str, Any]:
    return {
        "destination": str(destination),
        "rows": found.rows,
        "columns": {
            n: {"shape": list(c.shape), "dtype": c.dtype} for n, c in found.columns.items()
        },
        "sources": found.sources,
        "about": found.about,
        "duplicates": found.duplicates,
        "unwritten": found.unwritten,
        "missing": found.missing,
    }


def _print(title: str, destination: Path, found: Combined, copied: str) -> None:
    click.echo(
        f"{title}: {found.rows:,} rows in {destination} ({copied.format(len(found.pieces))})"
    )
    for name, column in found.columns.items():
        click.echo(f"  {name}: {column.dtype} {[found.rows, *column.shape]}")
    if found.duplicates:
        click.echo(f"left out: {found.duplicates:,} rows that were there already")
    if found.unwritten:
        click.echo(
            f"left out: {found.unwritten:,} rows that were never written (idx -1 or write_flag 0)"
        )
    for name in found.missing[:_SHOWN]:
        click.echo(f"warning: {name}: missing or damaged; its rows are not written", err=True)
    if len(found.missing) > _SHOWN:
        click.echo(f"warning: … and {len(found.missing) - _SHOWN:,} more", err=True)
