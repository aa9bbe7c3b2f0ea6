"""`python -m benchmarks [names…]`: runs benchmarks and prints their tables as Markdown."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import FrameType

from benchmarks.corpus import CORPORA, quick
from benchmarks.measure import HERE, Section, Settings

_NAMES = (
    *("pack", "scan", "watch", "noop", "incremental", "build", "scale"),
    *("dagster_cost", "dagster_ui", "workers", "s3_pack", "s3_scan", "index"),
    *("resize", "reshard", "combine", "overlay", "tars"),
    *("read", "random_access", "resume", "loader", "mixing", "stream_s3"),
)
_READ = {"read", "random_access", "resume", "loader", "stream_s3"}
_SHORT = {"random": "random_access"}
_MEMORY = Path("/dev/shm")


def main() -> int:
    options = _options()
    corpora = (options.corpus,) if options.corpus else tuple(CORPORA)
    needed = _needed(options.names, corpora, options.quick)
    folder = options.folder or _default_folder(needed, options.disk)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    print(
        f"benchmarks: about {needed / 1e9:.1f} GB for a while in {folder} ({free / 1e9:.1f} GB free)",
        file=sys.stderr,
    )
    if free < needed:
        print(
            "benchmarks: that is too little: free some, give another --folder, or use --quick",
            file=sys.stderr,
        )
        return 1
    rounds = options.rounds or (2 if options.quick else 5)
    with _temporary(folder) as work:
        settings = Settings(work, corpora, rounds, options.quick, options.disk)
        for name in options.names:
            print(f"benchmarks: {name}", file=sys.stderr, flush=True)
            section: Section = importlib.import_module(f"benchmarks.{name}").run(settings)
            text = section.markdown()
            print(f"\n## {section.title}\n\n{text}\n", flush=True)
            if options.output:
                _record(options.output, name, f"{_provenance(name, options)}\n\n{text}")
    return 0


def _options() -> argparse.Namespace:
    names = [name for name in _NAMES if (HERE / "benchmarks" / f"{name}.py").exists()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"of {', '.join(names)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the files, fewer rounds")
    parser.add_argument("--corpus", choices=sorted(CORPORA), help="only this one; default: both")
    parser.add_argument("--folder", type=Path, help="where temporary files go; default: in memory")
    parser.add_argument("--disk", action="store_true", help="on a disk, with fsync for everybody")
    parser.add_argument("--rounds", type=int, help="default: 5, with --quick 2")
    parser.add_argument("--output", type=Path, help="a Markdown file whose figures to replace")
    options = parser.parse_args()
    options.names = [_module(name) for name in options.names]
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"no benchmark named {', '.join(unknown)}; there are {', '.join(names)}")
    options.names = options.names or names
    return options


def _module(name: str) -> str:
    """The benchmark that is meant: `s3-pack` is s3_pack, `random` is random_access."""
    name = name.replace("-", "_")
    return _SHORT.get(name, name)


def _needed(names: list[str], corpora: tuple[str, ...], small: bool) -> int:
    """Bytes: the corpora that stay, and the largest output."""
    needed = 1_500_000_000 if {"scan", "watch", "noop", "incremental"} & set(names) else 500_000_000
    if small:
        needed //= 3
    chosen = [CORPORA[name] for name in corpora]
    chosen = [quick(each) for each in chosen] if small else chosen
    if {"pack", "build", "dagster_cost", "index", "tars"} & set(names):
        needed += sum(each.bytes for each in chosen) + int(1.2 * max(each.bytes for each in chosen))
    if "reshard" in names:  # raw, two sets of shards, and the files that GNU tar extracts
        needed += sum(each.bytes for each in chosen) + 3 * max(each.bytes for each in chosen)
    if "combine" in names:  # raw, published and combined, and a copy in memory
        needed += 1_000_000_000 if small else 4_500_000_000
    if _READ & set(names):  # raw, published, and the formats of two others
        needed += 4 * sum(each.bytes for each in chosen)
    if "resize" in names:
        needed += quick(CORPORA["typical"]).bytes
    return needed


def _default_folder(needed: int, disk: bool) -> Path:
    if not disk and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > needed:
        return _MEMORY
    return Path(tempfile.gettempdir())


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder that is gone afterwards, also after Ctrl-C or `kill`."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)
    work = Path(tempfile.mkdtemp(prefix="wds_pipeline_benchmarks-", dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _provenance(name: str, options: argparse.Namespace) -> str:
    """When, where, and by which command."""
    flags = [f"--corpus {options.corpus}"] if options.corpus else []
    flags += ["--quick"] if options.quick else []
    flags += ["--disk"] if options.disk else []
    flags += [f"--rounds {options.rounds}"] if options.rounds else []
    command = " ".join(["python -m benchmarks", name, *flags])
    return f"`{command}`, {date.today().isoformat()}, {_machine()}"


def _machine() -> str:
    cores, processor, memory = 0, platform.machine(), ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        cores = len(re.findall(r"^processor", text, re.MULTILINE))
        model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
        processor = model.group(1) if model else processor
        total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        memory = f", {int(total.group(1)) / 1024**2:.0f} GiB" if total else ""
    system = f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}"
    return f"{cores} cores ({processor}){memory}, {system}, Python {platform.python_version()}"


def _record(path: Path, name: str, text: str) -> None:
    """Puts a benchmark's figures between their marks in a Markdown file; the rest stays."""
    begin, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
    old = path.read_text() if path.exists() else "# Benchmarks\n"
    block = f"{begin}\n{text}\n{end}"
    if begin in old and end in old:
        new = old[: old.index(begin)] + block + old[old.index(end) + len(end) :]
    else:
        new = f"{old.rstrip()}\n\n{block}\n"
    path.write_text(new)


if __name__ == "__main__":
    sys.exit(main())
