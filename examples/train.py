"""Trains a small network to tell the demo's scenes apart, on a processor, in well under a minute.

It keeps its state every few steps, and goes on from there when it is started again, on any number of
workers. `order.txt` has the keys of each step, as they were trained on.

    make demo train
    python examples/train.py --folder run --workers 2 --stop-after 40
    python examples/train.py --folder run --workers 0    # goes on at step 40
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from wds_pipeline.training import Dataset, open_dataset

SIZE = 32  # pixels, of a side
KEEP_EVERY = 10  # steps
SCENES = ("city", "coast", "desert", "forest", "mountains", "patterns", "still life")


def main() -> int:
    options = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    train = open_scenes(options.url, "train")
    stream = train.stream(seed=options.seed, batch_size=options.batch_size, collate=collate)
    loader = stream.loader(num_workers=options.workers)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    options.folder.mkdir(parents=True, exist_ok=True)
    kept, order = options.folder / "state.pt", Order(options.folder / "order.txt")
    steps = 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["stream"])
        steps = state["steps"]
        print(f"goes on at step {steps} with {options.workers} workers: {state['stream']}")
    order.cut(steps)

    def keep() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": steps}
        torch.save({**state, "stream": loader.state_dict()}, kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)

    with tqdm(total=options.epochs * len(loader), initial=steps, unit="step") as bar:
        while stream.epoch < options.epochs:
            for keys, images, labels in loader:
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                order.write(keys)
                bar.update()
                bar.set_postfix(epoch=stream.epoch, loss=f"{loss.item():.3f}")
                if steps == options.stop_after:
                    keep()
                    print(f"stopped after step {steps}, with {options.workers} workers")
                    return 0
                if steps % KEEP_EVERY == 0:
                    keep()
    keep()
    right, count = test(model, open_scenes(options.url, "val"))
    print(f"{steps} steps; of {count} pictures that it has not seen, {right / count:.0%} are right")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="demo/published", help="default: demo/published")
    parser.add_argument(
        "--folder", type=Path, default=Path("run"), help="of the state; default: run"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader; default: 2")
    parser.add_argument("--epochs", type=int, default=4, help="default: 4")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    parser.add_argument("--seed", type=int, default=0, help="of the order; default: 0")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="stop there")
    return parser.parse_args()


def open_scenes(url: str, split: str) -> Dataset:
    """The pictures of a split whose first tag is one of `SCENES`, decoded."""
    dataset = open_dataset(
        url, split=split, fields=["jpg", "json"], decode={"jpg": "pilrgb", "json": "json"}
    )
    return dataset.select(test=has_scene, fields=["json"])


def has_scene(sample: dict[str, Any]) -> bool:
    import json

    tags = json.loads(sample["json"]).get("tags") or [None]
    return tags[0] in SCENES


def collate(samples: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Keys; images, float32 [N, 3, SIZE, SIZE] in 0..1; labels, int64 [N]."""
    import numpy as np

    pictures = [np.asarray(each["jpg"].resize((SIZE, SIZE))) for each in samples]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    labels = torch.tensor([SCENES.index(each["json"]["tags"][0]) for each in samples])
    return [each["__key__"] for each in samples], images, labels


def network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * (SIZE // 4) ** 2, len(SCENES))),
    )


def test(model: nn.Module, dataset: Dataset) -> tuple[int, int]:
    """How many of the pictures are told right, and how many there are: each once."""
    right = count = 0
    stream = dataset.stream(shuffle=False, batch_size=64, last="short", collate=collate)
    with torch.no_grad():
        for _, images, labels in stream:
            right += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    return right, count


class Order:
    """What was trained on: a line a step, its keys."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut(self, steps: int) -> None:
        """Forgets steps whose results were not kept."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.path.write_text("".join(lines[:steps]))

    def write(self, keys: list[str]) -> None:
        with self.path.open("a") as file:
            file.write("\t".join(keys) + "\n")


if __name__ == "__main__":
    sys.exit(main())
