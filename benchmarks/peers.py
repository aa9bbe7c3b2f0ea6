"""The other programs: they get the same files, in the same shards, and as many processes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from benchmarks.measure import Stopwatch, Took
from wds_pipeline.dataset.plan import Plan

PROCESSES = 2
USUAL_PROCESSES = 4

# What people run today, N times in the background, with a slice of the dataset each.
USUAL_SCRIPT = """\
import sys
from pathlib import Path
from webdataset import TarWriter

root, output = Path(sys.argv[1]), Path(sys.argv[2])
for shard in map(Path, sys.argv[3:]):
    with TarWriter(str(output / f"{shard.stem}.tar")) as writer:
        for key in shard.read_text().splitlines():
            sample = {"__key__": key}
            for extension in ("jpg", "json", "txt"):
                sample[extension] = (root / f"{key}.{extension}").read_bytes()
            writer.write(sample)
"""

SHARD_WRITER_SCRIPT = """\
import sys
from pathlib import Path
from webdataset import ShardWriter

root, output, size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
pattern = str(output / "shard-%06d.tar")
with ShardWriter(pattern, maxsize=size, maxcount=10**9, verbose=0) as writer:
    for shard in map(Path, sys.argv[4:]):
        for key in shard.read_text().splitlines():
            sample = {"__key__": key}
            for extension in ("jpg", "json", "txt"):
                sample[extension] = (root / f"{key}.{extension}").read_bytes()
            writer.write(sample)
"""


@dataclass(frozen=True)
class Peers:
    """The commands of the peers for one plan. `make` writes the lists of files that they read."""

    root: Path
    lists: Path
    output: Path
    shard_bytes: int
    sync: bool

    @classmethod
    def make(cls, plan: Plan, root: Path, folder: Path, shard_bytes: int, sync: bool) -> Peers:
        lists = folder / "lists"
        shutil.rmtree(lists, ignore_errors=True)
        lists.mkdir(parents=True)
        for shard in plan.shards:
            paths = plan.recipe(shard).members["path"].to_pylist()
            keys = list(dict.fromkeys(path.rpartition(".")[0] for path in paths))
            stem = lists / shard.partition
            stem.with_suffix(".files").write_text("".join(f"{path}\0" for path in paths))
            stem.with_suffix(".keys").write_text("\n".join(keys) + "\n")
        (lists / "usual.py").write_text(USUAL_SCRIPT)
        (lists / "shard_writer.py").write_text(SHARD_WRITER_SCRIPT)
        return cls(root, lists, folder / "peer", shard_bytes, sync)

    def _each_list(self, command: str) -> str:
        """Runs a command for each shard's list of files, `PROCESSES` at a time."""
        lists = shlex.quote(str(self.lists))
        inner = f'name=$(basename "$0" .files); {command}'
        return f"ls {lists}/*.files | xargs -P {PROCESSES} -n 1 sh -c {shlex.quote(inner)}"

    def limit(self) -> str:
        """`cat` of the same files into as many outputs."""
        output = shlex.quote(str(self.output))
        return f"cd {shlex.quote(str(self.root))} && " + self._each_list(
            f'xargs -0 cat < "$0" > {output}/"$name".cat'
        )

    def gnu_tar(self) -> str:
        output, root = shlex.quote(str(self.output)), shlex.quote(str(self.root))
        return self._each_list(f'tar -C {root} --null -T "$0" -cf {output}/"$name".tar')

    def usual(self) -> str:
        """N background processes of a Python script, then `wait`."""
        shards = sorted(self.lists.glob("*.keys"))
        parts = [shards[start::USUAL_PROCESSES] for start in range(USUAL_PROCESSES)]
        command = [sys.executable, str(self.lists / "usual.py"), str(self.root), str(self.output)]
        jobs = [shlex.join([*command, *map(str, part)]) for part in parts if part]
        return " & ".join(jobs) + " & wait"

    def shard_writer(self) -> str:
        shards = map(str, sorted(self.lists.glob("*.keys")))
        script, size = str(self.lists / "shard_writer.py"), str(self.shard_bytes)
        return shlex.join([sys.executable, script, str(self.root), str(self.output), size, *shards])

    def timed(
        self, command: str, check: Callable[[Path], None] | None = None
    ) -> Callable[[], Took]:
        """The command as a contender. `check` sees the output of the first run, outside of the time."""
        checks = [check] if check is not None else []

        def run() -> Took:
            shutil.rmtree(self.output, ignore_errors=True)
            self.output.mkdir(parents=True)
            full = command
            if self.sync:
                full = f"{{ {command}; }} && sync {shlex.quote(str(self.output))}/*"
            watch = Stopwatch()
            subprocess.run(["sh", "-c", full], check=True)
            took = watch.took()
            if checks:
                checks.pop()(self.output)
            shutil.rmtree(self.output)
            return took

        return run


def check_tars(root: Path, folder: Path) -> None:
    """Every file of `root` is in one of the folder's tars, once, with its bytes; nothing else is.

    Raises RuntimeError.
    """
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                data = file.read() if file is not None else b""
                same = xxhash.xxh3_128_digest((root / member.name).read_bytes())
                if member.name not in left or xxhash.xxh3_128_digest(data) != same:
                    raise RuntimeError(f"{path}: {member.name} is not the file that was packed")
                left.remove(member.name)
    if left:
        raise RuntimeError(f"{folder}: {len(left):,} files are in no tar, such as {min(left)}")


def check_bytes(root: Path, folder: Path) -> None:
    """The folder's files hold as many bytes as those of `root`. Raises RuntimeError."""
    wanted, found = folder_bytes(root), folder_bytes(folder)
    if found != wanted:
        raise RuntimeError(f"{folder}: {found:,} bytes; expected {wanted:,}")


def folder_bytes(folder: Path, pattern: str = "*") -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
