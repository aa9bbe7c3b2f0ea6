"""Every command of the page on tars runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wds_pipeline.training import open_dataset
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars.archives import keys, samples

_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "tars.md"
_RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


def _prepare(cli: Cli) -> Path:
    """What the page names."""
    folder = cli.project.folder
    for tar in range(4):
        members = []
        for number in range(8 * tar, 8 * tar + 8):
            key = f"{'cats' if number % 2 else 'dogs'}/{number:04d}"
            facts = b'{"size": {"width": %d}}' % (number * 7 % 32)
            members += [(f"{key}.jpg", b"j"), (f"{key}.json", facts), (f"{key}.txt", b"a cat")]
        (folder / f"cc3m-{tar:04d}.tar").write_bytes(make(members))
    unsorted = [("b.jpg", b""), ("a.jpg", b""), ("b.txt", b""), ("a.txt", b"")]
    (folder / "unsorted.tar").write_bytes(make(unsorted))
    (folder / "keys.txt").write_text("cats/0001\ndogs/0002\n")
    code = 'def clean(sample, language):\n    sample["txt"] = language\n    return sample\n'
    (folder / "my_captions.py").write_text(code)
    (cli.datasets / "small.yaml").unlink()
    cli.configure("captions")
    cli("build", "captions")
    cli.project.write("a/0003.txt", "another caption")
    cli("build", "captions")
    return folder


def test_its_commands_run(cli: Cli) -> None:
    if not _PAGE.exists():
        pytest.skip("an installed package has no pages beside it")
    text = _PAGE.read_text()
    blocks = _RUN.findall(text)
    assert len(blocks) == text.count("```bash\n")
    folder = _prepare(cli)
    environment = dict(cli.environment)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] += f"{os.pathsep}{folder}"
    done = subprocess.run(
        ["bash", "-ec", "set -o pipefail\n" + "\n".join(blocks)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    whole = samples(folder / "all.tar")
    assert len(whole) == 32
    assert keys(samples(folder / "mended.tar")) == ["a", "b"]
    assert keys(samples(folder / "some.tar")) == ["cats/0001", "dogs/0002"]
    assert dict(samples(folder / "clean.tar")[0][1])["txt"] == b"en"
    assert dict(samples(folder / "upper.tar")[0][1])["upper"] == b"A CAT"
    assert sorted(samples(*folder.glob("piped-*.tar"))) == sorted(whole)
    assert len(open_dataset(str(folder / "published-elsewhere"), version=1, split="train")) == 20
