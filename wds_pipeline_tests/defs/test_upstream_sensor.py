"""Sensors of datasets that are made of others: an edit of a raw file goes through the chain, tick by tick."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import dagster as dg
import pytest

from wds_pipeline.dataset import freshness, publish, upstream
from wds_pipeline.dataset.build import Build, build
from wds_pipeline.defs import keys
from wds_pipeline.defs.source_sensor import SourceTickError
from wds_pipeline_tests.defs.chain import FOLLOWING, Chain

SENSOR = {"interval_seconds": 30, "settle_seconds": 0}


@dataclass
class Ticks:
    """The sensors of a chain; a run that one asks for is done at once."""

    chain: Chain
    cursors: dict[str, str | None] = field(default_factory=dict)
    text: str = ""

    def tick(self, name: str) -> bool:
        """Whether a run was launched; what the tick says is in `text`."""
        sensor = self.chain.defs.resolve_sensor_def(keys.source_sensor_name(name))
        context = dg.build_sensor_context(self.chain.instance, cursor=self.cursors.get(name))
        answer = sensor.evaluate_tick(context)
        self.cursors[name], self.text = answer.cursor, answer.skip_message or ""
        for request in answer.run_requests or ():
            self.text = request.tags[keys.WHY_TAG]
            tags = {"dagster/run_key": str(request.run_key), "dagster/sensor_name": sensor.name}
            job = self.chain.defs.resolve_job_def(keys.job_name(name))
            done = job.execute_in_process(
                instance=self.chain.instance, tags={**request.tags, **tags}, raise_on_error=False
            )
            assert done.success
        return bool(answer.run_requests)

    def built(self, name: str) -> list[str]:
        """Ticks once, which launches a run; the shards that are new in the version."""
        assert self.tick(name), self.text
        manifest = self.chain.latest(name)
        return [each.partition for each in manifest.shards if each.since == manifest.version]

    def quiet(self, name: str) -> str:
        for _ in range(2):
            assert not self.tick(name), self.text
        return self.text


@pytest.fixture
def ticks(chain: Chain) -> Ticks:
    for name, options in [*chain.datasets.items()]:
        more = {} if name == "raw" else {"sensor": {"interval_seconds": 30}}
        chain.add(**{**options, "sensor": SENSOR, **more})
    return Ticks(chain)


def test_an_edit_goes_through_the_chain(ticks: Ticks) -> None:
    chain = ticks.chain
    chain.add("last", {"dataset": "made"}, sensor={}, **FOLLOWING)
    assert ticks.quiet("made") == "made: the first version of raw is waited for"
    for name in ("raw", "made", "last"):
        assert len(ticks.built(name)) > 2
    assert ticks.quiet("made") == "made: nothing changed since version 1 (8 samples)"
    chain.raw.write("a/0003.txt", "another caption")
    assert "nothing changed" in ticks.quiet("last")
    (partition,) = ticks.built("raw")
    assert "nothing changed" in ticks.quiet("last")
    assert ticks.built("made") == [partition], "at the first tick: what is published is whole"
    assert ticks.text == "version 2 of raw was published (1 edited)"
    assert ticks.built("last") == [partition]
    assert ticks.text == "version 2 of made was published (1 edited)"
    assert chain.published("last")["a/0003"]["txt"] == b"ANOTHER CAPTION"
    for name in ("raw", "made", "last"):
        assert "nothing changed since version 2" in ticks.quiet(name)
    assert chain.badges() == {}


def test_what_a_tick_says(ticks: Ticks) -> None:
    chain = ticks.chain
    ticks.built("raw")
    assert len(ticks.built("made")) > 2
    assert ticks.text == "no version is published yet, the source has 8 samples"
    chain.raw.write("a/0003.txt", "another caption")
    build(chain.configs["raw"])
    chain.raw.add(20, 1)
    build(chain.configs["raw"])
    ticks.built("made")
    assert ticks.text == "versions 2 to 3 of raw were published (1 edited, 1 new)"
    chain.add(**{**chain.datasets["made"], "transforms": []})
    ticks.built("made")
    assert ticks.text == "the configuration or the transforms changed since version 2"
    chain.add(**{**chain.datasets["made"], "transforms": ["no_such_module:clean"]})
    with pytest.raises(SourceTickError, match="No module named 'no_such_module'"):
        ticks.tick("made")


def test_only_the_wanted_splits_count(ticks: Ticks) -> None:
    chain = ticks.chain
    made = {**chain.datasets["made"], "source": {"dataset": {"name": "raw", "splits": ["val"]}}}
    chain.add(**made)
    for name in ("raw", "made"):
        ticks.built(name)
    held = chain.published("made").keys()
    key = next(key for key in chain.raw.raw() if key not in held)
    chain.raw.write(f"{key}.txt", "of train")
    ticks.built("raw")
    assert "nothing changed since version 1" in ticks.quiet("made")
    assert upstream.news(chain.configs["made"], chain.latest("made")) == []
    chain.raw.write(f"{min(held)}.txt", "of val")
    ticks.built("raw")
    assert len(ticks.built("made")) == 1
    assert ticks.text == "version 3 of raw was published (1 edited)"


def test_how_long_a_version_has_been_waiting(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the check `fresh`."""
    chain, start = ticks.chain, datetime(2024, 5, 1, tzinfo=timezone.utc)
    stamp = publish.stamp

    def built(name: str, hours: int) -> None:
        created = (start + timedelta(hours=hours)).isoformat()
        monkeypatch.setattr(publish, "stamp", lambda: {**stamp(), "created": created})
        build(chain.configs[name])

    built("raw", 0)
    built("made", 1)
    work = Build(chain.configs["made"])
    found = freshness.look(work, work.scan())
    assert found is not None
    assert found.since is None
    for hours in (5, 7):
        chain.raw.write("a/0003.txt", f"the caption of {hours}")
        built("raw", hours)
    work = Build(chain.configs["made"])
    found = freshness.look(work, work.scan(), start + timedelta(hours=9))
    assert found is not None
    assert (found.added, found.edited, found.deleted) == (0, 1, 0)
    assert found.lag == timedelta(hours=4)
