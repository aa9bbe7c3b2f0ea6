"""Tars into tars: re-sharding and shuffling, against the usual Python loops and GNU tar."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import corpus
from benchmarks.corpus import CORPORA, Corpus
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

_SPLIT, _PIPE, _SHUFFLE = "`split`", "`cat \\| split`", "`shuffle`"
_PROGRAM = [sys.executable, "-m", "wds_pipeline.cli"]
# A loop as one finds it in scripts: a stream in, the samples told apart by their names, tars of a size out.
_TARFILE = """
import io, sys, tarfile
limit, folder, *paths = sys.argv[1:]
number, size, out, last = 0, 0, None, None
for path in paths:
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            key = member.name.partition(".")[0]
            if out is None or (size >= int(limit) and key != last):
                if out is not None:
                    out.close()
                out = tarfile.open(f"{folder}/out-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT)
                number, size = number + 1, 0
            data = tar.extractfile(member).read()
            info = tarfile.TarInfo(member.name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
            size, last = size + len(data), key
out.close()
"""
_WEBDATASET = """
import sys, webdataset
limit, folder, *paths = sys.argv[1:]
with webdataset.ShardWriter(f"{folder}/out-%06d.tar", maxsize=int(limit), maxcount=10**9, verbose=0) as out:
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        del sample["__url__"]
        out.write(sample)
"""
_IN_MEMORY = """
import io, random, sys, tarfile
out, *paths = sys.argv[1:]
samples = {}
for path in paths:
    with tarfile.open(path) as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            samples.setdefault(member.name.partition(".")[0], []).append((member.name, data))
keys = list(samples)
random.Random(0).shuffle(keys)
with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
    for key in keys:
        for name, data in samples[key]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
"""
# By unpacking: GNU tar cannot cut a stream between samples.
_GNU = """
limit=$1 files=$2; shift 2
mkdir x && for path; do tar -C x -xf "$path"; done
(cd x && find . -type f -printf '%P\\n' | sort | split -l "$files" - ../list-)
for list in list-*; do tar -C x -cf "out-$list.tar" -T "$list" --format=ustar; done
"""


def run(settings: Settings) -> Section:
    tables = []
    for name in settings.corpora:
        each = corpus.quick(CORPORA[name]) if settings.quick else CORPORA[name]
        tables += _tables(each, settings)
    notes = [
        "From and to the same filesystem, by the program as it is called; `start` is what it takes for a tar "
        "of one member, `net` the rest; × is of the net.",
        "`wds-pipeline` checks every header, groups by WebDataset's rule, looks for keys that come twice, "
        "and syncs what it wrote. The loops do none of that, and GNU tar has to unpack.",
    ]
    return Section("Tars", tables, notes)


def _tables(each: Corpus, settings: Settings) -> list[Table]:
    root = corpus.make(each, settings.folder)
    folder = settings.folder / "tars"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "one").mkdir(parents=True)
    log(f"writing tars of the corpus {each.name}")
    paths = _write(root, folder, each)
    one = folder / "one" / "one.tar"
    _put(one, [("a.txt", b"a")])
    total = sum(path.stat().st_size for path in paths)
    warm_memory(folder, 2 * total)
    limit = each.shard_bytes // 3
    tables = []
    for title, contenders, ours in (
        ("re-sharding to a third of the size", _resharding(folder, paths, one, limit), _SPLIT),
        ("shuffling all into one", _shuffling(folder, paths, one), _SHUFFLE),
    ):
        found = take_turns(contenders, settings.rounds)
        table = Table(
            f"{each.name}: {title}: {each.samples:,} samples in {len(paths)} tars, {total / 1e9:.2f} GB",
            ["what", "best s", "start s", "net s", "CPU s", "× ours"],
        )
        starts = {name: best(found[name]) for name in found if name.endswith(" (start)")}
        base = best(found[ours]) - starts[f"{ours} (start)"]
        for name, rounds in found.items():
            if name not in starts:
                start = starts.get(f"{name} (start)", 0.0)
                net = best(rounds) - start
                table.rows.append([name, best(rounds), start, net, cpu(rounds), net / base])
        tables.append(table)
    shutil.rmtree(folder)
    return tables


def _resharding(folder: Path, paths: Sequence[Path], one: Path, limit: int) -> list[Contender]:
    inputs = list(map(str, paths))

    def split(given: Sequence[str]) -> list[str]:
        return [*_PROGRAM, "split", "-q", *given, "-s", str(limit), "-o", "out-%06d.tar"]

    def pipe(given: Sequence[str]) -> list[str]:
        line = '"$0" -m wds_pipeline.cli cat -q "$@" -o - | "$0" -m wds_pipeline.cli split -q - -s '
        return ["sh", "-c", f"{line}{limit} -o out-%06d.tar", sys.executable, *given]

    def loop(code: str) -> Callable[[Sequence[str]], list[str]]:
        return lambda given: [sys.executable, "-c", code, str(limit), ".", *given]

    found = [
        _command(
            "limit: `cat`, to one file", ["sh", "-c", 'cat "$@" > out.tar', "sh", *inputs], folder
        )
    ]
    for name, make in (
        (_SPLIT, split),
        (_PIPE, pipe),
        ("`tarfile`, a loop", loop(_TARFILE)),
        ("webdataset to `ShardWriter`", loop(_WEBDATASET)),
    ):
        found.append(_command(name, make(inputs), folder))
        found.append(_command(f"{name} (start)", make([str(one)]), folder))
    if shutil.which("tar"):
        members = _members_for(paths, limit)
        gnu = ["sh", "-ec", _GNU, "sh", str(limit), str(members), *inputs]
        found.append(_command("GNU tar, unpack and pack", gnu, folder))
    return found


def _members_for(paths: Sequence[Path], limit: int) -> int:
    """How many members a tar of this size has, whole samples of three."""
    with tarfile.open(paths[0]) as tar:
        count = sum(1 for _ in tar)
    return 3 * max(1, count * limit // (3 * paths[0].stat().st_size))


def _shuffling(folder: Path, paths: Sequence[Path], one: Path) -> list[Contender]:
    inputs = list(map(str, paths))

    def shuffle(given: Sequence[str]) -> list[str]:
        return [*_PROGRAM, "shuffle", "-q", *given, "-o", "out.tar"]

    loop = [sys.executable, "-c", _IN_MEMORY, "out.tar"]
    return [
        _command(
            "limit: `cat`, to one file", ["sh", "-c", 'cat "$@" > out.tar', "sh", *inputs], folder
        ),
        _command(_SHUFFLE, shuffle(inputs), folder),
        _command(f"{_SHUFFLE} (start)", shuffle([str(one)]), folder),
        _command("`tarfile`, all in memory", [*loop, *inputs], folder),
        _command("`tarfile`, all in memory (start)", [*loop, str(one)], folder),
    ]


def _command(name: str, command: Sequence[str], folder: Path) -> Contender:
    def run() -> Took:
        work = folder / "work"
        work.mkdir()
        watch = Stopwatch()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=work)
        took = watch.took()
        shutil.rmtree(work)
        return took

    return Contender(name, run)


def _write(root: Path, folder: Path, each: Corpus) -> list[Path]:
    """The corpus's folders, gathered to about so many bytes a tar."""
    per_tar = max(1, each.shard_bytes // (each.image * 1_000))
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    paths = []
    for number, start in enumerate(range(0, len(folders), per_tar)):
        paths.append(folder / f"in-{number:06d}.tar")
        files = [
            file for path in folders[start : start + per_tar] for file in sorted(path.iterdir())
        ]
        _put(paths[-1], ((str(file.relative_to(root)), file.read_bytes()) for file in files))
    return paths


def _put(target: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
