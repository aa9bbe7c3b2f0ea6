"""What the `split:` of a dataset's YAML file may say."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from wds_pipeline.config_values import Model, Regex, did_you_mean, percent

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_]+")


def check_split_name(name: str) -> None:
    """Raises ValueError for a split's name that cannot be part of a shard's name."""
    if not _SPLIT_NAME.fullmatch(name):
        raise ValueError(f"the split {name!r}: expected letters, digits and _, for it names files")


_SPLIT_OPTIONS = ("by", "group_by", "salt", "file", "names", "default")


class SplitConfig(Model):
    """Which split a sample belongs to; once published, a sample never changes its split.

    By ratio (`{train: 0.95, val: 0.05}`), by the first folder (`{by: directory}`), or by a list
    (`{by: list, file: splits.csv}`).
    """

    by: Literal["ratio", "directory", "list"] = "ratio"
    """`ratio`: a hash of the key decides; `directory`: the key's first folder; `list`: a file."""
    ratios: dict[str, float] = {"train": 1.0}
    """Split → its share of the groups; written straight into `split:`."""
    group_by: Regex | None = None
    """A regular expression with one group: samples whose keys agree in it share their split. A key
    that it does not match is a group of its own."""
    salt: str = ""
    """Another salt gives another random division."""
    file: str | None = None
    """With `by: list`: a CSV or TSV file with the columns key and split."""
    names: dict[str, str] = {}
    """With `by: directory`: folder → split, where their names differ (`{validation: val}`)."""
    default: str | None = None
    """The split of samples that the folder or the list does not decide; without it they go to the
    quarantine."""

    @model_validator(mode="before")
    @classmethod
    def _ratios_at_top(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "ratios" in value:
            return value
        options = {k: v for k, v in value.items() if k in _SPLIT_OPTIONS}
        ratios = {k: percent(v) for k, v in value.items() if k not in _SPLIT_OPTIONS}
        for key, share in ratios.items():
            if not isinstance(share, int | float) or isinstance(share, bool):
                raise ValueError(
                    f"{key!r}: found {share!r}; expected a split's ratio such as 0.05, or one of "
                    f"the options {', '.join(_SPLIT_OPTIONS)}{did_you_mean(str(key), _SPLIT_OPTIONS)}"
                )
        return {**options, "ratios": ratios} if ratios else options

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.by == "ratio" and not abs(sum(self.ratios.values()) - 1) <= 1e-6:  # nan too
            shares = ", ".join(f"{k}: {v:g}" for k, v in self.ratios.items())
            raise ValueError(
                f"the ratios ({shares}) sum to {sum(self.ratios.values()):g}, not to 1"
            )
        if any(share < 0 for share in self.ratios.values()):
            raise ValueError("a ratio is negative")
        if (self.by == "list") != (self.file is not None):
            raise ValueError("`by: list` and `file: …` go together")
        if self.group_by is not None and re.compile(self.group_by).groups != 1:
            raise ValueError(f"group_by: {self.group_by!r} needs exactly one (…) group")
        for name in (*self.ratios, *self.names.values(), self.default or "train"):
            check_split_name(name)
        return self
