"""The code location: what it holds, and what it says of a configuration that is no good."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from wds_pipeline.config import DatasetConfig
from wds_pipeline.config_file import load_config
from wds_pipeline.defs import keys
from wds_pipeline.defs.location import build_defs
from wds_pipeline.errors import ConfigError
from wds_pipeline_tests.conftest import Project

ROOT = Path(__file__).parent.parent.parent


def config(name: str, **more: Any) -> DatasetConfig:
    values = {"source": {"url": f"/raw/{name}"}, "destination": {"url": f"/out/{name}"}, **more}
    return DatasetConfig.model_validate({"name": name, **values})


def test_several_datasets_side_by_side() -> None:
    defs = build_defs([config("one"), config("two", schedule="0 3 * * *")])
    graph = defs.resolve_asset_graph()
    for name in ("one", "two"):
        group = {key for key in graph.get_all_asset_keys() if graph.get(key).group_name == name}
        assert {key.path[-1] for key in group} == {
            keys.SOURCE_FILES,
            keys.SHARD_PLAN,
            keys.SHARDS,
            keys.SHARD_INDEX,
            keys.SHARD_REPORT,
            keys.PUBLISHED_VERSION,
        }
        assert all(graph.get(key).description and graph.get(key).kinds for key in group)
        assert graph.get(keys.asset_key(name, keys.SHARDS)).backfill_policy == (
            dg.BackfillPolicy.single_run()
        )
        assert defs.resolve_job_def(f"{name}_build").tags[keys.DATASET_TAG] == name


def test_no_dataset() -> None:
    with pytest.raises(ConfigError, match="no dataset; expected YAML files there"):
        build_defs({})


def write(project: Project, **more: Any) -> Path:
    """The project's YAML; returns its folder."""
    folder = project.folder / "datasets"
    folder.mkdir(exist_ok=True)
    values = {**project.config().written, **more}
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    return folder


def dagster(project: Project, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Dagster's command line as a user does."""
    home = project.folder / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    return subprocess.run(
        [sys.executable, "-m", "dagster", *command, "-m", "wds_pipeline.definitions"],
        env={
            **os.environ,
            "DAGSTER_HOME": str(home),
            "WDS_PIPELINE_DATASETS": str(folder),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=project.folder,
        timeout=120,
    )


def test_validate(project: Project) -> None:
    done = dagster(project, write(project), "definitions", "validate")
    assert done.returncode == 0, done.stderr


def test_broken_configuration(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_PIPELINE_DATASETS", str(write(project, sorce={"url": "raw"})))
    with pytest.raises(ConfigError, match=r"small\.yaml:[0-9]+: sorce: unknown key; did you mean"):
        runpy.run_module("wds_pipeline.definitions")


def test_no_folder_of_datasets(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WDS_PIPELINE_DATASETS", str(project.folder / "none"))
    with pytest.raises(ConfigError, match=f"{project.folder / 'none'}: no such folder"):
        runpy.run_module("wds_pipeline.definitions")


def test_job_execute(project: Project) -> None:
    """The whole pipeline by one command, with worker processes; and when it fails."""
    project.options["compute"] = {"kind": "processes", "workers": 2}
    project.add(0, 30)
    folder = write(project)
    done = dagster(project, folder, "job", "execute", "-j", "small_build")
    assert done.returncode == 0, done.stderr
    assert "small, version 1 of " in done.stdout
    assert "webdataset.WebDataset(" in done.stdout
    assert "plan: " in done.stderr
    assert project.published() == project.raw()

    project.source.rename(project.folder / "elsewhere")
    done = dagster(project, folder, "job", "execute", "-j", "small_build")
    assert done.returncode != 0
    assert f"scan: small: source.url: {project.source}/: found nothing" in done.stderr, done
    assert "Traceback" not in done.stderr
    assert "Stack Trace" not in done.stderr


def test_beside_a_users_own_definitions() -> None:
    @dg.asset
    def theirs() -> None: ...

    yours = dg.Definitions(assets=[theirs], executor=dg.multiprocess_executor)
    whole = dg.Definitions.merge(build_defs([config("one")], executor=None), yours)
    assert dg.AssetKey("theirs") in whole.resolve_asset_graph().get_all_asset_keys()
    assert whole.executor is dg.multiprocess_executor


@pytest.mark.parametrize(
    "source",
    [
        "url: '/raw/${WORD}'",
        "shards: '/raw/${WORD}'",
        "shards: ['/raw/${WORD}', '/raw/b.tar']",
        "table: {url: '/raw/${WORD}', fields: {txt: caption}}",
        "recipe: '/raw/${WORD}'",
        "dataset: {url: '/raw/${WORD}'}",
    ],
)
def test_a_secret_in_a_url_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    monkeypatch.setenv("WORD", "hunter2")
    file = tmp_path / "one.yaml"
    file.write_text(
        f"name: one\nsource: {{{source}}}\n"
        "destination: {url: '/out/${WORD}'}\n"
        "sensor: {}\nschedule: '@daily'\n"
    )
    loaded = load_config(file)
    assert "/raw/hunter2" in loaded.source_url
    defs = build_defs([loaded])
    shown = [str(job.metadata) + str(job.description) for job in defs.jobs or []]
    shown += [str(vars(each)) for each in (*(defs.sensors or []), *(defs.schedules or []))]
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        shown.append(str(graph.get(key).description) + str(graph.get(key).metadata))
    assert "/raw/${WORD}" in "".join(shown)
    assert not any("hunter2" in each for each in shown)
