"""Contenders take turns, round by round; the best round of each counts, and the ratios are printed."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    folder: Path
    corpora: tuple[str, ...] = ("typical", "small")
    rounds: int = 5
    quick: bool = False
    disk: bool = False


class Took(NamedTuple):
    """Seconds on the clock, and of all processors: these hardly depend on what else the machine does."""

    seconds: float
    cpu: float


class Stopwatch:
    """Takes the time of what happens from its making on, in this process and those it waits for."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), self._cpu())

    def took(self) -> Took:
        seconds, cpu = self._start
        return Took(time.perf_counter() - seconds, self._cpu() - cpu)

    @staticmethod
    def _cpu() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class Contender:
    """`run` does the work once and says what it took, without preparing and tidying up."""

    name: str
    run: Callable[[], Took]


@dataclass
class Table:
    """Rows to print; the first column is text, the others are numbers or text."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[object]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|---" + "|---:" * (len(self.columns) - 1) + "|")
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass
class Section:
    """What a benchmark found: tables, and notes that go below them."""

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        parts = [*(table.markdown() for table in self.tables)]
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def log(text: str) -> None:
    """Says what is under way."""
    print(f"  {text}", file=sys.stderr, flush=True)


def take_turns(contenders: Sequence[Contender], rounds: int) -> dict[str, list[Took]]:
    """What each contender took, round by round. The order differs from round to round."""
    found: dict[str, list[Took]] = {each.name: [] for each in contenders}
    random = Random(0)
    for number in range(rounds):
        for each in random.sample(contenders, len(contenders)):
            took = each.run()
            found[each.name].append(took)
            log(f"round {number + 1}/{rounds}: {each.name}: {took.seconds:.3f} s")
    return found


def warm_memory(folder: Path, size: int) -> None:
    """Writes so many bytes into a folder in memory and removes them.

    A virtual machine gets pages that it has given back to its host much later than its own: without
    this, whoever runs after a large file was removed would be several times as fast as the others.
    """
    path = folder / "warm"
    block = bytes(16_000_000)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    path.unlink()


def best(rounds: Sequence[Took]) -> float:
    """The seconds of the round that others disturbed least."""
    return min(took.seconds for took in rounds)


def median(rounds: Sequence[Took]) -> float:
    return statistics.median(took.seconds for took in rounds)


def cpu(rounds: Sequence[Took]) -> float:
    """The processors' seconds of the round that needed the fewest."""
    return min(took.cpu for took in rounds)


def in_subprocess(function: str, **arguments: Any) -> Any:
    """Runs `benchmarks.ours.<function>(**arguments)` in a fresh Python; its result comes as JSON.

    Raises CalledProcessError.
    """
    command = [sys.executable, "-m", "benchmarks.ours", function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)
