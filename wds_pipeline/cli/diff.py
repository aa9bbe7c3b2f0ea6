"""`wds-pipeline diff`: what differs between two versions, or two sets of tars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from wds_pipeline.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from wds_pipeline.dataset.tars.diff import Change, Difference, Placed

_SHOWN = 20  # changes of each kind
_MARKS = {"added": "+", "deleted": "-", "edited": "~", "moved": ">"}


@click.command("diff")
@click.argument("what", nargs=-1, required=True, metavar="NAME VERSION [VERSION] | TARS TARS")
@click.option("--content", is_flag=True, help="Only contents count: a sample may be anywhere.")
@click.option("--all", "show_all", is_flag=True, help="Show each sample that differs.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, what: tuple[str, ...], content: bool, show_all: bool, as_json: bool
) -> None:
    """Show which samples differ between two versions, or two sets of tars.

    NAME is a configured dataset; with one version, that is compared with the newest. TARS is a tar, a pattern
    such as 'a-{0000..0575}.tar' or 'a-*.tar', or a folder. Samples were added, deleted, edited (which fields
    differ is shown), or moved: to another split or shard, or to a tar of another name.

    Exit code, as of diff: 0 when all is the same, 1 when something differs, 2 when it cannot be said.
    """
    from wds_pipeline.cli.interrupt import interruptible
    from wds_pipeline.dataset.wording import printable
    from wds_pipeline.errors import WdsPipelineError

    try:
        with interruptible("nothing was changed"):
            found = _compare(what, moves=not content)
    except WdsPipelineError as error:
        click.echo(printable(f"error: {error}", lines=True), err=True)
        ctx.exit(2)
    if as_json:
        print_json(_values(found))
    else:
        _print(found, None if show_all else _SHOWN)
    ctx.exit(1 if found.changes else 0)


def _compare(what: tuple[str, ...], moves: bool) -> Difference:
    from wds_pipeline.cli.progress import progress_bars
    from wds_pipeline.dataset.tars.diff import diff_tars, diff_versions

    with progress_bars() as progress:
        if len(what) in (2, 3) and all(each.isdigit() for each in what[1:]):
            from wds_pipeline.cli.dataset_argument import find_dataset, open_version

            config = find_dataset(what[0])
            storage, old = open_version(config, int(what[1]))
            _, new = open_version(config, int(what[2]) if len(what) == 3 else None)
            return diff_versions(storage, old, new, moves=moves, progress=progress)
        if len(what) != 2:
            raise click.UsageError(
                "expected a dataset and its versions (captions 3 4), or two sets of tars, each one argument "
                "('a-*.tar' 'b-*.tar')"
            )
        return diff_tars([what[0]], [what[1]], moves=moves, progress=progress)


def _print(found: Difference, most: int | None) -> None:
    from wds_pipeline.dataset.tars.diff import KINDS, in_words
    from wds_pipeline.dataset.wording import counted, printable

    for kind in KINDS:
        some = [each for each in found.changes if each.kind == kind]
        for each in some[:most]:
            more = ", ".join(in_words(each))
            click.echo(printable(f"{_MARKS[kind]} {each.key}{f': {more}' if more else ''}"))
        if most is not None and len(some) > most:
            click.echo(f"{_MARKS[kind]} … and {len(some) - most:,} more {kind}; --all shows them")
    for split, counts in found.counts().items():
        head = f"{split}: " if split else ""
        click.echo(printable(head + ", ".join(f"{counts[k]:,} {k}" for k in KINDS if counts[k])))
    click.echo(f"{counted(found.same, 'sample')} the same")


def _values(found: Difference) -> dict[str, Any]:
    from wds_pipeline.dataset.tars.diff import KINDS

    return {
        "old": found.old,
        "new": found.new,
        "same": found.same,
        **{kind: found.totals[kind] for kind in KINDS},
        "splits": {split: dict(counts) for split, counts in found.counts().items()},
        "changes": [_change(each) for each in found.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    fields = {
        name: {
            "before": before and before._asdict(),
            "after": after and after._asdict(),
        }
        for name, (before, after) in change.fields.items()
    }
    return {
        "kind": change.kind,
        "key": change.key,
        "before": _where(change.before),
        "after": _where(change.after),
        "fields": fields,
    }


def _where(placed: Placed | None) -> dict[str, str] | None:
    return None if placed is None else {"place": placed.place, "split": placed.split}
