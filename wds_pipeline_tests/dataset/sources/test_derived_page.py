"""What docs/how-to/derived.md shows works as it is written there."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from wds_pipeline.cli.main import main
from wds_pipeline.dataset import version
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.dataset.foreign_tars import make

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "derived.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)
_RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)
_CAPTIONS = """
name: captions
source: {url: ../raw}
destination: {url: ../published/captions}
split: {train: 0.8, val: 0.2}
"""


@pytest.mark.skipif(not PAGE.exists(), reason="an installed package has no pages beside it")
def test_what_the_page_shows_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in _FILE.findall(PAGE.read_text()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "datasets/captions.yaml").write_text(_CAPTIONS)
    (tmp_path / "raw").mkdir()
    for number in range(20):
        picture = io.BytesIO()
        Image.new("RGB", (50 + number, 8), (number, 9, 9)).save(picture, "JPEG")
        (tmp_path / f"raw/{number:04d}.jpg").write_bytes(picture.getvalue())
        (tmp_path / f"raw/{number:04d}.txt").write_text(f"caption {number}")
    (tmp_path / "tars").mkdir()
    for number in range(2):
        (tmp_path / f"tars/web-{number:04d}.tar").write_bytes(make([(f"{number}.txt", b"text")]))
    (tmp_path / "notes.jsonl").write_text('{"id": "a", "note": "a note"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WDS_PIPELINE_DATASETS", raising=False)
    commands = [line for block in _RUN.findall(PAGE.read_text()) for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        done = CliRunner().invoke(main, command.split()[1:])
        assert done.exit_code == 0, done.output
    samples = {
        name: version.read(open_storage(f"published/{name}"), None, name).total_samples
        for name in ("large", "shuffled", "all")
    }
    assert samples == {"large": 6, "shuffled": 20, "all": 9}
