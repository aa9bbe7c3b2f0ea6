"""A run that is cancelled in the middle of packing: its workers end, and nothing is half sealed."""

from __future__ import annotations

from pathlib import Path

import pytest

from wds_pipeline.dataset import seal
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.e2e.client import ENDED, Client
from wds_pipeline_tests.e2e.conftest import Site
from wds_pipeline_tests.e2e.server import wait_for

# Deadlines within are shorter, and say more: this is for a machine that is busy with other things.
pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(900)]

SAMPLES = 400  # a shard each
WORKERS = "multiprocessing.forkserver"  # in the command line of a run's workers
WHOLE = {seal.TAR, seal.MEMBERS, seal.SEAL}


def sealed(project: Project) -> set[str]:
    """The names of the shards that have a seal."""
    folder: Path = project.destination / seal.FOLDER
    return {path.name.removesuffix(seal.SEAL) for path in folder.glob(f"*{seal.SEAL}")}


def test_a_cancelled_run_leaves_whole_shards_and_no_workers(site: Site, client: Client) -> None:
    project = site.projects["wide"]
    for number in range(SAMPLES):
        project.write(f"{number:05d}.txt", f"text {number}")
    run = client.launch("wide_build")
    wait_for("shards", lambda: len(sealed(project)) > 4, every=0.05)
    assert site.server.processes(WORKERS)
    client.terminate(run)
    wait_for("the end of the run", lambda: client.status(run) in ENDED)
    client.wait_for_run(run, "CANCELED")
    wait_for("the end of the workers", lambda: not site.server.processes(WORKERS))

    assert project.stray() == []
    done = sealed(project)
    assert 4 < len(done) < SAMPLES
    files = project.shard_files()
    for name in done:
        assert {f"{name}{each}" for each in WHOLE} <= files.keys()
        stored = seal.read_seal(project.storage, name)
        assert stored is not None
        assert stored.bytes == files[f"{name}{seal.TAR}"][1]

    again = client.launch("wide_build")
    client.wait_for_run(again)
    assert project.latest().version == 1
    assert len(project.latest().shards) == SAMPLES
    now = project.shard_files()
    assert {name for name in done if now[name + seal.TAR] != files[name + seal.TAR]} == set()
    assert len(client.built_by(again, "wide/shards")) == SAMPLES
