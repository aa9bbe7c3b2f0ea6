"""Which samples and fields of a stream are taken."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from wds_pipeline.dataset.tars.account import Account
from wds_pipeline.dataset.tars.sample import Member, Sample
from wds_pipeline.errors import ConfigError


@dataclass(frozen=True)
class Choice:
    """What is taken: `fields` of the samples whose key matches one of the globs `match` and is one of
    `keys`; of those, by their number from 0, `start` up to `stop`. None or nothing: all."""

    fields: Sequence[str] = ()
    match: Sequence[str] = ()
    keys: Collection[str] | None = None
    start: int = 0
    stop: int | None = None

    def of(self, samples: Iterator[Sample], account: Account) -> Iterator[Sample]:
        """The samples that are taken. What is left out, and which keys were not there, is noted."""
        if self.match:
            from fsspec.utils import glob_translate

            patterns = [re.compile(glob_translate(each)) for each in self.match]
            samples = (each for each in samples if any(p.match(each.key) for p in patterns))
        if self.keys is not None:
            samples = self._named(samples, self.keys, account)
        if self.start or self.stop is not None:
            samples = islice(samples, self.start, self.stop)
        return self._of_fields(samples, account) if self.fields else samples

    def _named(
        self, samples: Iterator[Sample], keys: Collection[str], account: Account
    ) -> Iterator[Sample]:
        missing = dict.fromkeys(keys)
        wanted = set(keys)
        for sample in samples:
            if sample.key in wanted:
                missing.pop(sample.key, None)
                yield sample
        for key in missing:
            account.note("keys of --keys were in no tar", key)

    def _of_fields(self, samples: Iterator[Sample], account: Account) -> Iterator[Sample]:
        wanted = {name.lower(): place for place, name in enumerate(self.fields)}
        for sample in samples:
            found: list[Member] = [each for each in sample.members if each.field.lower() in wanted]
            if not found:
                account.note("left out, without any of the fields", sample.key)
                continue
            if len(found) < len(wanted):
                account.note("lack a field of --select", sample.key)
            sample.members = found
            yield sample


def read_keys(file: str) -> list[str]:
    """The keys in a file, one a line. Raises ConfigError."""
    try:
        text = Path(file).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"--keys {file}: cannot be read ({error.strerror})") from error
    return [line for line in text.split("\n") if line]
