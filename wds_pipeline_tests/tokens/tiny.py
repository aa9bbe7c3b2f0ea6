"""A tiny tokenizer and tiny VQ modules: what the tests put in the place of the large ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from wds_pipeline.tokens.tokenize import Tokenize
from wds_pipeline.transforms.api import Context, Sample

HERE = "wds_pipeline_tests.tokens.tiny"
CODES = 64


class TinyVQ(torch.nn.Module):
    """A convolution with the patch's stride, and the nearest of some codes."""

    def __init__(self, codes: int = CODES, patch: int = 8, width: int = 4) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, patch, patch)
        self.codes = torch.nn.Embedding(codes, width)

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        assert batch.dtype == torch.float32 and not torch.is_grad_enabled()
        found = self.patches(batch).flatten(2).transpose(1, 2)
        return torch.cdist(found, self.codes.weight[None]).argmin(-1)


class Tuple(TinyVQ):
    """Gives what taming-transformers' modules give."""

    def encode(self, batch: torch.Tensor) -> Any:
        ids = super().encode(batch)
        return (
            batch,
            batch.mean(),
            (None, torch.nn.functional.one_hot(ids).float(), ids.reshape(-1, 1)),
        )


class Brightness(torch.nn.Module):
    """Called itself: the id of each patch is its mean, from 0 (black) to 255 (white)."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        grey = torch.nn.functional.avg_pool2d((batch + 1) * 127.5, self.patch).mean(1)
        return grey.round().to(torch.int32)


class Fails(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")


def no_module() -> str:
    return "no module"


def train_tokenizer(path: Path, *, padding: bool = True) -> Path:
    """Bytes and some merges; ids 0 to 3 are <pad>, <s>, </s>, <unk>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a picture of the coast, seen from a boat"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    if padding:  # what somebody left in the file
        tokenizer.enable_truncation(3)
        tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=3)
    tokenizer.save(str(path))
    return path


def save_checkpoint(path: Path, module: torch.nn.Module | None = None) -> Path:
    torch.manual_seed(7)
    torch.save((module or TinyVQ()).state_dict(), path)
    return path


def picture(value: int, size: tuple[int, int] = (16, 16)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(sink, "PNG")
    return sink.getvalue()


def noise(seed: int, size: int = 16) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


class Made:
    """What `tokenize` made of samples: by column all rows, the keys, and what it rejected."""

    def __init__(
        self, transform: Tokenize, samples: list[Sample], shard: str = "train-000000"
    ) -> None:
        self.rejected: dict[str, str] = {}
        context = Context(shard, self.rejected.__setitem__)
        self.blocks = list(transform.stream(iter(samples), context))
        self.keys = [key for block in self.blocks for key in _json(block["keys.json"])]
        names = [name for block in self.blocks[:1] for name in block if name.endswith(".npy")]
        self.columns = {
            name.removesuffix(".npy"): np.concatenate([array(block[name]) for block in self.blocks])
            for name in names
        }

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.columns[name]


def array(data: bytes) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return found


def _json(data: bytes) -> Iterator[str]:
    import json

    yield from json.loads(data)
