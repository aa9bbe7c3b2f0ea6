"""What a build asks of its stores, before and after: requests, bytes, and by a user's prices, money.

Prices differ by provider, region and contract, so they come from a YAML file of the user's:

    currency: USD
    source: {list: 0.005, get: 0.0004, head: 0.0004, gb_read: 0.09}
    destination: {put: 0.005, get: 0.0004, head: 0.0004, copy: 0.005, gb_month: 0.023}

Requests are priced by the thousand, bytes by the GB (10⁹), what is stored by the GB and month.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from pydantic import Field, ValidationError

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_values import Model
from wds_pipeline.dataset.plan import Plan, ShardPlan
from wds_pipeline.dataset.wording import human_bytes
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage import Storage, Usage
from wds_pipeline.storage.base import BLOCK

REQUESTS = ("list", "get", "head", "put", "copy", "delete")
_SIDE_FILES = 6  # of a version, each staged and then copied to its plain name
_GB = 1e9


@dataclass(frozen=True)
class Costs:
    """What was or will be asked of each end."""

    source: Usage
    destination: Usage

    def to_json(self) -> dict[str, dict[str, int]]:
        return {"source": self.source.values(), "destination": self.destination.values()}

    def __str__(self) -> str:
        """`source: 3 LIST, 5,000 GET, 51 MB read; destination: …`; empty for two folders."""
        ends = (("source", self.source), ("destination", self.destination))
        return "; ".join(f"{name}: {_words(usage)}" for name, usage in ends if usage.requests)


def estimate(
    config: DatasetConfig,
    source: Storage | None,
    destination: Storage,
    plan: Plan,
    pack: Sequence[ShardPlan],
) -> Costs:
    """What the build of a plan will ask, if nothing fails: to pack these shards, to read them back and
    to publish; of a source that is no folder or store (None) nothing is known. The scan is what
    `source.usage` says that it took just now."""
    read, wrote = Usage(), Usage()
    store = source if source is not None and not source.folders else None
    if store is not None:
        read.add(store.usage)
    for shard in pack:
        if store is not None:
            _pack(read, plan.recipe(shard).members, store)
        _store(wrote, shard)
        if config.verify.level != "stat":
            _read_back(wrote, shard)
    wrote.list += 12
    wrote.get += 4 + 2 * len(plan.shards)  # seals and reports of those that stay are looked at
    wrote.head += 2
    if plan.changed:
        wrote.put += _SIDE_FILES + 1
        wrote.copy += _SIDE_FILES
        wrote.head += _SIDE_FILES
        wrote.delete += _SIDE_FILES
    return Costs(read, Usage() if destination.folders else wrote)


def _pack(read: Usage, members: pa.Table, source: Storage) -> None:
    sizes = members["size"].to_numpy()
    large = sizes > source.window_bytes - 1024
    read.get += int(np.sum(~large)) + int(np.sum(-(-sizes[large] // BLOCK)))
    read.bytes_read += int(sizes.sum())


def _store(wrote: Usage, shard: ShardPlan) -> None:
    parts = -(-shard.bytes // BLOCK)
    wrote.put += parts + 2 if shard.bytes >= BLOCK else 1  # begun and completed
    wrote.put += 3  # index, seal, report
    wrote.get += 1  # whether it is sealed already
    wrote.head += 1
    wrote.bytes_written += shard.bytes


def _read_back(wrote: Usage, shard: ShardPlan) -> None:
    wrote.head += 1
    wrote.get += -(-shard.bytes // BLOCK) + 4  # and its seal, index, report
    wrote.bytes_read += shard.bytes


class Prices(Model):
    """What one end's provider asks."""

    list: float = Field(default=0, ge=0)
    get: float = Field(default=0, ge=0)
    head: float = Field(default=0, ge=0)
    put: float = Field(default=0, ge=0)
    copy_: float = Field(default=0, ge=0, alias="copy")
    delete: float = Field(default=0, ge=0)
    gb_read: float = Field(default=0, ge=0)
    gb_written: float = Field(default=0, ge=0)
    gb_month: float = Field(default=0, ge=0)

    def of(self, usage: Usage) -> float:
        """What this costs once; what is stored afterwards costs by the month."""
        requests = sum(
            getattr(usage, kind) * getattr(self, "copy_" if kind == "copy" else kind)
            for kind in REQUESTS
        )
        moved = usage.bytes_read * self.gb_read + usage.bytes_written * self.gb_written
        return requests / 1000 + moved / _GB

    def a_month(self, usage: Usage) -> float:
        """What keeping what was written costs a month."""
        return usage.bytes_written * self.gb_month / _GB


class PriceTable(Model):
    """A user's prices."""

    currency: str = ""
    source: Prices = Prices()
    destination: Prices = Prices()

    def price(self, costs: Costs) -> dict[str, Any]:
        """By end, what it costs; `a_month` is what the new shards cost to keep."""
        source, destination = self.source.of(costs.source), self.destination.of(costs.destination)
        return {
            "currency": self.currency,
            "source": source,
            "destination": destination,
            "total": source + destination,
            "a_month": self.destination.a_month(costs.destination),
        }


def read_prices(path: Path) -> PriceTable:
    """A price table from its YAML file. Raises ConfigError."""
    try:
        return PriceTable.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the price table cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: the price table is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        known = "currency, source and destination, each of these two with " + ", ".join(
            (*REQUESTS, "gb_read", "gb_written", "gb_month")
        )
        raise ConfigError(
            f"{path}: the price table: {where}: {first['msg']}; expected {known}"
        ) from None


def _words(usage: Usage) -> str:
    parts = [
        f"{getattr(usage, kind):,} {kind.upper()}" for kind in REQUESTS if getattr(usage, kind)
    ]
    if usage.bytes_read:
        parts.append(f"{human_bytes(usage.bytes_read)} read")
    if usage.bytes_written:
        parts.append(f"{human_bytes(usage.bytes_written)} written")
    if usage.retries:
        parts.append(f"{usage.retries:,} tried again")
    return ", ".join(parts)
