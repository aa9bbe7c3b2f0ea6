"""The README and docs are true: their examples run, their links lead somewhere, config.md is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wds_pipeline import config_reference, demo
from wds_pipeline.config import DatasetConfig

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
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("WDS_PIPELINE_DATASETS", None)
    blocks = _RUN.findall((ROOT / "README.md").read_text())
    assert {language for language, _ in blocks} == {"bash", "python"}
    for language, code in blocks:
        lines = [line for line in code.splitlines() if not line.startswith("pip install")]
        command = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, "\n".join(lines)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_readme_yaml_is_a_valid_dataset() -> None:
    import yaml

    text = (ROOT / "README.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        DatasetConfig.model_validate(yaml.safe_load(example))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_names_commands_that_exist() -> None:
    from wds_pipeline.cli import main

    context_names = set(main.list_commands(None))  # type: ignore[arg-type]
    for command in re.findall(r"wds-pipeline ([a-z-]+)", (ROOT / "README.md").read_text()):
        assert command in context_names, command
