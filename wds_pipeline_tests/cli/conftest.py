"""A configured dataset, and the command line on it: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from wds_pipeline.cli import main
from wds_pipeline_tests.conftest import Project

_ROOT = Path(__file__).parents[2]
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Cli:
    """`wds-pipeline`, in the project's folder."""

    project: Project

    @property
    def datasets(self) -> Path:
        return self.project.folder / "datasets"

    @property
    def environment(self) -> Mapping[str, str]:
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, "WDS_PIPELINE_DATASETS": str(self.datasets), "PYTHONPATH": path}

    def configure(self, name: str = "small", **more: Any) -> Path:
        """Writes the project's YAML file."""
        values = self.project.config(**more).model_dump(mode="json", exclude_unset=True)
        values["name"] = name
        if "split" in values:
            values["split"] = more["split"]
        self.datasets.mkdir(exist_ok=True)
        file = self.datasets / f"{name}.yaml"
        file.write_text(yaml.safe_dump(values))
        return file

    def __call__(self, *arguments: object, code: int = 0, **options: Any) -> Result:
        """Runs a command in this process."""
        try:
            runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg]  # click before 8.2
        except TypeError:
            runner = CliRunner()
        result = runner.invoke(
            main, [str(each) for each in arguments], env=dict(self.environment), **options
        )
        shown = f"{result.stdout}\n{result.stderr}"
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise AssertionError(shown) from result.exception
        assert result.exit_code == code, shown
        return result

    def json(self, *arguments: object, code: int = 0) -> Any:
        """Runs a command with `--json`; what is on stdout is one document."""
        command, *others = arguments
        return json.loads(self(command, "--json", *others, code=code).stdout)

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        """Starts a command in a process, and a process group, of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(
            [sys.executable, "-m", "wds_pipeline.cli", *map(str, arguments)],
            env=dict(self.environment),
            cwd=self.project.folder,
            text=True,
            start_new_session=True,
            **options,
        )


@pytest.fixture
def cli(project: Project) -> Cli:
    """The command line on a dataset of 20 samples, not yet built."""
    project.add(0, 20)
    cli = Cli(project)
    cli.configure()
    return cli


@pytest.fixture
def built(cli: Cli) -> Cli:
    """The command line on a published dataset."""
    cli.project.build()
    return cli
