"""init: the file that it writes loads, plans, and never replaces another by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wds_pipeline.config_file import load_config
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.conftest import Project


@pytest.fixture
def fresh(project: Project, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A folder of raw files and nothing else; it is the working directory."""
    project.add(0, 20)
    monkeypatch.chdir(project.folder)
    return Cli(project)


def test_from_a_folder_to_a_version(fresh: Cli) -> None:
    text = fresh("init", "raw", "published", "--name", "small").stdout
    assert "20 samples" in text
    assert "next: wds-pipeline plan small" in text
    written = (fresh.datasets / "small.yaml").read_text()
    assert "source: {url: ../raw}" in written
    assert "destination: {url: ../published}" in written
    assert not fresh.project.destination.exists()
    assert fresh.json("plan", "small")["samples"] == 20
    assert fresh.json("build", "small")["status"] == "published"


def test_nothing_is_replaced_without_force(fresh: Cli) -> None:
    fresh("init", "raw", "published")
    file = fresh.datasets / "raw.yaml"
    file.write_text(file.read_text() + "description: mine\n")
    assert "--force" in fresh("init", "raw", "published", code=2).stderr
    assert "mine" in file.read_text()
    fresh("init", "raw", "published", "--force")
    assert "mine" not in file.read_text()
    assert [path.name for path in fresh.datasets.iterdir()] == ["raw.yaml"]


def test_another_place_for_the_file(fresh: Cli) -> None:
    text = fresh("init", "raw", "published", "--output", "elsewhere/deep/x.yaml").stdout
    assert "next: WDS_PIPELINE_DATASETS=elsewhere/deep wds-pipeline plan raw" in text
    config = load_config(Path("elsewhere/deep/x.yaml"))
    assert config.source_url == str(fresh.project.source)


def test_absolute_paths_stay_absolute(fresh: Cli) -> None:
    values = fresh.json("init", fresh.project.source, fresh.project.destination)
    assert values["config"]["source"]["url"] == str(fresh.project.source)
    assert fresh.json("plan", "raw")["samples"] == values["samples"] == 20


@pytest.mark.parametrize("name", ["Fotos (neu) 2024", "ünï {1} # \"'", "2024", "a: b", "yes", "-x"])
def test_odd_names_of_folders(fresh: Cli, name: str) -> None:
    fresh.project.source.rename(name)
    found = fresh.json("init", "--name", "odd", "--", name, f"out of {name}".replace("{1}", "1"))
    assert load_config(Path(found["file"])).source_url == str(fresh.project.folder / name)
    assert fresh.json("plan", "odd")["samples"] == 20


def test_names_are_made_from_folders(fresh: Cli) -> None:
    fresh.project.source.rename("2024 Fotos (neu)")
    assert fresh.json("init", "2024 Fotos (neu)", "out")["name"] == "data_2024_fotos_neu"
    assert "--name" in fresh("init", "/", "out", code=2).stderr
    assert "lower-case" in fresh("init", ".", "../out", "--name", "Foo", code=2).stderr


def test_what_cannot_work_is_told_before_the_scan(
    fresh: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "found nothing" in fresh("init", "nowhere", "out", code=1).stderr
    assert "outside of the source" in fresh("init", "raw", "raw/out", code=2).stderr
    assert "nosuch://" in fresh("init", "raw", "nosuch://bucket/x", code=2).stderr
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no credentials" in fresh("init", "raw", "s3://bucket/x", code=1).stderr
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    assert "other files" in fresh("init", "raw", "full", code=1).stderr
    fresh("init", "raw", "published")
    assert "'raw' already" in fresh("init", "raw", "published", "--name", "b", code=2).stderr
    elsewhere = ("init", "raw", "other", "--output", "datasets/b.yaml")
    assert "choose --name" in fresh(*elsewhere, code=2).stderr
    assert [path.name for path in fresh.datasets.iterdir()] == ["raw.yaml"]
