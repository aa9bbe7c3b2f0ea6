"""The page about overlays is true: its dataset is built, its examples run."""

from __future__ import annotations

import io
import re
from itertools import groupby
from pathlib import Path

import pytest
import yaml
from PIL import Image

from wds_pipeline.config import DatasetConfig
from wds_pipeline_tests.test_docs import _RUN, ROOT, _run

PAGE = ROOT / "docs" / "how-to" / "overlays.md"
_YAML = re.compile(r"```yaml\n# (datasets/\w+\.yaml)\n(.*?)```", re.DOTALL)


def test_examples_run(tmp_path: Path) -> None:
    if not PAGE.exists():
        pytest.skip("an installed package has no pages beside it")
    text = PAGE.read_text().replace("/data/", f"{tmp_path}/")
    files = dict(_YAML.findall(text))
    for content in files.values():
        DatasetConfig.model_validate(yaml.safe_load(content))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "recaptions.yaml").write_text(files["datasets/recaptions.yaml"])
    (tmp_path / "datasets" / "captions.yaml").write_text(
        f"name: captions\nsource: {{url: {tmp_path}/raw}}\n"
        f"destination: {{url: {tmp_path}/published/captions}}\nsplit: {{train: 0.8, val: 0.2}}\n"
    )
    for number in range(30):
        key, picture = f"cats/{number:04d}", io.BytesIO()
        Image.new("RGB", (16 + number, 16), (4 * number, 9, 9)).save(picture, "JPEG")
        for name, data in ((f"raw/{key}.jpg", picture.getvalue()), (f"raw/{key}.txt", b"old"),
                           (f"new_captions/{key}.txt", b"new")):  # fmt: skip
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    blocks = _RUN.findall(text)
    assert [language for language, _ in blocks].count("python") == text.count("```python\n")
    _run("bash", "wds-pipeline build captions", tmp_path)
    for language, some in groupby(blocks, key=lambda block: block[0]):
        code = "\n".join(code for _, code in some)
        if language == "python":
            code += "\nassert sample['txt'] == 'new'"
        _run(language, code, tmp_path)
