"""Pack and verify until every shard of the plan is sealed and sound.

Each step looks at what is stored, so it can be repeated, split over processes, or taken up after a
crash: a sealed shard is not packed again, a verified one not read again. What verification finds
unusable goes to the quarantine, and only its own shard is packed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from wds_pipeline.compute import run_all
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import ledger, pack, samples, seal
from wds_pipeline.dataset.pack import Packed, PackJob
from wds_pipeline.dataset.plan import Plan, ShardPlan
from wds_pipeline.dataset.shard_report import Rules, ShardReport, load_report
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.verify_job import Verified, VerifyJob
from wds_pipeline.dataset.verify_job import run as run_verify
from wds_pipeline.dataset.wording import counted
from wds_pipeline.errors import DestinationError, VerificationError, WdsPipelineError
from wds_pipeline.storage import UNREADABLE, Place, Storage, open_storage

# Called with what is under way ("pack", "verify"), how many bytes are done, and of how many.
Progress = Callable[[str, int, int], None]
_MOST_IN_A_ROW = 16  # shards that fail before the others are left for another time


def rules(config: DatasetConfig) -> Rules:
    """How a dataset wants its shards verified."""
    return Rules(
        level=config.verify.level,
        sample=config.verify.sample,
        max_pixels=config.verify.max_pixels,
        extensions=dict(config.samples.fields or {}),
    )


def unsealed(
    storage: Storage, shards: Iterable[ShardPlan], sizes: Mapping[str, int]
) -> list[ShardPlan]:
    """The shards that are not stored whole.

    `sizes` are the tars' bytes by name, of shards that a version holds; other sealed shards are
    taken up, and made young again so that `gc` spares them.
    """
    there = stored_sizes(storage)

    def is_whole(shard: ShardPlan) -> bool:
        name = shard.name
        if any(name + end not in there for end in (seal.TAR, seal.MEMBERS, seal.SEAL)):
            return False
        try:
            found = seal.read_seal(storage, name)
        except VerificationError:
            return False
        if found is None or there[name + seal.TAR] != sizes.get(name, found.bytes):
            return False
        return name in sizes or storage.touch(seal.path(name, seal.SEAL))

    shards = list(shards)
    found = storage.at_once(is_whole, shards)
    return [shard for shard, whole in zip(shards, found, strict=True) if not whole]


def stored_sizes(storage: Storage) -> dict[str, int]:
    """The files of all shards by name, in bytes: one listing tells more than a look at each."""
    start = len(seal.FOLDER)
    return {file.path[start:]: file.size for file in storage.list_files(seal.FOLDER)}


def pack_shards(
    config: DatasetConfig,
    plan: Plan,
    shards: Sequence[ShardPlan],
    pool: Executor,
    progress: Progress | None = None,
    published: Mapping[str, str] | None = None,
    anew: bool = False,
) -> list[Packed]:
    """Packs these shards of the plan with the pool; `published` are digests by name, to repair.

    Raises DestinationError, before anything is written, when they do not fit on the disk; and when so
    many fail one after the other that the store must be away.
    """
    total = sum(shard.bytes for shard in shards)
    check_space(config, total)
    jobs = (
        PackJob(
            plan.recipe(shard),
            source_of(config),
            config.destination_place,
            config.shards.digest,
            (published or {}).get(shard.name, ""),
            anew,
        )
        for shard in shards
    )
    sizes = {shard.name: shard.bytes for shard in shards}
    done, failed = 0, 0
    results = []
    for _, packed in run_all(pool, pack.run, jobs):
        done += sizes[packed.name]
        if progress is not None:
            progress("pack", done, total)
        results.append(packed)
        failed = failed + 1 if packed.failed else 0
        if failed >= _MOST_IN_A_ROW or (packed.failed and _is_away(config)):
            break
    return results


def source_of(config: DatasetConfig) -> Place | str:
    """Where packing finds the files of a folder; of any other source, each recipe says it."""
    return config.source_place if config.source.kind == "url" else ""


def _is_away(config: DatasetConfig) -> bool:
    """Whether either end does not answer at all: then the other shards need not be tried."""
    try:
        open_source(config).check()
        open_storage(config.destination_place).check()
    except WdsPipelineError:
        return True
    return False


def check_passing(config: DatasetConfig, results: Sequence[Packed]) -> None:
    """Raises DestinationError if any of these failed in passing; the others are sealed."""
    failed = [each for each in results if each.failed]
    if not failed:
        return
    head = f"{config.name}: "
    shown = "\n  ".join(each.failed.removeprefix(head) for each in failed[:5])
    more = f"\n  … and {len(failed) - 5:,} more" if len(failed) > 5 else ""
    error = DestinationError(
        f"{config.name}: {counted(len(failed), 'shard')} could not be packed, though "
        f"everything was tried again for a while:\n  {shown}{more}\n"
        "Nothing was published; the shards sealed so far are kept, build again"
    )
    error.passing = True
    raise error


def check_space(config: DatasetConfig, needed: int) -> None:
    """Raises DestinationError when so many bytes do not fit on the destination's disk."""
    free = open_storage(config.destination_place).free_bytes()
    if free is not None and free < needed:
        raise DestinationError(
            f"{config.name}: destination.url: {config.destination_url}: {free:,} bytes are free, "
            f"{needed:,} are needed; free some (`wds-pipeline gc {config.name}`), or choose another "
            "destination. Nothing was written"
        )


def verify_shards(
    config: DatasetConfig,
    plan: Plan,
    shards: Sequence[ShardPlan],
    pool: Executor,
    known: Mapping[str, Sequence[str]] | None = None,
    progress: Progress | None = None,
) -> list[Verified]:
    """Verifies these shards of the plan with the pool; each gets its report beside it.

    `known` names, by partition, shards whose reports may say what the same content decoded to.
    """
    wanted = rules(config)
    total = sum(shard.bytes for shard in shards)
    jobs = (
        VerifyJob(
            shard.name,
            config.destination_place,
            wanted,
            None if plan.steps else plan.recipe(shard).members.select(["name", "size"]),
            tuple(n for n in (known or {}).get(shard.partition, ()) if n != shard.name),
        )
        for shard in shards
    )
    sizes = {shard.name: shard.bytes for shard in shards}
    done = 0
    results = []
    for _, verified in run_all(pool, run_verify, jobs):
        done += sizes[verified.name]
        if progress is not None:
            progress("verify", done, total)
        results.append(verified)
    return results


def load_reports(storage: Storage, shards: Sequence[ShardPlan]) -> dict[str, ShardReport | None]:
    """The shards' reports by name; None where there is none to rely on."""
    found = storage.at_once(lambda shard: load_report(storage, shard.name), shards)
    return {shard.name: report for shard, report in zip(shards, found, strict=True)}


@dataclass(frozen=True)
class Rejections:
    """Samples that cannot be used, as the next plan takes them (schema `ledger.QUARANTINE`)."""

    table: pa.Table

    @classmethod
    def none(cls) -> Rejections:
        return cls(ledger.empty(ledger.QUARANTINE))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def add(self, other: Rejections) -> Rejections:
        return Rejections(pa.concat_tables([self.table, other.table]))


def reject(plan: Plan, found: Mapping[str, tuple[str, str]]) -> Rejections:
    """Samples by key with (reason, detail), as rejections of the plan's present content."""
    if not found:
        return Rejections.none()
    keys = list(found)
    index = pc.index_in(pa.array(keys, pa.large_string()), plan.ledger["key"].combine_chunks())
    rows = []
    for key, row in zip(keys, index.to_pylist(), strict=True):
        if row is not None:
            reason, detail = found[key]
            rows.append(
                {
                    "key": key,
                    "reason": reason,
                    "detail": detail,
                    "files": [],
                    "bytes": 0,
                    "digest": plan.ledger["digest"][row].as_py(),
                    # its place, which a later draft's ledger will not know any more
                    "split": plan.ledger["split"][row].as_py(),
                    "slot": plan.ledger["slot"][row].as_py(),
                }
            )
    return Rejections(pa.Table.from_pylist(rows, schema=ledger.QUARANTINE))


def reject_content(plan: Plan, config: DatasetConfig, reports: Iterable[ShardReport]) -> Rejections:
    """The samples whose content the reports say is unusable, unless the policy keeps them."""
    found: dict[str, tuple[str, str]] = {}
    for report in reports:
        bad = report.members.filter(pc.is_valid(report.members["problem"]))
        columns = (bad[name].to_pylist() for name in ("key", "field", "problem", "detail"))
        for key, field, problem, detail in zip(*columns, strict=True):
            keep = samples.policy_for(problem, config.samples) == "keep"
            if problem in samples.CONTENT_PROBLEMS and not keep:
                name = f"{key}.{field}: " if field else ""  # a transform's reason is of the sample
                found.setdefault(key, (problem, f"{name}{detail or problem}"))
    return reject(plan, found)


def reject_failed(plan: Plan, packed: Iterable[Packed]) -> Rejections:
    """The samples that a transform could not use."""
    found: dict[str, tuple[str, str]] = {}
    for each in packed:
        for key, reason in each.rejected.items():
            found[key] = ("transform_failed", reason)
    return reject(plan, found)


def reject_unstable(plan: Plan, packed: Iterable[Packed]) -> Rejections:
    """The samples whose files would not hold still while they were packed."""
    found: dict[str, tuple[str, str]] = {}
    files = plan.samples.files
    for each in packed:
        if each.seal is None:
            reasons = dict(each.changed)
            rows = pc.is_in(files["path"], pa.array(list(reasons), pa.large_string()))
            columns = (files.filter(rows)[name].to_pylist() for name in ("path", "name", "field"))
            for path, name, field in zip(*columns, strict=True):
                key = name[: -len(field) - 1]
                reason = "unreadable" if reasons[path].startswith(UNREADABLE) else "unstable"
                found.setdefault(key, (reason, f"{path}: {reasons[path]}"))
    return reject(plan, found)
