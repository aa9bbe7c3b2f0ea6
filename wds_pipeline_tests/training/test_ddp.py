"""Ranks as torch.distributed starts them, with gloo; and training that is killed, and goes on elsewhere."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.training import open_dataset
from wds_pipeline_tests.conftest import Project

pytest.importorskip("torch", reason="torch is not installed")

# Trains one number: each rank sums what it saw into the gradient, so that ranks that do not make the
# same steps hang or differ. Each step's keys are written down before the state is kept.
PROGRAM = """
import json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from wds_pipeline.training import open_dataset

url, folder, workers, whole, last, epochs = sys.argv[1:]
folder = Path(folder)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
stream = open_dataset(url, split="train").stream(
    seed=1, global_batch_size=int(whole), last=last, collate=lambda batch: [s["__key__"] for s in batch]
)
loader = stream.loader(num_workers=int(workers))
kept = folder / "state.json"
if kept.exists():
    loader.load_state_dict(json.loads(kept.read_text()))
log = open(folder / f"seen-{os.environ.get('RUN', '0')}-{rank}.jsonl", "a", buffering=1)
while stream.epoch < int(epochs):
    for keys in loader:
        optimizer.zero_grad()
        model(torch.full((1, 1), float(len(keys)))).sum().backward()
        optimizer.step()
        state = loader.state_dict()
        log.write(json.dumps(keys) + "\\n")
        dist.barrier()
        if rank == 0:
            kept.with_suffix(".new").write_text(json.dumps(state))
            kept.with_suffix(".new").replace(kept)
        dist.barrier()
weights = [torch.zeros(1, 1) for _ in range(dist.get_world_size())]
dist.all_gather(weights, model.module.weight.data)
assert all(torch.equal(each, weights[0]) for each in weights)
dist.destroy_process_group()
"""


class Ranks:
    """Processes that train together."""

    def __init__(
        self, project: Project, folder: Path, ranks: int, *arguments: object, run: int = 0
    ):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        given = [str(project.destination), str(folder), *map(str, arguments)]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", PROGRAM, *given],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                    "RUN": str(run),
                },
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for rank in range(ranks)
        ]

    def wait(self) -> None:
        """Until all are done."""
        for process in self.processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors

    def kill(self) -> None:
        """As when the machine dies: workers and all."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def seen(folder: Path, ranks: int, run: int = 0) -> list[list[str]]:
    """The global batches, as the ranks wrote them down."""
    parts = [
        [
            json.loads(line)
            for line in (folder / f"seen-{run}-{rank}.jsonl").read_text().splitlines()
        ]
        for rank in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    return [sorted(key for part in step for key in part) for step in zip(*parts, strict=True)]


def expected(project: Project, whole: int, last: Any, epochs: int) -> list[list[str]]:
    dataset = open_dataset(str(project.destination), split="train")
    stream = dataset.stream(seed=1, global_batch_size=whole, last=last, rank=0, world_size=1)
    steps = [batch for _ in range(epochs) for batch in stream]
    return [sorted(each["__key__"] for each in batch) for batch in steps]


@pytest.mark.parametrize(
    ("ranks", "workers", "last"), [(2, 2, "pad"), (3, 0, "drop"), (2, 1, "short")]
)
def test_ranks_make_the_same_global_batches(
    published: Project, tmp_path: Path, ranks: int, workers: int, last: str
) -> None:
    Ranks(published, tmp_path, ranks, workers, 12, last, 2).wait()
    assert seen(tmp_path, ranks) == expected(published, 12, last, 2)


def as_rank(rank: int, stream: Any, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    steps = [batch for _ in range(2) for batch in stream.loader(num_workers=1)]
    Path(folder, f"seen-0-{rank}.jsonl").write_text("\n".join(map(json.dumps, steps)))


def only_keys(batch: list[dict[str, Any]]) -> list[str]:
    return [each["__key__"] for each in batch]


@pytest.mark.filterwarnings("ignore:.*os.fork:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ranks_that_are_given_a_stream_made_before_them(
    published: Project, tmp_path: Path, context: str
) -> None:
    from torch.multiprocessing import start_processes  # type: ignore[attr-defined]

    stream = open_dataset(str(published.destination), split="train").stream(
        seed=1, global_batch_size=12, collate=only_keys
    )
    start_processes(as_rank, (stream, str(tmp_path)), nprocs=2, start_method=context)
    assert seen(tmp_path, 2) == expected(published, 12, "pad", 2)


def test_killed_and_resumed_with_other_ranks_and_workers(
    published: Project, tmp_path: Path
) -> None:
    """Four runs are killed at any moment; what was trained is one uninterrupted order."""
    trained: list[list[str]] = []
    shapes = [(2, 1), (1, 3), (3, 0), (1, 0)]
    for run, (ranks, workers) in enumerate(shapes):
        before = position(tmp_path)
        going = Ranks(published, tmp_path, ranks, workers, 6, "pad", 3, run=run)
        deadline = time.monotonic() + 90
        while run < 3 and position(tmp_path) < before + 5 + run:
            assert time.monotonic() < deadline, "it does not train"
            assert going.processes[0].poll() is None, going.processes[0].communicate()[1]
            time.sleep(0.002)
        if run < 3:
            going.kill()
        else:
            going.wait()
        # Steps whose state was not kept any more are done again.
        done = position(tmp_path) - before
        lines = [
            (tmp_path / f"seen-{run}-{rank}.jsonl").read_text().split("\n")[:-1][:done]
            for rank in range(ranks)
        ]
        for step in zip(*lines, strict=True):
            trained.append(sorted(key for part in step for key in json.loads(part)))
    assert trained == expected(published, 6, "pad", 3)


def position(folder: Path) -> int:
    """How many steps were kept, of 13 an epoch."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return 0
    return int(state["epoch"]) * 13 + int(state["position"]) // 6
