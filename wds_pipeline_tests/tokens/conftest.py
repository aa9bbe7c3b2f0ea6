"""A tiny tokenizer and checkpoint, and the transform with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.tokens.tokenize import Tokenize
from wds_pipeline_tests.tokens.tiny import CODES, HERE, save_checkpoint, train_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a checkpoint. Not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    train_tokenizer(folder / "tokenizer.json")
    save_checkpoint(folder / "vq.pt")
    return folder


@pytest.fixture
def make(files: Path) -> Callable[..., Tokenize]:
    """Makes the transform; `text`, `image`, … change what it is told by default."""

    def made(layout: str, **more: Any) -> Tokenize:
        return Tokenize(**parameters(files, layout, **more))

    return made


def parameters(files: Path, layout: str, **more: Any) -> dict[str, Any]:
    text: dict[str, Any] = {"tokenizer": str(files / "tokenizer.json"), "block_size": 12}
    image: dict[str, Any] = {
        "encoder": f"{HERE}:TinyVQ",
        "checkpoint": str(files / "vq.pt"),
        "resolution": 16,
        "patch": 8,
        "batch_size": 3,
    }
    values: dict[str, Any] = {"layout": layout, "vocabulary": {"image": CODES}}
    if layout in ("pairs", "interleaved") or (layout == "one_modality" and "image" not in more):
        values["text"] = text
    if layout != "one_modality" or "image" in more:
        values["image"] = image
    if layout == "interleaved":
        values["block_size"] = 20
        del text["block_size"]
    for name, value in more.items():
        merge = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **value} if merge else value
    return values


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of small writes is waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)
