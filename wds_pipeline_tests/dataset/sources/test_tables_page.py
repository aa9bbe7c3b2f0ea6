"""What docs/how-to/tables.md shows works as it is written there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from wds_pipeline_tests.conftest import group_members, read_tar
from wds_pipeline_tests.dataset.sources.web import serve

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "tables.md"
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)
_RUN = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (9, 8), (number, 80, 80)).save(data, "JPEG")
    return data.getvalue()


def test_the_page_runs(tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("an installed package has no pages beside it")
    text = PAGE.read_text()
    (tmp_path / "lake" / "images").mkdir(parents=True)
    (tmp_path / "datasets").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "lake" / "images" / f"{number:04d}.jpg").write_bytes(jpeg(number))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("WDS_PIPELINE_DATASETS", None)
    with serve() as web:
        web.files = {f"/{number}.jpg": jpeg(number) for number in (1, 2, 3)}
        for name, content in _FILE.findall(text):
            (tmp_path / name).write_text(content.replace("https://example.org", web.url))
        blocks = _RUN.findall(text)
        assert len(blocks) == 3
        for block in blocks:
            done = subprocess.run(
                ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True,
                text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            if "plan web" in block:
                assert "4 URLs are not fetched yet" in done.stdout
    found = {
        name: group_members(
            member
            for tar in sorted((tmp_path / "published" / name / "shards").glob("*.tar"))
            for member in read_tar(tar)
        )
        for name in ("captions", "web", "listed")
    }
    assert found["captions"]["cats/v1%2E2"] == {"cls": b"0", "jpg": jpeg(2), "txt": b"two cats"}
    assert sorted(found["web"]) == ["0001", "0002", "0003"]
    assert found["listed"]["cats/1"].keys() == {"jpg", "txt", "json"}
