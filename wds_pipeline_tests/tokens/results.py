"""Results of other programs: what people have on their disks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from wds_pipeline_tests.tokens.handmade import WIDTH, row


def tensors(idx: Iterable[int], *, written: Any = None, salt: str = "") -> dict[str, torch.Tensor]:
    """Rows that are known by their idx."""
    numbers = list(idx)
    ids = [row(f"{salt}{number}").tolist() for number in numbers]
    flag = torch.ones(len(numbers), 1, dtype=torch.bool)
    if written is not None:
        flag = torch.tensor(written).reshape(-1, 1)
    return {
        "idx": torch.tensor(numbers, dtype=torch.int32).reshape(-1, 1),
        "input_ids": torch.tensor(ids, dtype=torch.int16).reshape(-1, WIDTH),
        "write_flag": flag,
    }


def save(path: Path, idx: Iterable[int], **more: Any) -> Path:
    """A folder as `TensorDict.memmap` writes it, or a `.safetensors` file."""
    made = tensors(idx, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(made, path)
    else:
        TensorDict(made, batch_size=[len(made["idx"])]).memmap(str(path))
    return path
