"""The sensor that builds a dataset when its source changed: `sensor:` of its YAML.

A tick looks at the source for a few seconds; a large one is seen in several. What it then needs to
know is looked up where it is true: in the newest version, whether it was made of this source, and in the
run storage, whether that was tried. The cursor has only how far the pass has come, and since when the
source is as it is: to lose it costs a pass, never a change.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import takewhile
from typing import Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict, ValidationError

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_automation import SensorConfig
from wds_pipeline.dataset import samples, upstream, version
from wds_pipeline.dataset.build import Build
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.dataset.watch import Look, Seconds
from wds_pipeline.dataset.wording import clip, counted
from wds_pipeline.defs import keys, source_runs
from wds_pipeline.defs.source_runs import SensorRun
from wds_pipeline.errors import WdsPipelineError

_LONGEST = 30  # doublings of the wait between tries
# What a look counts.
_NOUNS = {"url": "file", "dataset": "sample"}
_OTHER_NOUN = "member"
_WIDTH = 120  # characters of a path in a message


class SourceTickError(dg.DagsterError):
    """A look that failed. Dagster shows the message of its own kind of errors alone, not that of
    a wrapper around them."""


class Cursor(BaseModel):
    """What one tick leaves to the next.

    `digest` is that of the last complete pass, `since` the time (seconds since 1970) of the first in a
    row that gave it; `settling` is whether a run is due when the source stays so.
    """

    model_config = ConfigDict(frozen=True)

    format_version: Literal[1] = 1
    under_way: Look | None = None
    digest: str = ""
    since: Seconds = 0
    settling: bool = False

    @classmethod
    def parse(cls, text: str | None) -> Cursor:
        """The cursor of the last tick, or an empty one: it may be of another release, or be edited."""
        try:
            return cls.model_validate_json(text or "")
        except ValidationError:
            return cls()


@dataclass(frozen=True)
class _Due:
    """A run to launch: why, and its key and tags."""

    why: str
    run_key: str
    tags: dict[str, str]


def build_source_sensor(config: DatasetConfig, job: dg.JobDefinition) -> dg.SensorDefinition | None:
    """The sensor of one dataset's source, which launches `job`; None if its file has no `sensor:`.

    It runs from the start, as a schedule does; switching it off in the UI holds.
    """
    wanted = config.sensor
    if wanted is None:
        return None

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor = Cursor.parse(context.cursor)
        try:
            result = _Tick(config, wanted, context.instance, cursor).run()
        except WdsPipelineError as error:
            # The cursor stays as it was: the next tick goes on from there.
            raise SourceTickError(str(error)) from None
        for request in result.run_requests or ():
            context.log.info(f"{request.tags[keys.WHY_TAG]}: {job.name} is launched")
        return result

    return dg.SensorDefinition(
        name=keys.source_sensor_name(config.name),
        job=job,
        evaluation_fn=evaluate,
        minimum_interval_seconds=wanted.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=_description(config, wanted),
        tags={keys.DATASET_TAG: config.name},
        metadata={
            "source": config.shown_url("source"),
            "settle_seconds": _settle_seconds(config, wanted),
            "tick_seconds": wanted.tick_seconds,
            "retries": wanted.retries,
            "retry_seconds": wanted.retry_seconds,
        },
    )


def _description(config: DatasetConfig, wanted: SensorConfig) -> str:
    looks = f"Looks every {wanted.interval_seconds} s"
    tells = "Each tick says what it found."
    if upstream.only(config):
        return (
            f"Builds {config.name} when a new version of {config.shown_url('source')} is published, or its "
            f"own configuration or transforms change. {looks}. {tells}"
        )
    what = (
        "files of its source were" if config.source.kind == "url" else "what its source lists was"
    )
    return (
        f"Builds {config.name} when {what} added, edited, deleted or renamed, or its configuration or "
        f"transforms changed, and the source has been still for {wanted.settle_seconds:g} s. "
        f"{looks}, for {wanted.tick_seconds:g} s at most; a larger source is looked at over several "
        f"ticks. {tells}"
    )


def _settle_seconds(config: DatasetConfig, wanted: SensorConfig) -> float:
    """How long the source has to be still: what is published is whole at once."""
    return 0.0 if upstream.only(config) else wanted.settle_seconds


class _Tick:
    """One evaluation of the sensor."""

    def __init__(
        self,
        config: DatasetConfig,
        wanted: SensorConfig,
        instance: dg.DagsterInstance,
        cursor: Cursor,
    ) -> None:
        self.config = config
        self.wanted = wanted
        self.instance = instance
        self.cursor = cursor
        self.settle = _settle_seconds(config, wanted)
        self.build = Build(config)
        self.look: Look

    def run(self) -> dg.SensorResult:
        """Looks at the source, and says what is to be done. Raises WdsPipelineError."""
        settle, now = self.settle, _now()
        busy = self._busy()
        if busy:
            return self._wait(busy)
        lacking = upstream.unpublished(self.config)
        if lacking:
            return self._wait(f"the first version of {' and '.join(lacking)} is waited for")
        # Earlier than `since` is a clock that was set back.
        if self.cursor.settling and self.cursor.since <= now < self.cursor.since + settle:
            return self._wait(f"the source changed; it is looked at again {self._when_settled()}")
        self.look = self.build.source.look(
            self.wanted.tick_seconds, self.cursor.under_way, now=_now
        )
        if not self.look.complete:
            self._remember(under_way=self.look)
            return self._wait(
                f"looking at the source since {_clock(self.look.began)}: "
                f"{counted(self.look.files, self._noun)} so far; the next tick goes on behind "
                f"{clip(self.look.reached, _WIDTH)}"
            )
        same = self.look.digest == self.cursor.digest
        since = min(self.cursor.since, self.look.began) if same else self.look.ended
        self._remember(under_way=None, digest=self.look.digest, since=since, settling=False)
        found = self._judge()
        if isinstance(found, str):
            return self._wait(found)
        if settle and self.look.began < since + settle:
            self._remember(settling=True)
            return self._wait(f"{found.why}; it is looked at again {self._when_settled()}")
        busy = self._busy()  # somebody may have started one during the look
        if busy:
            return self._wait(f"{found.why}; {busy}")
        request = dg.RunRequest(run_key=found.run_key, tags=found.tags)
        return dg.SensorResult(run_requests=[request], cursor=self.cursor.model_dump_json())

    def _remember(self, **changes: object) -> None:
        self.cursor = self.cursor.model_copy(update=changes)

    def _wait(self, reason: str) -> dg.SensorResult:
        text = f"{self.config.name}: {reason}"
        return dg.SensorResult(skip_reason=text, cursor=self.cursor.model_dump_json())

    def _busy(self) -> str | None:
        found = source_runs.under_way(self.instance, self.config.name, _now())
        return found and f"{found}; the source is looked at when it has ended"

    def _when_settled(self) -> str:
        return (
            f"when it has been still for {self.settle:g} s "
            f"(as far as seen, since {_clock(self.cursor.since)})"
        )

    def _judge(self) -> _Due | str:
        """What the complete look leads to: a run, or the reason why there is none."""
        newest, inputs = self.build.newest(), self.build.inputs(self.look.digest)
        after = str(newest.version if newest else 0)
        runs: list[SensorRun] = source_runs.finished(
            self.instance, self.config.name, _now(), limit=10 * (self.wanted.retries + 2)
        )
        held = newest is not None and self._holds(newest, inputs, runs)
        passing = sorted(samples.PASSING & newest.quarantined.keys()) if newest else []
        if newest and held and not passing:
            seen = counted(self.look.files, self._noun)
            return f"nothing changed since version {newest.version} ({seen})"
        if newest and not held and self._was_replaced_by_hand(newest, inputs):
            return (
                f"version {newest.version} was restored by hand from version {newest.restored_from}, "
                "and the source is as it was then; it is built at its next change"
            )
        tried = [
            *takewhile(lambda run: (run.inputs, run.after_version) == (inputs, after), runs),
        ]
        if newest and held:
            count = sum(newest.quarantined[reason] for reason in passing)
            why = (
                f"version {newest.version} lacks {counted(count, 'sample')} "
                f"({', '.join(passing)}), which may be readable now"
            )
            first = datetime.fromisoformat(newest.created).timestamp()
        else:
            why, first = self._changes(newest), 0.0
        refusal, why = self._tried(tried, why, first, held=held, passing=bool(passing))
        if refusal:
            return refusal
        last = runs[0].id if runs else "none"
        return _Due(
            why,
            run_key=f"{inputs}-after-{last}",
            tags={keys.SOURCE_TAG: inputs, keys.AFTER_VERSION_TAG: after, keys.WHY_TAG: why},
        )

    def _tried(
        self, tried: list[SensorRun], why: str, first: float, *, held: bool, passing: bool
    ) -> tuple[str | None, str]:
        """Why no run is launched for what runs were launched for before, and why one is.

        `first` is when the need for another try was known, if not by a run.
        """
        if not tried and not held:
            return None, why
        last = tried[0] if tried else None
        by_hand = "Launch the job by hand, or change the source"
        if last is not None:
            why = f"run {last.id} {last.outcome} ({why})"
            if last.awaits_retry:
                return f"{why}; Dagster tries it again", why
            if last.status == dg.DagsterRunStatus.CANCELED:
                return f"{why}; the next change is waited for. {by_hand}", why
            if last.status == dg.DagsterRunStatus.SUCCESS and not passing:
                return (
                    f"run {last.id} took in the source as it is and found nothing to publish; the "
                    "next change is waited for",
                    why,
                )
        retries = self.wanted.retries
        used = max(0, sum(not run.is_retry for run in tried) - (0 if held else 1))
        if used >= retries:
            return (
                f"{why}; tried again {used} of {retries} times (sensor.retries), the next change is "
                f"waited for. {by_hand}",
                why,
            )
        due = last.ended if last is not None else first
        due += self.wanted.retry_seconds * 2 ** min(used, _LONGEST)
        again = f"tried again ({used + 1} of {retries})"
        if _now() < due:
            return f"{why}; {again} at {_clock(due)}", why
        return None, f"{why}; {again}"

    def _holds(self, newest: Manifest, inputs: str, runs: list[SensorRun]) -> bool:
        """Whether the newest version was made of what the look saw.

        Where the files' contents decide, only a build can tell; so the last one's word is taken, unless
        another version was published after it.
        """
        if self.config.source.fingerprint == "stat":
            return self.build.made_of(newest, inputs)
        if not runs or runs[0].inputs != inputs or runs[0].status != dg.DagsterRunStatus.SUCCESS:
            return False
        published = datetime.fromisoformat(newest.created).timestamp()
        return published <= runs[0].ended or newest.restored_from is not None

    def _was_replaced_by_hand(self, newest: Manifest, inputs: str) -> bool:
        """Whether a user put an older version in the place of the one made of this source."""
        if newest.restored_from is None:
            return False
        before = version.try_read(self.build.destination, newest.parent)
        return before is not None and self.build.made_of(before, inputs)

    @property
    def _noun(self) -> str:
        return _NOUNS.get(self.config.source.kind, _OTHER_NOUN)

    def _changes(self, newest: Manifest | None) -> str:
        """What is new, as far as other datasets' manifests and counting files tell."""
        files = self.look.files
        if newest is None:
            return f"no version is published yet, the source has {counted(files, self._noun)}"
        news = upstream.news(self.config, newest)
        if news:
            return ", ".join(map(str, news))
        since = f"since version {newest.version}"
        if upstream.only(self.config):
            return f"the configuration or the transforms changed {since}"
        more = files - sum(newest.files.values())
        if more:
            noun = self._noun if abs(more) == 1 else f"{self._noun}s"
            return f"{more:+,} {noun} {since} (now {files:,})"
        return f"{self._noun}s were edited or renamed, or the configuration changed, {since}"


def _now() -> float:
    return time.time()


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
