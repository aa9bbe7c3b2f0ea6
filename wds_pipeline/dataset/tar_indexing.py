"""Makes and updates an index of tars (`tar_index`): one parallel pass over those that are new or changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from wds_pipeline.compute import open_pool, run_all
from wds_pipeline.config_compute import ComputeConfig
from wds_pipeline.config_storage import Place, StorageConfig, absolute
from wds_pipeline.dataset import seal, tar_index
from wds_pipeline.dataset.shard_report import Finding
from wds_pipeline.dataset.tar_index import FOLDER, TarFacts, TarIndex
from wds_pipeline.dataset.tar_members import read_members
from wds_pipeline.dataset.tar_paths import find_tars
from wds_pipeline.dataset.tar_scan import walk
from wds_pipeline.errors import DestinationError, SourceError, VersionError
from wds_pipeline.storage import FileInfo, Storage, open_storage

# Below, threads are done before processes are there: hashing and reading run beside each other.
_WORTH_PROCESSES = 2_000_000_000  # bytes
_REMOTE_WORKERS = 16
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class IndexJob:
    """All that a worker needs to index one tar."""

    tars: Place
    path: str
    index: Place
    folder: str


@dataclass
class Indexed:
    """An index as it is now, and what was done for it: paths of tars, relative to their folder."""

    index: TarIndex
    read: list[str] = field(default_factory=list)
    kept: int = 0
    removed: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


def run(job: IndexJob) -> TarFacts:
    """Indexes one tar: reads it once, front to back, and writes its member index.

    Raises SourceError when it cannot be read, DestinationError when the index cannot be written.
    """
    tars, index = open_storage(job.tars), open_storage(job.index)
    before = tars.stat(job.path)
    where = tars.locate(job.path)
    if before is None:
        raise SourceError(f"{where}: is gone; index the others, or fetch it again")
    try:
        with tars.open(job.path) as file:
            walked = walk(file)
    except OSError as error:
        raise SourceError(f"{where}: cannot be read: {error.strerror or error}") from error
    found = read_members(walked, job.path)
    after = tars.stat(job.path)
    if after != before or walked.bytes != before.size:
        text = "it was written while it was read; index it again when nobody writes it"
        found.findings.append(Finding("error", "changed", job.path, "", "", text))
    facts = TarFacts(
        path=job.path,
        bytes=walked.bytes,
        modified=before.modified,
        samples=found.samples,
        members=found.table.num_rows,
        digest=walked.digest,
        end=walked.end,
        fields=found.fields,
        findings=tuple(found.findings),
        misread=found.misread,
    )
    index.put(job.folder + facts.members_name, seal.parquet_bytes(found.table))
    return facts


def index_tars(
    names: Sequence[str],
    output: str | None = None,
    *,
    config: StorageConfig | None = None,
    workers: int | None = None,
    again: bool = False,
    add: bool = False,
    progress: Progress | None = None,
) -> Indexed:
    """Indexes tars, in place; those that did not change since an earlier index are not read again.

    The index goes to the folder or URL `output`, by default `.wds_pipeline/` beside the tars. It then has
    these tars, in this order; with `add` those of the earlier index too. `again` reads all.

    Raises ConfigError, SourceError, DestinationError.
    """
    tars, files = find_tars(names, config)
    storage, folder = _output(tars, output, config)
    known = _known(storage, folder)
    old = {} if known is None or known.tars.url != tars.url else {r.path: r for r in known.rows}
    result = Indexed(TarIndex(tars, storage, folder, ()))
    if add:
        if known is not None and known.tars.url != tars.url:
            raise SourceError(
                f"{known.place}: the earlier index is of tars in {known.tars.url}, these are in "
                f"{tars.url}; index all of them together"
            )
        named = {file.path for file in files}
        files = [
            FileInfo(r.path, r.bytes, r.modified) for r in old.values() if r.path not in named
        ] + files
    facts = _unchanged(files, {} if again else old, storage, folder, result)
    jobs = [
        IndexJob(tars.place, file.path, storage.place, folder)
        for file in files
        if file.path not in facts
    ]
    sizes = {file.path: file.size for file in files}
    result.read = [job.path for job in jobs]
    result.kept = len(facts) - len(result.renamed)
    for row in _run(jobs, tars, sum(sizes[job.path] for job in jobs), workers, progress, sizes):
        facts[row.path] = row
    now = {file.path for file in files} | set(result.renamed)
    result.removed = [path for path in old if path not in now]
    result.index = replace(result.index, rows=tuple(facts[file.path] for file in files))
    if known is None or result.index.rows != known.rows or known.tars.url != tars.url:
        tar_index.save(result.index)
        _tidy(result.index, known)
    return result


def _output(tars: Storage, output: str | None, config: StorageConfig | None) -> tuple[Storage, str]:
    if output is None:
        return tars, f"{FOLDER}/"
    return open_storage(Place(url=absolute(output, ""), storage=config or StorageConfig())), ""


def _known(storage: Storage, folder: str) -> TarIndex | None:
    """The earlier index, if there is one that can be read."""
    try:
        return tar_index.load(storage, folder)
    except VersionError:
        if storage.stat(folder + tar_index.INDEX) is None:
            return None
        raise


def _unchanged(
    files: list[FileInfo], old: dict[str, TarFacts], storage: Storage, folder: str, result: Indexed
) -> dict[str, TarFacts]:
    """What the earlier index says of the tars that are still the same, by their path now."""
    there = set(storage.list_names(folder + tar_index.MEMBERS)) if old else set()
    usable = {
        path: row
        for path, row in old.items()
        if row.members_name.rpartition("/")[2] in there
        and not any(found.code == "changed" for found in row.findings)
    }
    now = {file.path for file in files}
    gone: dict[tuple[int, float], list[TarFacts]] = {}
    for path, row in usable.items():
        if path not in now:
            gone.setdefault((row.bytes, row.modified), []).append(row)
    facts: dict[str, TarFacts] = {}
    for file in files:
        same = usable.get(file.path)
        if same is not None and (same.bytes, same.modified) == (file.size, file.modified):
            facts[file.path] = same
            continue
        moved = gone.get((file.size, file.modified), []) if file.path not in old else []
        if len(moved) == 1 and _surely_moved(moved[0], file):
            before = moved.pop()
            result.renamed[before.path] = file.path
            findings = tuple(replace(each, shard=file.path) for each in before.findings)
            facts[file.path] = replace(before, path=file.path, findings=findings)
    return facts


def _surely_moved(row: TarFacts, file: FileInfo) -> bool:
    """Whether one size and time are enough to say so: times of whole seconds are often made up."""
    same_name = row.path.rpartition("/")[2] == file.path.rpartition("/")[2]
    return same_name or not float(file.modified).is_integer()


def _run(
    jobs: list[IndexJob],
    tars: Storage,
    total: int,
    workers: int | None,
    progress: Progress | None,
    sizes: dict[str, int],
) -> list[TarFacts]:
    if not jobs:
        return []
    kind: Literal["processes", "threads"] = "processes" if total > _WORTH_PROCESSES else "threads"
    if workers is None and not tars.folders:
        workers = _REMOTE_WORKERS
    rows, done = [], 0
    with open_pool(ComputeConfig(kind=kind, workers=workers)) as pool:
        for job, row in run_all(pool, run, jobs):
            done += sizes[job.path]
            if progress is not None:
                progress("index", done, total)
            rows.append(row)
    return rows


def _tidy(index: TarIndex, known: TarIndex | None) -> None:
    """Removes member indexes that neither this index nor the one before needs: who opened that reads on."""
    if known is None:
        return
    needed = {each.members_name for rows in (index.rows, known.rows) for each in rows}
    folder = index.folder + tar_index.MEMBERS

    def drop(name: str) -> None:
        if f"{tar_index.MEMBERS}/{name}" not in needed and not name.startswith("."):
            index.storage.delete(f"{folder}/{name}")

    try:
        index.storage.at_once(drop, list(index.storage.list_names(folder)))
    except DestinationError:  # the index is whole; the next one tidies up
        return
