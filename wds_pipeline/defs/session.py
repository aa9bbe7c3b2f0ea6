"""What the steps of one run share: the build, its workers and its plan.

A step never relies on another one having run in the same process: what is not in memory, because a
run was re-executed from its failure or each step has a process of its own, is worked out again from
what is stored. So what the ops hand on is small: names of shards.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from wds_pipeline.compute import open_pool, pool_size, worker_count
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import Build, Draft
from wds_pipeline.dataset.plan import ShardPlan
from wds_pipeline.dataset.scan import Listing
from wds_pipeline.defs import compute
from wds_pipeline.defs.progress import progress_lines
from wds_pipeline.errors import ConfigError, WdsPipelineError, may_pass

_RETRIES = 3
_FIRST_WAIT = 5.0  # seconds; then twice as long each time
_FETCHED = ("table", "recipe", "merge")  # sources that may have URLs or commands in them
_MAY_GROW_TO = 16  # workers of a cluster that has fewer when the batches are made


@dataclass(frozen=True)
class Options:
    """How a run wants its plan made."""

    repack: bool = False
    resplit: bool = False


class Session:
    """One run's build of a dataset. Its plan is made once, its workers start at their first use."""

    def __init__(self, config: DatasetConfig) -> None:
        self.config = config
        self._workers = ExitStack()
        self._pool: Executor | None = None
        self._drafts: dict[Options, Draft] = {}

    @cached_property
    def build(self) -> Build:
        """The steps of the build. Raises ConfigError."""
        return Build(self.config)

    @cached_property
    def listing(self) -> Listing:
        """The source's files. Raises SourceError, DestinationError."""
        if self.config.source.kind in _FETCHED:
            self.build.open_destination()  # where what is fetched is kept
        return self.build.scan()

    def draft(self, options: Options) -> Draft:
        """The plan of the listing. Raises DataError, DestinationError, VersionError."""
        if options not in self._drafts:
            self._drafts[options] = self.build.plan(
                self.listing, repack=options.repack, resplit=options.resplit
            )
        return self._drafts[options]

    def shards(self, options: Options, names: Iterable[str]) -> list[ShardPlan]:
        """The plan's shards of these names; a name that the plan lacks is left out."""
        wanted = set(names)
        return [shard for shard in self.draft(options).plan.shards if shard.name in wanted]

    @property
    def pool(self) -> Executor:
        """The workers that all batches share."""
        if self._pool is None:
            self._pool = self._workers.enter_context(open_pool(self.config.compute))
        return self._pool

    def workers(self) -> int:
        """How many workers a batch should keep busy; of a cluster, how many it has or may get.

        Raises ConfigError, WorkerError when a cluster is not to be had.
        """
        if self.config.compute.kind == "dask":
            return max(pool_size(self.pool), self.config.compute.workers or _MAY_GROW_TO)
        return worker_count(self.config.compute)

    @contextmanager
    def step(self, context: dg.OpExecutionContext | dg.AssetExecutionContext) -> Iterator[None]:
        """Wraps a step's work: a user's mistake is shown as its message alone, what may pass
        (storage that is away, a worker that died) is tried again after a while, and a step that
        failed or was cancelled ends the workers at once. Long work says how far it is."""
        try:
            self.build.progress = progress_lines(context)
            yield
        except (WdsPipelineError, OSError) as error:
            self._abort()
            if may_pass(error) and context.retry_number < _RETRIES:
                wait = _FIRST_WAIT * 2**context.retry_number * random.uniform(0.75, 1.25)
                context.log.warning(f"{error}\ntried again in {wait:.0f} s, for this may pass")
                raise dg.RetryRequested(_RETRIES, seconds_to_wait=wait) from error
            if isinstance(error, OSError):
                raise
            raise dg.Failure(description=str(error), allow_retries=False) from None
        except BaseException:
            self._abort()
            raise

    def _abort(self) -> None:
        self._pool = None
        self._workers.__exit__(*sys.exc_info())

    def close(self) -> None:
        """Ends the workers when they have done what they were given."""
        self._pool = None
        self._workers.close()


def session_resource(config: DatasetConfig) -> dg.ResourceDefinition:
    """The session as a resource: one for each run, or for each process of one."""

    @contextmanager
    def open_session(context: dg.InitResourceContext) -> Iterator[Session]:
        try:
            session = Session(compute.with_compute(config, getattr(context.resources, compute.KEY)))
        except ConfigError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        try:
            yield session
        finally:
            session.close()

    return dg.ResourceDefinition(
        open_session,
        description=f"The build of {config.name}, its workers and its plan.",
        required_resource_keys={compute.KEY},
    )


def session_resources(config: DatasetConfig) -> dict[str, dg.ResourceDefinition]:
    """What a job of the dataset needs: the session, and this run's choice of workers."""
    return {"session": session_resource(config), compute.KEY: compute.compute}
