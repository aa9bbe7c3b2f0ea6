"""Indexing tars that others made: all formats and a digest in one pass, against the tools' own commands."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import webdataset

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
)

_OURS = "`wds-pipeline index --format wids,dali,energon`"
_TARFILE = """
import sys, tarfile
for path in sys.argv[1:]:
    with tarfile.open(path) as tar:
        sum(1 for _ in tar)
"""
_FORMATS = ("--format", "wids,dali,energon")
# Its command asks questions; this is what it calls.
_ENERGON = """
import sys
from pathlib import Path
from megatron.energon.flavors import BaseWebdatasetFactory
if len(sys.argv) > 2:
    BaseWebdatasetFactory.prepare_dataset(Path(sys.argv[1]), sys.argv[2:], split_parts_ratio=[("train", 1.0)],
                                          shuffle_seed=None, workers=2)
"""


def run(settings: Settings) -> Section:
    tables, notes = [], []
    for name in settings.corpora:
        each = corpus.quick(CORPORA[name]) if settings.quick else CORPORA[name]
        for kind, write in (("USTAR", _ustar), ("PAX, by webdataset's TarWriter", _tar_writer)):
            tables.append(_table(each, kind, write, settings))
    if find_spec("wids") is None or find_spec("torch") is None:
        notes.append(
            "`widsindex` did not run: wids (and torch, which it imports) is not installed."
        )
    if find_spec("megatron") is None:
        notes.append("`energon prepare` did not run: megatron-energon is not installed.")
    notes.append(
        "Ours writes wids', DALI's and Energon's index and its own, with an xxh3-128 digest and checks, in "
        "one pass. `net` is without what the program takes to start and import; × is of the net."
    )
    return Section("Index", tables, notes)


def _table(
    each: Corpus, kind: str, write: Callable[[Path, Path], None], settings: Settings
) -> Table:
    root = corpus.make(each, settings.folder)
    folder = settings.folder / "tars"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log(f"writing tars of the corpus {each.name}: {kind}")
    _write_tars(root, folder, each, write)
    names = sorted(path.name for path in folder.glob("*.tar"))
    contenders = _contenders(folder, names)
    found = take_turns(contenders, settings.rounds)
    starts = {name: best(found[name]) for name in found if name.endswith(" (start)")}
    title = f"{each.name}: {3 * each.samples:,} members in {len(names)} tars, {kind}"
    table = Table(title, ["what", "best s", "start s", "net s", "CPU s", "× ours"])
    ours = best(found[_OURS]) - starts[f"{_OURS} (start)"]
    for name, rounds in found.items():
        if name not in starts:
            start = starts.get(f"{name} (start)", 0.0)
            net = best(rounds) - start
            table.rows.append([name, best(rounds), start, net, cpu(rounds), net / ours])
    shutil.rmtree(folder)
    return table


def _contenders(folder: Path, names: Sequence[str]) -> list[Contender]:
    paths = [str(folder / name) for name in names]
    python = [sys.executable, "-c"]
    ours = [sys.executable, "-m", "wds_pipeline.cli", "index"]
    output = str(folder / "shardindex.json")
    found = [
        _command(_OURS, [*ours, str(folder), *_FORMATS], folder),
        _command(f"{_OURS} (start)", [*ours, str(_one_tar(folder)), *_FORMATS], folder),
        _command("`tarfile`, names only", [*python, _TARFILE, *paths], folder),
    ]
    if shutil.which("tar"):
        listing = 'for path; do tar --list --file "$path" > /dev/null; done'
        found.append(_command("GNU `tar t`", ["sh", "-c", listing, "sh", *paths], folder))
    if find_spec("wids") and find_spec("torch"):
        wids = [sys.executable, "-m", "wids.wids_index"]
        create = [*wids, "create", "-n", "x", "-o", output, *paths]
        found.append(_command("`widsindex create`", create, folder))
        found.append(_command("`widsindex create` (start)", [*wids, "--help"], folder))
    if find_spec("megatron"):
        energon = [*python, _ENERGON, str(folder)]
        found.append(_command("`energon prepare`, 2 workers", [*energon, *names], folder))
        found.append(_command("`energon prepare`, 2 workers (start)", energon, folder))
    return found


def _one_tar(folder: Path) -> Path:
    """A folder with a tar of one member: what indexing it takes, starting takes."""
    one = folder / ".one"
    one.mkdir()
    with tarfile.open(one / "one.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    return one


def _command(name: str, command: Sequence[str], folder: Path) -> Contender:
    def run() -> Took:
        for left in (".wds_pipeline", ".nv-meta"):
            shutil.rmtree(folder / left, ignore_errors=True)
        for path in folder.glob("*.idx"):
            path.unlink()
        watch = Stopwatch()
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        return watch.took()

    return Contender(name, run)


def _write_tars(
    root: Path, folder: Path, each: Corpus, write: Callable[[Path, Path], None]
) -> None:
    """The corpus's folders, gathered to about so many bytes a tar."""
    per_tar = max(1, each.shard_bytes // (each.image * 1_000))
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for number, start in enumerate(range(0, len(folders), per_tar)):
        target = folder / f"{each.name}-{number:06d}.tar"
        gathered = folder / "gathered"
        gathered.mkdir()
        for path in folders[start : start + per_tar]:
            os.symlink(path, gathered / path.name)
        write(gathered, target)
        shutil.rmtree(gathered)


def _files(folder: Path) -> list[Path]:
    return [path for each in sorted(folder.iterdir()) for path in sorted(each.iterdir())]


def _ustar(folder: Path, target: Path) -> None:
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in _files(folder):
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            data = path.read_bytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _tar_writer(folder: Path, target: Path) -> None:
    samples: dict[str, dict[str, bytes]] = {}
    for path in _files(folder):
        name = str(path.relative_to(folder))
        samples.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = path.read_bytes()
    with webdataset.TarWriter(str(target)) as writer:
        for key, fields in samples.items():
            writer.write({"__key__": key, **fields})
