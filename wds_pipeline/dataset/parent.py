"""What a plan needs to know of the version that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from wds_pipeline.dataset import ledger


@dataclass(frozen=True)
class Parent:
    """The version that a plan starts from; version 0 is the empty one.

    `recipes` are its shards' recipe digests by (split, slot); `inventory` loads its inventory,
    which is wanted only to tell an edit from a changed configuration. `same_rules` says whether its
    quarantine was judged by the rules for content that hold now; if not, it is judged anew. `base` is the
    digest of the version that it is an overlay of.
    """

    version: int = 0
    ledger: pa.Table = field(default_factory=lambda: ledger.empty(ledger.LEDGER))
    quarantine: pa.Table = field(default_factory=lambda: ledger.empty(ledger.QUARANTINE))
    recipes: Mapping[tuple[str, int], str] = field(default_factory=dict)
    inventory: Callable[[], pa.Table] | None = None
    same_rules: bool = True
    base: str = ""
