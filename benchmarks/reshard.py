"""Laying published shards out anew, through a whole build, against loops in Python and GNU tar."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.corpus import CORPORA, Corpus
from benchmarks.measure import (
    HERE,
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    log,
    take_turns,
    warm_memory,
)

_WORKERS = 2
_KEPT, _SHUFFLED = "`build`, `layout: source`", "`build`, shuffled, half as large shards"


def run(settings: Settings) -> Section:
    tables = []
    for name in settings.corpora:
        each = corpus.quick(CORPORA[name]) if settings.quick else CORPORA[name]
        tables.append(_table(each, settings))
    notes = [
        f"All with {_WORKERS} processes, from tars to tars. `build` plans, packs with a member index and "
        "digests, holds every member against the digest of its content, reads the shards back (`verify: "
        "{level: digest}`) and publishes; the others copy. No loop of the others shuffles but GNU tar's.",
    ]
    return Section("Re-sharding", tables, notes)


def _table(each: Corpus, settings: Settings) -> Table:
    root = corpus.make(each, settings.folder)
    upstream = settings.folder / "reshard-upstream"
    shutil.rmtree(upstream, ignore_errors=True)
    log(f"building the shards of the corpus {each.name}")
    _ours({"url": str(root)}, upstream, each.shard_bytes, "hash", "samples")
    size = sum(path.stat().st_size for path in upstream.glob("shards/*.tar"))
    contenders = _contenders(upstream, settings.folder / "reshard", each, size)
    found = take_turns(contenders, settings.rounds)
    shutil.rmtree(upstream)
    title = f"{each.name}: {each.samples:,} samples, {size / 1e6:,.0f} MB in tars"
    table = Table(title, ["what", "best s", "MB/s", "× `build`"])
    for name, rounds in found.items():
        ours = best(found[_SHUFFLED if "huffle" in name else _KEPT])
        took = best(rounds)
        table.rows.append([name, took, size / took / 1e6, took / ours])
    return table


def _contenders(upstream: Path, out: Path, each: Corpus, size: int) -> list[Contender]:
    source = {"dataset": {"url": str(upstream)}}
    tars = [str(path) for path in sorted(upstream.glob("shards/*.tar"))]
    half = each.shard_bytes // 2

    def contender(name: str, work: Callable[[], Took]) -> Contender:
        def take() -> Took:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            warm_memory(out, 2 * size)
            took = work()
            _check(name, out, each)
            shutil.rmtree(out)
            return took

        return Contender(name, take)

    def loop(function: str) -> Callable[[], Took]:
        return lambda: _fresh(function, tars=tars, out=str(out), shard_bytes=half)

    found = [
        contender(_KEPT, lambda: _ours(source, out, each.shard_bytes, "source", "digest")),
        contender(_SHUFFLED, lambda: _ours(source, out, half, "hash", "digest")),
        contender("`webdataset.WebDataset` → `ShardWriter`", loop("webdataset")),
        contender("`tarfile` → `tarfile`", loop("tarfile")),
    ]
    if shutil.which("tar"):
        found.append(contender("GNU tar, extract and create", lambda: _gnu(tars, out, half, False)))
        shuffled = "GNU tar, extract, shuffle and create"
        found.append(contender(shuffled, lambda: _gnu(tars, out, half, True)))
    return found


def _check(name: str, out: Path, each: Corpus) -> None:
    """Raises RuntimeError unless all samples came out."""
    count = 0
    for path in out.rglob("*.tar"):
        if "views" not in path.parts:  # second names
            with tarfile.open(path) as tar:
                count += sum(1 for member in tar if member.isreg())
    if count != 3 * each.samples:
        raise RuntimeError(f"{name}: found {count:,} members; expected {3 * each.samples:,}")


def _ours(source: dict[str, Any], out: Path, size: int, layout: str, level: str) -> Took:
    return _fresh(
        "build",
        source=source,
        destination={"url": str(out)},
        shards={"max_bytes": size, "max_samples": 10**9, "layout": layout},
        verify={"level": level},
        compute={"kind": "processes", "workers": _WORKERS},
    )


def _fresh(function: str, **arguments: Any) -> Took:
    """Runs one of the functions below in a Python of its own; imports do not count."""
    command = [sys.executable, "-m", "benchmarks.reshard", function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, check=True)
    return Took(*json.loads(done.stdout))


def _build(**values: Any) -> Took:
    from wds_pipeline.config import DatasetConfig
    from wds_pipeline.dataset.build import build

    config = DatasetConfig.model_validate({"name": "bench", **values})
    watch = Stopwatch()
    build(config)
    return watch.took()


def _loop(work: Callable[[tuple[list[str], str, int]], None], arguments: dict[str, Any]) -> Took:
    """The usual script: each process takes a part of the tars."""
    tars, out, size = arguments["tars"], arguments["out"], arguments["shard_bytes"]
    jobs = [(tars[n::_WORKERS], f"{out}/{n}", size) for n in range(_WORKERS)]
    watch = Stopwatch()
    processes = [get_context("fork").Process(target=work, args=(job,)) for job in jobs]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    if any(each.exitcode for each in processes):
        raise RuntimeError("a process of the loop failed")
    return watch.took()


def _webdataset(job: tuple[list[str], str, int]) -> None:
    import webdataset

    tars, out, size = job
    samples = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    with webdataset.ShardWriter(f"{out}-%06d.tar", maxsize=size, maxcount=10**9, verbose=0) as sink:
        for sample in samples:
            sink.write({k: v for k, v in sample.items() if k == "__key__" or k[:2] != "__"})


def _tarfile(job: tuple[list[str], str, int]) -> None:
    tars, out, size = job
    number, sink, before = 0, None, ""
    for path in tars:
        with tarfile.open(path, "r|") as source:
            for member in source:
                key = member.name.partition(".")[0]
                if sink is None or (key != before and sink.offset > size):
                    if sink is not None:
                        sink.close()
                    sink = tarfile.open(f"{out}-{number:06d}.tar", "w")  # noqa: SIM115
                    number += 1
                sink.addfile(member, source.extractfile(member))
                before = key
    if sink is not None:
        sink.close()


def _gnu(tars: list[str], out: Path, size: int, shuffle: bool) -> Took:
    """Extracts all, two at a time, and packs lists of names, two at a time."""
    files = out / "files"
    files.mkdir()
    watch = Stopwatch()
    _at_once(["tar", "--extract", "--file", path, "--directory", str(files)] for path in tars)
    found: list[tuple[str, int]] = []
    for folder, _, names in os.walk(files):
        where = os.path.relpath(folder, files)
        found += [(f"{where}/{n}", os.path.getsize(f"{folder}/{n}")) for n in sorted(names)]
    keys: dict[str, list[tuple[str, int]]] = {}
    for name, length in found:
        keys.setdefault(name[: name.index(".", name.rindex("/"))], []).append((name, length))
    order = list(keys)
    if shuffle:
        random.Random(0).shuffle(order)
    lists: list[list[str]] = [[]]
    room = size
    for key in order:
        need = sum(512 + length + 511 for _, length in keys[key])
        if need > room:
            lists.append([])
            room = size
        room -= need
        lists[-1] += [name for name, _ in keys[key]]
    for number, names in enumerate(lists):
        (out / f"{number}.txt").write_text("\n".join(names) + "\n")
    _at_once(
        ["tar", "--create", "--file", f"{out}/{n:06d}.tar", "--directory", str(files),
         "--files-from", f"{out}/{n}.txt"]
        for n in range(len(lists))
    )  # fmt: skip
    took = watch.took()
    shutil.rmtree(files)
    return took


def _at_once(commands: Any) -> None:
    running: list[subprocess.Popen[bytes]] = []
    for command in commands:
        if len(running) == _WORKERS and running.pop(0).wait():
            raise RuntimeError("GNU tar failed")
        running.append(subprocess.Popen(command))
    if sum(each.wait() != 0 for each in running):
        raise RuntimeError("GNU tar failed")


def _main() -> None:
    function, arguments = sys.argv[1], json.loads(sys.argv[2])
    if function == "build":
        took = _build(**arguments)
    else:
        took = _loop({"webdataset": _webdataset, "tarfile": _tarfile}[function], arguments)
    print(json.dumps(took))


if __name__ == "__main__":
    _main()
