"""Who does the work: what a dataset's YAML says under `compute:`, and what one run says instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from wds_pipeline.config_values import Model
from wds_pipeline.errors import ConfigError

_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://[^\s@]+")


def check_address(address: str) -> None:
    """Raises ValueError for what is not the address of a scheduler."""
    if not _ADDRESS.fullmatch(address):
        shown = re.sub(r"[^/]*@", "…@", address)
        raise ValueError(f"found {shown!r}; expected a scheduler such as tcp://host:8786")


class ComputeConfig(Model):
    """Who does the work."""

    kind: Literal["processes", "threads", "dask"] = "processes"
    """Worker processes, threads of one process, or a Dask cluster (`pip install
    'wds-pipeline[dask]'`)."""
    workers: int | None = Field(default=None, ge=1)
    """How many; by default as many as there are cores. With `kind: dask`: starts a cluster of so many
    worker processes on this machine, for this build."""
    address: str | None = None
    """With `kind: dask`: the scheduler of a cluster that is there (`tcp://host:8786`). Without it and
    without `workers`, what Dask's own configuration says (`DASK_SCHEDULER_ADDRESS`)."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        if address is not None:
            check_address(address)
        return address

    @model_validator(mode="after")
    def _consistent(self) -> ComputeConfig:
        if self.address is not None and self.kind != "dask":
            raise ValueError(
                f"address: {self.address} is a Dask scheduler's, found with `kind: {self.kind}`; "
                "write `kind: dask`, or leave the address out"
            )
        if self.address is not None and self.workers is not None:
            raise ValueError(
                f"`address` and `workers` exclude each other: the cluster at {self.address} has the "
                "workers that it has; `workers` alone starts a cluster on this machine"
            )
        return self

    def instead(self, given: Mapping[str, Any], dataset: str) -> ComputeConfig:
        """This, with what is given for one run; what no longer fits with that goes.

        Raises ConfigError that names the dataset.
        """
        given = {name: value for name, value in given.items() if value is not None}
        kept = self.model_dump(exclude_unset=True)
        moved = (given.get("kind", self.kind) == "dask") != (self.kind == "dask")
        if moved or given.keys() & {"workers", "address"}:  # of one place or the other
            kept = {name: value for name, value in kept.items() if name == "kind"}
        try:
            return ComputeConfig.model_validate({**kept, **given})
        except ValidationError as error:
            found = error.errors()[0]
            where = ".".join(["compute", *map(str, found["loc"])])
            message = found["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{dataset}: {where}: {message} (in this run's config)") from None
