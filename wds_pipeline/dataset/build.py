"""The main job: scan, plan, pack, verify, publish. Killed at any point, the next build continues.

`build` does it in one call. Its steps are methods of `Build`, so that Dagster can run them as ops;
each looks at what is stored, and none relies on the one before having run in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash

from wds_pipeline.compute import open_pool, prepare
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import (
    drafts,
    export,
    overlay_check,
    publish,
    release,
    report_html,
    samples,
    seal,
    settle,
    version,
)
from wds_pipeline.dataset.costs import Costs
from wds_pipeline.dataset.drafts import Draft as Draft
from wds_pipeline.dataset.naming import INVENTORY, assign
from wds_pipeline.dataset.overlay_source import OverlaySource
from wds_pipeline.dataset.pack import Packed
from wds_pipeline.dataset.parent import Parent
from wds_pipeline.dataset.plan import RECIPE_FORMAT, Plan, ShardPlan, make_plan
from wds_pipeline.dataset.report import Report
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.dataset.settle import Progress, Rejections
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.sources.folder import refuse_nesting
from wds_pipeline.dataset.split import read_list
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.wording import counted
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    VerificationError,
)
from wds_pipeline.storage import Usage, open_storage
from wds_pipeline.transforms.registry import Step
from wds_pipeline.transforms.registry import load as load_steps

_COMMITS = 10

# Called with each plan before it is held against the policies, and with its report too when it is
# settled and about to be published. What it raises refuses the candidate.
OnCandidate = Callable[[Plan, Report | None], None]


@dataclass(frozen=True)
class BuildResult:
    """What a build did. `packed` counts the shards that it wrote, `costs` what its stores were asked."""

    status: Literal["published", "unchanged", "repaired"]
    manifest: Manifest
    packed: int = 0
    causes: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    costs: Costs = field(default_factory=lambda: Costs(Usage(), Usage()))


class Build:
    """The steps of a build of one dataset."""

    def __init__(self, config: DatasetConfig, progress: Progress | None = None) -> None:
        self.config = config
        self.progress = progress
        self.on_candidate: OnCandidate | None = None
        try:
            self.source = open_source(config)
            self.destination = open_storage(config.destination_place)
        except ConfigError as error:
            head = f"{config.file or config.name}: "  # some name the file themselves
            raise ConfigError(head + str(error).removeprefix(head)) from None
        if self.source.storage is not None:
            refuse_nesting(self.source.storage, self.destination, config.name)

    def open_destination(self) -> None:
        """Makes the destination this dataset's, and tidies up after a build that was killed.

        Raises DestinationError when it holds something else or cannot be written.
        """
        self.destination.contact()
        self.source.keep = self.destination
        export.check(self.config.exports, self.destination, self.config.name)
        if not version.check_marker(self.destination, self.config.name):
            version.write_marker(self.destination, self.config.name)
        newest = version.latest(self.destination)
        if newest is not None:
            publish.finish(self.destination, newest)
            export.complete(self.destination, newest, self.config.exports)

    def scan(self) -> Listing:
        """Lists the source. Raises SourceError, ConfigError, DataError."""
        return self.source.scan(self.progress)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The dataset's transforms. Raises ConfigError."""
        return load_steps(self.config.transforms, str(self.config.file or self.config.name))

    def inputs(self, listing: Listing | str) -> str:
        """A digest of all that decides a version; of the listing, its digest will do."""
        _, listed = read_list(self.config)
        digest = listing if isinstance(listing, str) else listing.digest
        code = " ".join(step.digest for step in self.steps)
        parts = (RECIPE_FORMAT, digest, self.config.digest(), listed, *([code] if code else []))
        return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())

    def made_of(self, manifest: Manifest, inputs: str) -> bool:
        """Whether a version was made of these inputs, or is known to be what they would give."""
        return inputs in (
            manifest.inputs,
            version.read_checked(self.destination, manifest.version),
        )

    def newest_if_current(self, listing: Listing) -> Manifest | None:
        """The newest version, if it was made of these very inputs and all its shards are there."""
        newest = self.newest()
        if newest is None or self.source.fetched:
            return None
        if not self.made_of(newest, self.inputs(listing)):
            return None
        if samples.PASSING & newest.quarantined.keys():
            return None  # files that could not be read may be readable now
        there = settle.stored_sizes(self.destination)
        for shard in newest.shards:
            if any(shard.name + end not in there for end in (seal.MEMBERS, seal.SEAL)):
                return None
            if there.get(shard.name + seal.TAR) != shard.bytes:
                return None
        return newest

    @property
    def costs(self) -> Costs:
        """What the stores were asked so far, by the workers too."""
        return Costs(self.source.usage, self.destination.usage)

    def newest(self) -> Manifest | None:
        """The newest version, or None. Raises DestinationError, VersionError."""
        if not version.check_marker(self.destination, self.config.name):
            return None
        return version.latest(self.destination)

    def parent(self) -> Parent:
        """What a plan needs to know of the newest version."""
        newest = self.newest()
        if newest is None:
            return Parent()

        def table(name: str) -> pa.Table:
            return version.read_table(self.destination, newest, name)

        return Parent(
            version=newest.version,
            ledger=table(version.LEDGER),
            quarantine=table(version.QUARANTINE),
            recipes={(shard.split, shard.slot): shard.recipe for shard in newest.shards},
            inventory=lambda: table(version.INVENTORY),
            same_rules=newest.content_rules == settle.rules(self.config).content_digest,
            base=newest.overlay.get("digest", ""),
        )

    def plan(self, listing: Listing, *, repack: bool = False, resplit: bool = False) -> Draft:
        """Plans a listing on the newest version. Writes nothing.

        Raises DataError, DestinationError, VersionError.
        """
        draft = Draft(listing, None, repack=repack, resplit=resplit)  # type: ignore[arg-type]
        return self.redraft(draft)

    def redraft(
        self,
        before: Draft,
        *,
        listing: Listing | None = None,
        rejected: Rejections | None = None,
        keep_places: bool = False,
    ) -> Draft:
        """The next draft; its samples keep the places of the one before, if that is wanted and no
        other build committed meanwhile, for then the new version's places count."""
        listing = before.listing if listing is None else listing
        rejected = before.rejected if rejected is None else rejected
        same = before.plan is not None and listing is before.listing
        inventory = before.plan.inventory if same else self._inventory(listing)
        listed, _ = read_list(self.config)
        parent = self.parent()
        if before.plan is None or parent.version != before.plan.parent:
            keep_places = False
        plan = make_plan(
            inventory,
            self.config,
            parent,
            listed=listed,
            rejected=rejected.table,
            draft=before.plan.ledger if keep_places else None,
            repack=before.repack,
            resplit=before.resplit,
            listing=listing,
            steps=self.steps,
        )
        return replace(before, listing=listing, plan=plan, rejected=rejected)

    def _inventory(self, listing: Listing) -> pa.Table:
        """The listing's files with their keys and fields; with their rows, where the listing knows more."""
        found = assign(listing.files, self.config.samples)
        if listing.origins is None and listing.places is None:
            return found
        rows = pa.array(np.arange(found.num_rows))
        return found.append_column(samples.ROW, rows)

    def unsealed(self, plan: Plan) -> list[ShardPlan]:
        """The plan's shards that are not stored whole."""
        newest = self.newest()
        sizes = {shard.name: shard.bytes for shard in newest.shards} if newest else {}
        return settle.unsealed(self.destination, plan.shards, sizes)

    def pack(self, plan: Plan, shards: Sequence[ShardPlan], pool: Executor) -> list[Packed]:
        """Packs these shards of the plan.

        Raises SourceError, DestinationError, WorkerError; and VerificationError, when the others are
        packed, for those that would not have the bytes that were published.
        """
        packed = self.try_pack(plan, shards, pool)
        settle.check_passing(self.config, packed)
        refused = [each.refused for each in packed if each.refused]
        if refused:
            more = f"\n… and {len(refused) - 10:,} more shards" if len(refused) > 10 else ""
            raise VerificationError("\n".join(refused[:10]) + more)
        return packed

    def try_pack(
        self, plan: Plan, shards: Sequence[ShardPlan], pool: Executor, anew: bool = False
    ) -> list[Packed]:
        """Packs these shards of the plan, with `anew` whatever is stored; what was refused or failed in
        passing is a result, and of shards that were not tried any more, for the store is away, there is
        none.

        Raises SourceError, DestinationError, WorkerError.
        """
        self.destination.check_put_if_absent()  # before all the work, not after it
        newest = self.newest()
        published = {shard.name: shard.digest for shard in newest.shards} if newest else {}
        packed = settle.pack_shards(self.config, plan, shards, pool, self.progress, published, anew)
        for each in packed:
            self.source.usage.add(each.usage[0])
            self.destination.usage.add(each.usage[1])
        again = published.keys() & {each.name for each in packed if each.seal is not None}
        if again:  # repaired: the views' hard links still lead to the damaged files
            publish.relink_views(self.destination, again)
        return packed

    def verify(
        self,
        plan: Plan,
        shards: Sequence[ShardPlan],
        pool: Executor,
        superseded: Iterable[str] = (),
    ) -> None:
        """Verifies these shards of the plan; each gets its report. Raises DestinationError.

        Content that was decoded for the newest version's shard of the same slot, or for one of the
        `superseded` drafts, is not decoded again.
        """
        newest = self.newest()
        known: dict[str, list[str]] = {}
        published = [shard.name for shard in newest.shards] if newest else []
        for name in (*published, *superseded):
            known.setdefault(seal.partition_of(name), []).append(name)
        verified = settle.verify_shards(self.config, plan, shards, pool, known, self.progress)
        for each in verified:
            self.destination.usage.add(each.usage)

    def settle(self, draft: Draft, pool: Executor) -> Draft:
        """Packs and verifies until every shard of the plan, as it then is, is sealed and sound.

        Raises DataError when too many samples turn out to be unusable, VerificationError when a
        shard is damaged again after it was packed anew.
        """
        return drafts.settle_draft(self, draft, pool)

    def report(self, draft: Draft) -> Report:
        """The report of a settled draft."""
        reports = drafts.reports_of(self, draft)
        skipped = draft.listing.skipped
        report = release.make_version_report(
            self.config, self.destination, draft.plan, skipped, reports
        )
        if isinstance(self.source, OverlaySource):
            base = self.source.base(draft.listing.overlay["version"])
            overlay_check.check(report, reports, base, self.config)
        return report

    def publish(self, draft: Draft, report: Report) -> Manifest | None:
        """Commits a settled draft as the next version; None when another build was first.

        Raises VerificationError when the report has errors, DestinationError.
        """
        if self.on_candidate is not None:
            self.on_candidate(draft.plan, report)
        if not report.passed:
            errors = [each for each in report.findings if each.severity == "error"]
            shown = "\n  ".join(f"{each.code}: {each.message}" for each in errors[:10])
            raise VerificationError(
                f"{self.config.name}: verification failed with {counted(len(errors), 'error')}:\n  {shown}\n"
                "Nothing was published"
            )
        manifest = release.make_manifest(
            self.config,
            self.destination,
            draft.plan,
            self.inputs(draft.listing),
            report,
            draft.listing.made_of,
            draft.listing.overlay,
        )
        files = {
            version.LEDGER: seal.parquet_bytes(draft.plan.ledger),
            version.INVENTORY: seal.parquet_bytes(draft.plan.inventory.select(INVENTORY.names)),
            version.QUARANTINE: seal.parquet_bytes(draft.plan.quarantine),
            version.REPORT_JSON: report.to_json(),
            version.REPORT_HTML: report_html.render(report).encode(),
        }
        return manifest if publish.commit(self.destination, manifest, files) else None

    def finish(self, draft: Draft, pool: Executor) -> BuildResult:
        """Settles and publishes a draft; on a conflict plans again on the version that was first."""
        for _ in range(_COMMITS):
            draft = self.settle(draft, pool)
            plan = draft.plan
            if not plan.changed:
                newest = self.newest()
                if newest is None or newest.version != plan.parent:
                    draft = self.redraft(draft, listing=self.scan())
                    continue
                inputs = self.inputs(draft.listing)
                if inputs != newest.inputs:  # what changed was not part of any sample
                    version.write_checked(self.destination, newest.version, inputs)
                status: Any = "repaired" if draft.repaired else "unchanged"
                return BuildResult(
                    status, newest, len(draft.packed), warnings=plan.warnings, costs=self.costs
                )
            manifest = self.publish(draft, self.report(draft))
            if manifest is not None:
                published = {shard.name for shard in manifest.shards}
                for name in draft.superseded - published:
                    if not self.destination.stat(seal.path(name, seal.SEAL)):
                        self.destination.delete(seal.path(name, seal.REPORT))
                causes = {shard.partition: shard.cause for shard in plan.stale}
                return BuildResult(
                    "published",
                    manifest,
                    len(draft.packed),
                    causes,
                    plan.gone,
                    plan.warnings,
                    self.costs,
                )
            # The other build may have seen a newer source than this one.
            draft = self.redraft(draft, listing=self.scan())
        raise DestinationError(
            f"{self.config.name}: other builds committed {_COMMITS} versions meanwhile; the sealed "
            "shards are kept, build again"
        )


def build(
    config: DatasetConfig,
    progress: Progress | None = None,
    *,
    repack: bool = False,
    resplit: bool = False,
) -> BuildResult:
    """Builds a dataset: what changed in the source since the newest version, and publishes it.

    Raises a WdsPipelineError, whose message is for the user; nothing is published then.
    """
    work = Build(config, progress)
    work.open_destination()
    listing = work.scan()
    if not repack and not resplit:
        newest = work.newest_if_current(listing)
        if newest is not None:
            return BuildResult("unchanged", newest, costs=work.costs)
    prepare(config.compute)
    draft = work.plan(listing, repack=repack, resplit=resplit)
    with open_pool(config.compute) as pool:
        return work.finish(draft, pool)
