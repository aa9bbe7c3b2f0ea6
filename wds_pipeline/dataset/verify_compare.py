"""Compares the members that a tar holds with those that the plan and the member index say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from wds_pipeline.dataset.shard_report import Finding

LISTED = 20  # findings of one code that are listed for one shard


@dataclass
class Damage:
    """Collects a shard's findings; of each code the first `LISTED`, and how many more there are."""

    shard: str
    where: str
    _counts: Counter[str] = field(default_factory=Counter)
    _findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, message: str, key: str = "", name: str = "") -> None:
        """Notes one finding, in the words `<where>: <message>`."""
        self._counts[code] += 1
        if self._counts[code] <= LISTED:
            text = f"{self.where}: {message}"
            self._findings.append(Finding("error", code, self.shard, key, name, text))

    def findings(self) -> list[Finding]:
        """All of them, in the order found."""
        rest = [
            Finding(
                "error", code, self.shard, "", "",
                f"{self.where}: and {count - LISTED:,} more ({code})", count - LISTED,
            )
            for code, count in self._counts.items()
            if count > LISTED
        ]  # fmt: skip
        return self._findings + rest


@dataclass
class Held:
    """The members found in the tar, by column, in order."""

    names: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


def compare_with_plan(held: Held, expected: pa.Table, whole: bool, damage: Damage) -> None:
    """Compares names, order and sizes; `expected` has the columns name and size.

    `whole` is whether the tar could be read to its end; if not, what follows is not missed singly.
    """
    names = expected.column("name").to_pylist()
    sizes = expected.column("size").to_pylist()
    if names == held.names and sizes == held.sizes:
        return
    if not whole:
        _report_missing_rest(len(held.names), len(names), damage)
        names, sizes = names[: len(held.names)], sizes[: len(held.names)]
    planned, found = Counter(names), Counter(held.names)
    size_of = dict(zip(names, sizes, strict=True))
    for name, count in (planned - found).items():
        damage.add("missing_member", f"the plan has {name!r}{_times(count)}, the tar does not")
    for name, count in (found - planned).items():
        damage.add("unexpected_member", f"holds {name!r}{_times(count)}, the plan does not")
    for name, size in zip(held.names, held.sizes, strict=True):
        if size_of.get(name, size) != size:
            damage.add(
                "wrong_member_size",
                f"{name!r} has {size:,} bytes; the plan expects {size_of[name]:,}",
            )
    if names != held.names and planned == found:
        at, name, other = next(
            (at, a, b) for at, (a, b) in enumerate(zip(names, held.names, strict=True)) if a != b
        )
        damage.add("wrong_order", f"member {at} is {other!r}; the plan expects {name!r} there")


def _times(count: int) -> str:
    return f" {count} times more" if count > 1 else ""


def _report_missing_rest(found: int, expected: int, damage: Damage) -> None:
    if found < expected:
        damage.add(
            "missing_member",
            f"{found:,} members could be read; the plan expects {expected:,}",
        )


def compare_with_index(held: Held, index: pa.Table, whole: bool, damage: Damage) -> None:
    """Compares key, field, offset and size of every member with the member index."""
    if index.num_rows != len(held.keys):
        damage.add(
            "index_mismatch",
            f"the member index has {index.num_rows:,} members; the tar has {len(held.keys):,}"
            + ("" if whole else " that can be read"),
        )
    rows = min(index.num_rows, len(held.keys))
    columns: Sequence[tuple[str, Sequence[object]]] = (
        ("key", held.keys), ("field", held.fields), ("offset", held.offsets), ("size", held.sizes),
    )  # fmt: skip
    said = {name: index.column(name).to_pylist()[:rows] for name, _ in columns}
    if all(said[name] == values[:rows] for name, values in columns):
        return
    for row in range(rows):
        differing = [
            f"{name} {said[name][row]!r} where the tar has {values[row]!r}"
            for name, values in columns
            if said[name][row] != values[row]
        ]
        if differing:
            damage.add(
                "index_mismatch",
                f"the member index says of member {row} ({held.names[row]!r}): "
                + ", ".join(differing),
                held.keys[row],
                held.fields[row],
            )
