"""Keys that come twice: readers would take the second sample for another, or for a part of the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.sample import Sample
from wds_pipeline.errors import DataError

Duplicates = Literal["error", "rename", "keep-first"]
POLICIES: tuple[str, ...] = get_args(Duplicates)


class UniqueKeys:
    """Lets each key through once. It keeps them all in memory, some 100 bytes each.

    `rename` gives the second sample of a key a number behind it (`a-2`), `keep-first` leaves it out.
    """

    def __init__(self, policy: str, account: Account) -> None:
        self._policy = policy
        self._account = account
        self._where: dict[str, str] = {}

    def of(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples whose keys are new, or were made so. Raises DataError by the policy."""
        where = self._where
        for sample in samples:
            key = sample.key
            if key in where:
                if self._policy == "error":
                    raise DataError(self._told(sample))
                if self._policy == "keep-first":
                    self._account.note("left out, whose keys came before", key)
                    continue
                self._account.note("renamed, whose keys came before", key)
                number = 2
                while f"{key}-{number}" in where:
                    number += 1
                sample.key = f"{key}-{number}"
            where[sample.key] = sample.where
            yield sample

    def _told(self, sample: Sample) -> str:
        first = self._where[sample.key]
        place = f"{sample.where}: the key {sample.key!r} comes again"
        why = f"; it was in {first} before"
        if first == sample.where:
            why = ", or its members are not next to each other, or a field is there twice"
        return (
            f"{place}{why}. Readers would take the second sample for another one: choose "
            "--duplicates rename or keep-first, or mend the tar (`tar --sort=name` writes members by name)"
        )
