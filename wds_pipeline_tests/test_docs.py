"""The README and docs are true: their examples run, their links lead somewhere, config.md is current."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from itertools import groupby
from pathlib import Path

import pytest
from PIL import Image

from wds_pipeline import config_reference, demo
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.tar_indexing import index_tars
from wds_pipeline.transforms.registry import load
from wds_pipeline_tests.conftest import Project

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_RUN = re.compile(r"<!-- run -->\n```(bash|python)\n(.*?)```", re.DOTALL)


def test_config_page_is_what_the_program_says() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == config_reference.render()


def test_readme_examples_run(tmp_path: Path) -> None:
    if not (ROOT / "README.md").exists():
        pytest.skip("an installed package has no README beside it")
    demo.generate(tmp_path / "all", samples=200)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("coast", "forest"):  # the README's reader has well-formed files
        (photos / name).mkdir()
        for path in (tmp_path / "all" / name).glob(f"{name}-0*.jpg"):
            for end in (".jpg", ".txt", ".json"):
                target = photos / name / path.with_suffix(end).name
                target.write_bytes(path.with_suffix(end).read_bytes())
    blocks = _RUN.findall((ROOT / "README.md").read_text())
    assert {language for language, _ in blocks} == {"bash", "python"}
    for language, code in blocks:
        lines = [line for line in code.splitlines() if not line.startswith("pip install")]
        _run(language, "\n".join(lines), tmp_path)


def _run(language: str, code: str, folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("WDS_PIPELINE_DATASETS", None)
    command = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


# What the pages of training name, and what is there in its place: as many samples as a test has time for.
_INSTEAD = {
    "/data/published/": "",
    "s3://published/": "",
    "/data/cc3m": "cc3m",
    "/scratch/": "",
    "0575": "0002",
    "version=7": "version=1",
    "12345": "12",
    "10:20": "1:3",
    "num_workers=8": "num_workers=2",
    "stream.epoch, 10": "stream.epoch, 2",
    "--threads 8": "--threads 2 --seconds 0.5",
}


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `_INSTEAD` names. Not to be changed."""
    folder = tmp_path_factory.mktemp("docs")
    project = Project(folder, {"destination": {"url": str(folder / "captions")}})
    names = ["jpg", "seg.png", "txt", "cls", "json", "bin", "mask.png"]
    for number in range(60):
        key, picture, mask = f"cats/{number:04d}", io.BytesIO(), io.BytesIO()
        Image.new("RGB", (480 + number, 64), (4 * number, 9, 9)).save(picture, "JPEG")
        Image.new("P", (8, 8), number).save(mask, "PNG")
        found: list[bytes | str] = [
            picture.getvalue(),
            mask.getvalue(),
            f"caption {number}",
            str(number % 3),
            "{}",
        ]
        found += [bytes([number]), *([mask.getvalue()] if number % 7 == 0 else [])]
        for name, data in zip(names, found, strict=False):
            project.write(f"{key}.{name}", data)
    samples = {"required": ["jpg", "txt"], "fields": {name: [name] for name in names}}
    assert project.build(samples=samples, split={"train": 0.8, "val": 0.2}).status == "published"
    for name in ("photos", "art"):
        shutil.copytree(folder / "captions", folder / name)
    (folder / "cc3m").mkdir()
    for number in range(3):
        with tarfile.open(folder / "cc3m" / f"cc3m-{number:04d}.tar", "w") as tar:
            tar.add(project.source / "cats" / f"{number:04d}.txt", f"{number:04d}.txt")
    index_tars([str(folder / "cc3m")])
    return folder


@pytest.mark.parametrize("page", ["training", "streaming", "decoding"])
def test_examples_of_training_run(page: str, trained_on: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    path = ROOT / "docs" / "how-to" / f"{page}.md"
    if not path.exists():
        pytest.skip("an installed package has no pages beside it")
    text = path.read_text()
    blocks = _RUN.findall(text)
    assert [language for language, _ in blocks].count("python") == text.count("```python\n")
    work = tmp_path / "work"
    shutil.copytree(trained_on, work)
    for language, some in groupby(blocks, key=lambda block: block[0]):
        code = "\n".join(code for _, code in some)  # Python's go on where the last one left off
        for named, instead in _INSTEAD.items():
            code = code.replace(named, instead)
        _run(language, code, work)


def test_readme_yaml_is_a_valid_dataset() -> None:
    import yaml

    text = (ROOT / "README.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        config = DatasetConfig.model_validate(yaml.safe_load(example))
        built_in = [each for each in config.transforms if ":" not in each.name]
        assert len(load(built_in, "README.md")) == len(built_in)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_commands_that_exist() -> None:
    from wds_pipeline.cli import main

    context_names = set(main.list_commands(None))  # type: ignore[arg-type]
    for command in re.findall(r"wds-pipeline ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert command in context_names, command
