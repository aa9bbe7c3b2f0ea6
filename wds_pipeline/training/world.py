"""Which of how many processes this is, of those that train together."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from wds_pipeline.errors import ConfigError

_USUAL = (
    ("RANK", "WORLD_SIZE"),  # torchrun, accelerate, Lightning, DeepSpeed
    # srun's; SLURM_NTASKS is in shells and batch scripts too
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


class World(NamedTuple):
    """`rank` of `size`, from 0."""

    rank: int
    size: int


def find_world(rank: int | None = None, world_size: int | None = None) -> World:
    """What is given, or else what torch.distributed knows, or the variables that launchers set.

    Raises ConfigError for numbers that cannot be.
    """
    if rank is not None or world_size is not None:
        return _checked(rank, world_size, "rank", "world_size")
    torch = sys.modules.get("torch")  # who has not imported it has not started it either
    distributed = getattr(torch, "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return World(distributed.get_rank(), distributed.get_world_size())
    for one, other in _USUAL:
        if one in os.environ and other in os.environ:
            return _checked(_number(one), _number(other), one, other)
    return World(0, 1)


def _number(name: str) -> int:
    value = os.environ[name]
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name}: found {value!r}; expected a number") from None


def _checked(rank: int | None, size: int | None, one: str, other: str) -> World:
    if rank is None or size is None:
        missing = one if rank is None else other
        raise ConfigError(f"{missing}: found nothing; expected both {one} and {other}, or neither")
    if size < 1 or not 0 <= rank < size:
        raise ConfigError(f"{one}: found {rank} of {other} {size}; expected 0 to {other} - 1")
    return World(rank, size)


def worker_info() -> tuple[int, int] | None:
    """Which worker of how many of a DataLoader of torch this process is; None if it is none."""
    data = sys.modules.get("torch.utils.data")
    info = data.get_worker_info() if data is not None else None
    return None if info is None else (info.id, info.num_workers)
