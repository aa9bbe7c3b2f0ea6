"""Combining a published token data set into one memory-mapped folder, against plain copies of its bytes."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    log,
    take_turns,
    warm_memory,
)
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import version
from wds_pipeline.dataset.build import build
from wds_pipeline.storage import open_storage
from wds_pipeline.tokens.blocks import npy_bytes
from wds_pipeline.tokens.combine import TokenVersion, combine

_LENGTH = 1024  # ids a row
_ROW = 4 * _LENGTH  # bytes: ids of int16, a mask, the modality
_BLOCK = 1024  # rows
_SHARD = 64_000_000  # bytes
_OURS = "`wds-pipeline combine`, {} threads"
_COPY = "`np.copyto`, memory to memory"
_FRESH = "`np.copyto`, into memory that the system has yet to give"


def run(settings: Settings) -> Section:
    if find_spec("tensordict") is None:
        return Section("Combine", notes=["did not run: tensordict is not installed."])
    folder = settings.folder / "combine"
    blocks = 48 if settings.quick else 256
    log(f"publishing {blocks * _BLOCK * _ROW / 1e9:.1f} GB of tokens")
    source = _publish(folder, blocks)
    size = blocks * _BLOCK * _ROW
    _combine(source, folder / "out", 1)  # imports
    warm_memory(folder, size)
    contenders = [
        Contender(_OURS.format(1), lambda: _combine(source, folder / "out", 1)),
        Contender(_OURS.format(2), lambda: _combine(source, folder / "out", 2)),
        Contender(
            "the usual loop: `np.load`, assign to the memory map", lambda: _loop(source, folder)
        ),
        Contender(
            "`shutil.copyfile` of the tars, 1 thread", lambda: _copy_files(source, folder, 1)
        ),
        Contender(
            "`shutil.copyfile` of the tars, 2 threads", lambda: _copy_files(source, folder, 2)
        ),
        Contender(_COPY, lambda: _copy_memory(size, fresh=False)),
        Contender(_FRESH, lambda: _copy_memory(size, fresh=True)),
    ]
    found = take_turns(contenders, settings.rounds)
    table = Table(f"{blocks * _BLOCK:,} rows of {_ROW:,} bytes in {source.manifest.total_shards} shards",
                  ["what", "best s", "CPU s", "GB/s", "of the memory copy"])  # fmt: skip
    for name, rounds in found.items():
        seconds = best(rounds)
        table.rows.append(
            [name, seconds, cpu(rounds), size / seconds / 1e9, best(found[_COPY]) / seconds]
        )
    shutil.rmtree(folder)
    notes = [
        "Ours checks each shard's digest, makes one of each column's rows, compares the samples' keys, and "
        "syncs what it wrote before it notes a shard. The others do none of that."
    ]
    return Section("Combine", [table], notes)


def _publish(folder: Path, blocks: int) -> TokenVersion:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    ones = npy_bytes(np.ones((_BLOCK, _LENGTH), np.bool_))
    modality = npy_bytes(np.ones((_BLOCK, _LENGTH), np.int8))
    for at in range(blocks):
        ids = random.integers(0, 32_000, (_BLOCK, _LENGTH), np.int16)
        fields = {
            "input_ids.npy": npy_bytes(ids),
            "attention_mask.npy": ones,
            "modality.npy": modality,
            "idx.npy": npy_bytes(np.arange(_BLOCK, dtype=np.int32).reshape(-1, 1)),
            "keys.json": json.dumps([f"{at:04d}/{row:06d}" for row in range(_BLOCK)]).encode(),
        }
        for name, data in fields.items():
            (raw / f"b{at:06d}.{name}").write_bytes(data)
    config = DatasetConfig.model_validate(
        {
            "name": "tokens",
            "source": {"url": str(raw)},
            "destination": {"url": str(folder / "published")},
            "samples": {"naming": "webdataset"},
            "split": {"train": 1.0},
            "shards": {"max_bytes": _SHARD},
            "verify": {"level": "digest"},
        }
    )
    build(config)
    shutil.rmtree(raw)
    storage = open_storage(str(folder / "published"))
    return TokenVersion(storage, version.read(storage, None, "tokens"), "train")


def _combine(source: TokenVersion, out: Path, workers: int) -> Took:
    shutil.rmtree(out, ignore_errors=True)
    watch = Stopwatch()
    combine([source], out, workers=workers)
    took = watch.took()
    shutil.rmtree(out)
    return took


def _loop(source: TokenVersion, folder: Path) -> Took:
    from tensordict import TensorDict

    out = folder / "loop"
    rows = source.manifest.total_samples * _BLOCK
    watch = Stopwatch()
    made = TensorDict({}, batch_size=[rows]).memmap_(str(out))
    arrays: dict[str, np.ndarray] = {}
    at: dict[str, int] = {}
    for shard in source.manifest.shards:
        with tarfile.open(source.storage.locate(shard.path)) as tar:
            for member in tar:
                name = member.name.partition(".")[2].removesuffix(".npy")
                file = tar.extractfile(member)
                if name in ("keys.json", "idx") or file is None:
                    continue
                values = np.load(io.BytesIO(file.read()))
                if name not in arrays:
                    import torch

                    dtype = torch.from_numpy(values[:1]).dtype
                    arrays[name] = made.make_memmap(
                        name, torch.Size((rows, _LENGTH)), dtype=dtype
                    ).numpy()
                first = at.get(name, 0)
                arrays[name][first : first + len(values)] = values
                at[name] = first + len(values)
    took = watch.took()
    del arrays, made
    shutil.rmtree(out)
    return took


def _copy_files(source: TokenVersion, folder: Path, threads: int) -> Took:
    out = folder / "copied"
    out.mkdir()

    def one(path: str) -> None:
        shutil.copyfile(path, out / Path(path).name)

    paths = [source.storage.locate(shard.path) for shard in source.manifest.shards]
    watch = Stopwatch()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, paths))
    took = watch.took()
    shutil.rmtree(out)
    return took


def _copy_memory(size: int, *, fresh: bool) -> Took:
    from_here = np.ones(size, np.uint8)
    to_there = np.empty(size, np.uint8) if fresh else np.zeros(size, np.uint8) + np.uint8(1)
    watch = Stopwatch()
    np.copyto(to_there, from_here)
    return watch.took()
