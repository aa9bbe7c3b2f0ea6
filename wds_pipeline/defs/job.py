"""`<name>_build`: the whole pipeline in one run. Each op is a step of `dataset.build.Build`.

Parallelism lives in the workers that the session holds, not in Dagster's executor: an op costs 20 to
40 ms in this process and 0.5 to 1.2 s in one of its own. So there are about 64 batches at most, and they
are run one after the other, each with all the workers.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import dagster as dg

from wds_pipeline.compute import prepare
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, settle, upstream
from wds_pipeline.dataset.build import BuildResult
from wds_pipeline.dataset.listing import LateListing
from wds_pipeline.dataset.pack import Packed
from wds_pipeline.dataset.plan import ShardPlan, check_policies
from wds_pipeline.dataset.wording import clip, counted, human_bytes
from wds_pipeline.defs import catalogue, checks, compute, console, keys, metadata
from wds_pipeline.defs.session import Options, Session, session_resources
from wds_pipeline.defs.summary import print_summary

_BATCHES = 64
_LARGEST_BATCH = 256
_SHOWN = 10  # rejected samples in a batch's warning
_SHARDS_A_WORKER = 16  # in a batch, or the workers would often wait for the last of them

_OPTIONS = {
    "repack": dg.Field(
        bool,
        is_required=False,
        default_value=False,
        description="Lay all shards out anew, as a new version; samples keep their splits.",
    ),
    "resplit": dg.Field(
        bool,
        is_required=False,
        default_value=False,
        description="Divide the samples into splits anew, and lay all shards out anew. Samples move "
        "between train and val: models that saw the old train must not be judged by the new val.",
    ),
}


@dataclass(frozen=True)
class Batch:
    """Shards of the plan by name: those to pack, then those that were, and are to be verified. `logged`
    are in the catalogue; `reduced` were packed under another name than the plan's, without samples that a
    transform could not use."""

    options: Options
    names: tuple[str, ...]
    logged: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()


def batches(shards: Sequence[ShardPlan], workers: int) -> Iterator[Sequence[ShardPlan]]:
    """Divides shards into about 64 batches, or fewer where that would starve the workers."""
    size = max(math.ceil(len(shards) / _BATCHES), _SHARDS_A_WORKER * workers)
    size = min(size, max(_LARGEST_BATCH, _SHARDS_A_WORKER * workers))
    for start in range(0, len(shards), size):
        yield shards[start : start + size]


def _session(context: dg.OpExecutionContext) -> Session:
    found: Session = context.resources.session
    return found


@dg.op(required_resource_keys={"session"}, out=dg.Out(str, description="The listing's digest."))
def scan(context: dg.OpExecutionContext) -> str:
    """Lists the source's files; reads none of them."""
    session = _session(context)
    with session.step(context):
        steps = session.build.steps  # what is wrong with them is told before the work
        session.build.open_destination()
        listing = session.listing
    if steps:
        context.log.info(f"transforms: {', '.join(step.name for step in steps)}")
    if isinstance(listing, LateListing):  # its files are looked at if there is anything new
        context.log.info(f"{session.config.name} is made of {session.build.source.url}")
        return listing.digest
    skipped = "".join(f", {count:,} {reason}" for reason, count in listing.skipped.items())
    context.log.info(
        f"{counted(listing.files.num_rows, 'file')}, {human_bytes(listing.bytes)}"
        f"{f'; skipped:{skipped[1:]}' if skipped else ''}"
    )
    return listing.digest


@dg.op(
    required_resource_keys={"session"},
    config_schema=_OPTIONS,
    ins={"listing": dg.In(str)},
    out={
        "batches": dg.DynamicOut(Batch, description="Shards to pack; there may be none."),
        "options": dg.Out(Options, is_required=False, description="Absent if nothing changed."),
    },
)
def plan(
    context: dg.OpExecutionContext, listing: str
) -> Iterator[dg.Output[Options] | dg.DynamicOutput[Batch]]:
    """Decides what is to be packed, and why. When nothing changed, all that follows is skipped."""
    session = _session(context)
    config, build = session.config, session.build
    options = Options(**context.op_config)
    with session.step(context), checks.watching(context, session) as watch:
        newest = build.newest_if_current(session.listing) if options == Options() else None
        if newest is not None:
            if not catalogue.knows_a_plan(context.instance, config):
                plan_of_it = session.draft(options).plan
                catalogue.log_plan(context, config, session.listing, plan_of_it)
            catalogue.log_version(context, config, build.destination, newest)
            watch.unchanged(newest)
            result = BuildResult("unchanged", newest)
            context.log.info(f"nothing changed since version {newest.version}")
            print_summary(config, build.destination, result)
            return
        prepare(config.compute)
        draft = session.draft(options)
        watch.candidate(draft.plan)
        check_policies(draft.plan, config)
        missing = build.unsealed(draft.plan)
        settle.check_space(config, sum(shard.bytes for shard in missing))
        partitions = [shard.partition for shard in draft.plan.shards]
        came, went = catalogue.register_partitions(context.instance, config.name, partitions)
        catalogue.log_plan(context, config, session.listing, draft.plan)
        workers = session.workers() if missing else 1
    context.log.info(
        f"{counted(len(draft.plan.shards), 'shard')}, {len(missing):,} to pack "
        f"(partitions: {came:,} new, {went:,} gone)"
    )
    for warning in draft.plan.warnings:
        context.log.warning(warning)
    yield dg.Output(options, "options")
    for number, shards in enumerate(batches(missing, workers)):
        names = tuple(shard.name for shard in shards)
        yield dg.DynamicOutput(Batch(options, names), f"{number:04d}", "batches")


@dg.op(required_resource_keys={"session"}, out=dg.Out(Batch))
def pack(context: dg.OpExecutionContext, batch: Batch) -> Batch:
    """Packs a batch of shards with all the workers; each is sealed when it is whole."""
    session = _session(context)
    with session.step(context):
        draft = session.draft(batch.options)
        shards = session.shards(batch.options, batch.names)
        results = session.build.pack(draft.plan, shards, session.pool)
    _tell(context, results)
    # One whose transforms failed with some samples is sealed without them, as the plan without them will call
    # it: `publish` makes that plan, and verifies it.
    sealed = [(each.name, each.seal.name) for each in results if each.seal is not None]
    return replace(
        batch,
        names=tuple(name for name, real in sealed if name == real),
        reduced=tuple(real for name, real in sealed if name != real),
    )


def _tell(context: dg.OpExecutionContext, results: Sequence[Packed]) -> None:
    """What came of a batch, in the run's log and on the step's output."""
    seals = [each.seal for each in results if each.seal is not None]
    size = sum(each.bytes for each in seals)
    said = f"{counted(len(seals), 'shard')} packed, {human_bytes(size)}"
    rejected = {key: reason for each in results for key, reason in each.rejected.items()}
    if rejected or any(each.inputs is not None for each in seals):
        samples = sum(each.samples for each in seals)
        inputs = sum(each.inputs or 0 for each in seals)
        left_out: Counter[str] = Counter()
        for each in seals:
            left_out.update(each.left_out)
        context.add_output_metadata(
            {
                "samples": samples,
                **metadata.of_transforms(inputs, left_out, len(rejected)),
            }
        )
        said += f", {counted(samples, 'sample')} of {inputs:,}"
        said += "".join(f", {count:,} left out by {name}" for name, count in left_out.items())
    context.log.info(said)
    for packed in results:
        for path, reason in packed.changed:
            context.log.warning(
                f"{packed.name}: {path}: {reason}; the source is scanned again before anything is "
                "published"
            )
    if rejected:
        shown = "".join(
            f"\n  {clip(f'{key}: {why}', 300)}" for key, why in islice(rejected.items(), _SHOWN)
        )
        more = f"\n  … and {len(rejected) - _SHOWN:,} more" if len(rejected) > _SHOWN else ""
        context.log.warning(
            f"transforms cannot use {counted(len(rejected), 'sample')}, which go to the quarantine:"
            f"{shown}{more}"
        )


# Before the next batch is packed: what was just written is still in the page cache.
@dg.op(required_resource_keys={"session"}, out=dg.Out(Batch), tags={"dagster/priority": "1"})
def verify(context: dg.OpExecutionContext, batch: Batch) -> Batch:
    """Reads a batch of shards back; logs those that are as they should be."""
    session = _session(context)
    with session.step(context):
        config, build = session.config, session.build
        draft = session.draft(batch.options)
        shards = session.shards(batch.options, batch.names)
        build.verify(draft.plan, shards, session.pool)
        reports = settle.load_reports(build.destination, shards)
        seals = seal.read_seals(build.destination, [shard.name for shard in shards])
        rejected = catalogue.rejected_in(draft.plan.quarantine)
        made = []
        for shard in shards:
            report, sealed = reports[shard.name], seals[shard.name]
            if report and sealed and catalogue.final(config, draft.plan, report):
                count, cause = rejected[shard.partition], shard.cause or "repair"
                made.append(catalogue.Made(sealed, cause, report, count))
        made_of = upstream.origin(draft.listing)
        catalogue.log_shards(context, config, build.destination, made, made_of=made_of)
    changed = len(shards) - len(made)
    context.log.info(
        f"{counted(len(shards), 'shard')} verified"
        f"{f', {changed:,} to be packed again without unusable samples' if changed else ''}"
    )
    return replace(batch, logged=tuple(each.seal.name for each in made))


@dg.op(
    required_resource_keys={"session"},
    out=dg.Out(int, is_required=False, description="The version."),
)
def publish(context: dg.OpExecutionContext, options: Options, done: list[Batch]) -> int:
    """Packs anew what had to be changed (samples that do not decode), evaluates the asset checks, and
    commits the version if no blocking one failed."""
    session = _session(context)
    with session.step(context), checks.watching(context, session) as watch:
        config, build = session.config, session.build
        packed = frozenset(name for batch in done for name in (*batch.names, *batch.reduced))
        logged = frozenset(name for batch in done for name in batch.logged)
        draft = replace(session.draft(options), packed=packed)
        result = build.finish(draft, session.pool)
        manifest = result.manifest
        rebuilt = {each.name for each in manifest.shards if each.since == manifest.version}
        if result.status != "published":
            rebuilt = set(packed)
        made_of = upstream.origin(draft.listing)
        catalogue.log_version(
            context, config, build.destination, manifest, rebuilt, logged, result.costs, made_of
        )
        watch.done(result)
    for warning in result.warnings:
        context.log.warning(warning)
    asked = f"; asked of the stores: {result.costs}" if str(result.costs) else ""
    context.log.info(f"version {manifest.version} {result.status}{asked}")
    context.add_output_metadata(metadata.of_origin(manifest))
    print_summary(config, build.destination, result)
    return manifest.version


def build_graph(config: DatasetConfig, name: str) -> dg.GraphDefinition:
    """The steps of a build of one dataset, in the dataset's pool, for the job of this name."""
    pooled = scan.tag({"dagster/concurrency_key": keys.pool(config.name)})

    @dg.graph(name=name)
    def graph() -> None:
        prepared = plan(pooled())
        publish(prepared.options, prepared.batches.map(lambda batch: verify(pack(batch))).collect())

    return graph


def build_job(
    config: DatasetConfig, executor: dg.ExecutorDefinition = dg.in_process_executor
) -> dg.JobDefinition:
    """The job that builds one dataset; the executor runs its steps."""

    @dg.config_mapping(config_schema={**_OPTIONS, **compute.OPTION})
    def options(values: dict[str, Any]) -> dict[str, object]:
        return {
            "ops": {"plan": {"config": {name: values[name] for name in _OPTIONS}}},
            "resources": compute.resources(values.get(compute.KEY, {})),
            "loggers": {console.NAME: {}},
        }

    name = keys.job_name(config.name)
    return build_graph(config, name).to_job(
        name=name,
        description=(
            f"{config.description or f'The dataset {config.name}.'} Scans the source, packs what "
            "changed, verifies it, publishes a version. Finds nothing to do when nothing changed; "
            "after a crash it goes on from the shards that are sealed."
        ),
        resource_defs=session_resources(config),
        config=options,
        executor_def=executor,
        logger_defs={console.NAME: console.console},
        tags={
            keys.DATASET_TAG: config.name,
            # A run that is started again finds what is sealed: its first steps cost little.
            "dagster/retry_strategy": "ALL_STEPS",
        },
        metadata={
            "source": config.shown_url("source"),
            "destination": config.shown_url("destination"),
        },
    )
