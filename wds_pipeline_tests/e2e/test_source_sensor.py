"""The sensors of `watched` and `copied`: one run for any set of changes, through crashes of the daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from wds_pipeline.dataset import seal
from wds_pipeline.dataset.version import Manifest
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.e2e.client import ENDED, Client, Run
from wds_pipeline_tests.e2e.conftest import Site
from wds_pipeline_tests.e2e.server import wait_for

# Deadlines within are shorter, and say more: this is for a machine that is busy with other things.
pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(900)]


def builds(client: Client, name: str) -> list[Run]:
    """The dataset's builds, newest first; those that Dagster started again because they died, too."""
    return [run for run in client.runs({}) if run.job == f"{name}_build"]


def ticks_since(client: Client, name: str, start: float) -> list[str]:
    """What became of the later ticks of the dataset's sensor, newest first."""
    ticks = [tick for tick in client.ticks(f"{name}_source_sensor") if tick["timestamp"] > start]
    return [tick["status"] for tick in ticks if tick["status"] != "STARTED"]


def newest_tick(client: Client, name: str) -> float:
    return max((tick["timestamp"] for tick in client.ticks(f"{name}_source_sensor")), default=0.0)


@dataclass
class Watched:
    """A dataset with a sensor, as it is before a test changes its source."""

    site: Site
    project: Project
    name: str
    before: Manifest = field(init=False)
    runs: list[Run] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.project.latest()
        self.runs = builds(self.site.client, self.name)

    def new_runs(self) -> list[Run]:
        return [run for run in builds(self.site.client, self.name) if run not in self.runs]

    def partitions_of(self, keys: set[str]) -> set[str]:
        """The partitions whose shards hold these samples now."""
        index = partial(seal.read_member_index, self.project.storage)
        return {
            shard.partition
            for shard in self.project.latest().shards
            if keys & set(index(shard.name)["key"].to_pylist())
        }

    def wait_for_next(self) -> set[str]:
        """Waits for the next version, and for the sensor to find nothing more to do; returns the
        partitions that are new in it."""
        number = self.before.version + 1
        wait_for_version(self.site, self.name, number)
        client = self.site.client
        start = newest_tick(client, self.name)
        # A change is seen by one tick, and built by the next.
        wait_for("idle ticks", lambda: len(ticks_since(client, self.name, start)) >= 2)
        assert set(ticks_since(client, self.name, start)) == {"SKIPPED"}
        manifest = self.project.latest()
        assert manifest.version == number
        assert self.project.published() == self.project.raw()
        return {shard.partition for shard in manifest.shards if shard.since == number}


def wait_for_version(site: Site, name: str, number: int) -> None:
    """Waits until the version is published, and the runs have ended."""
    manifest = site.projects[name].destination / f"versions/{number:08d}/manifest.json"
    wait_for(f"version {number} of {name}", manifest.is_file)
    wait_for("the end", lambda: all(run.status in ENDED for run in builds(site.client, name)))


@pytest.fixture
def watched(site: Site) -> Watched:
    """Whose first version the sensor has built."""
    wait_for_version(site, "watched", 1)
    return Watched(site, site.projects["watched"], "watched")


@pytest.fixture
def copied(site: Site) -> Watched:
    """Another one."""
    wait_for_version(site, "copied", 1)
    return Watched(site, site.projects["copied"], "copied")


@contextmanager
def being_written(project: Project) -> Iterator[None]:
    """A file that a slow copy is writing to."""
    done = threading.Event()

    def copy() -> None:
        with (project.source / "a/9000.txt").open("ab", buffering=0) as file:
            while not done.wait(0.2):
                file.write(b"more ")

    project.add(9000, 1)
    writer = threading.Thread(target=copy)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def test_the_first_version_is_one_run(watched: Watched) -> None:
    assert [run.status for run in watched.runs] == ["SUCCESS"]
    assert watched.before.version == 1
    assert watched.project.published() == watched.project.raw()


def test_scattered_changes_are_one_run(watched: Watched, client: Client) -> None:
    project, files = watched.project, watched.project.shard_files()
    edited, deleted, renamed = "a/0003", "a/0017", "a/0031"
    touched = watched.partitions_of({edited, deleted, renamed})
    assert 1 < len(touched) < len(watched.before.shards)
    project.write(f"{edited}.txt", "another caption")
    for path in project.source.glob(f"{deleted}.*"):
        path.unlink()
    for path in project.source.glob(f"{renamed}.*"):
        path.rename(path.with_name(path.name.replace("0031", "0131")))
    project.add(40, 2, folder="b")

    changed = watched.wait_for_next()
    assert changed == touched | watched.partitions_of({"a/0131", "b/0040", "b/0041"})
    (run,) = watched.new_runs()
    assert run.status == "SUCCESS"
    assert client.built_by(run.id, "watched/shards") == sorted(changed)
    kept = {shard.name for shard in watched.before.shards if shard.partition not in changed}
    now = project.shard_files()
    rewritten = [name for name in files if now.get(name) != files[name]]
    assert kept.isdisjoint(name.partition(".")[0] for name in rewritten)
    ticks = client.ticks("watched_source_sensor")
    assert all(tick["skipReason"] for tick in ticks if tick["status"] == "SKIPPED")


def test_the_daemon_dies(watched: Watched, copied: Watched, client: Client) -> None:
    """While one dataset is built and another's source is still written to."""
    server = watched.site.server
    with being_written(copied.project):
        start = newest_tick(client, "copied")
        watched.project.write("a/0005.txt", "a caption while the daemon dies")
        wait_for("ticks", lambda: len(ticks_since(client, "copied", start)) >= 2)
        wait_for("the run", lambda: {"STARTED"} & {run.status for run in watched.new_runs()})
        server.kill_daemon()
        assert set(ticks_since(client, "copied", start)) == {"SKIPPED"}
    server.start_daemon()
    assert watched.wait_for_next() == watched.partitions_of({"a/0005"})
    assert copied.wait_for_next() == copied.partitions_of({"a/9000"})
    assert [run.status for run in watched.new_runs()] == ["SUCCESS"]
    assert [run.status for run in copied.new_runs()] == ["SUCCESS"]


def test_the_machine_dies_during_a_build(watched: Watched) -> None:
    """Run monitoring finds that the run is dead, and Dagster starts it again."""
    watched.project.write("a/0006.txt", "a caption while the machine dies")
    wait_for(
        "the run", lambda: {"STARTED"} & {run.status for run in watched.new_runs()}, every=0.05
    )
    watched.site.server.kill_daemon(with_its_runs=True)
    watched.site.server.start_daemon()
    assert watched.wait_for_next() == watched.partitions_of({"a/0006"})
    assert sorted(run.status for run in watched.new_runs()) == ["FAILURE", "SUCCESS"]
