"""What became of the samples: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from wds_pipeline.dataset.wording import counted, human_bytes, printable


@dataclass
class Account:
    """Counts of one run. `notes` has, by what is said of them, how many there were and an example."""

    tars: int = 0
    read: int = 0
    written: int = 0
    bytes: int = 0
    notes: dict[str, tuple[int, str]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    failed: int = 0

    def note(self, what: str, example: str = "", count: int = 1) -> None:
        """Something happened to so many samples or members, such as this one."""
        before, first = self.notes.get(what, (0, example))
        self.notes[what] = before + count, first

    def lines(self) -> Iterator[str]:
        """The account in words, one clause a line."""
        yield (
            f"{counted(self.read, 'sample')} read of {counted(self.tars, 'tar')}, "
            f"{self.written:,} written ({human_bytes(self.bytes)})"
        )
        for what, (count, example) in self.notes.items():
            yield printable(f"{count:,} {what}" + (f", such as {example}" if example else ""))
        for each in self.damaged:
            yield printable(f"damaged: {each}")
