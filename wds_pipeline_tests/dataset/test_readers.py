"""Those who read the shards: GNU tar, webdataset, Hugging Face datasets. All find the same samples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import webdataset

from wds_pipeline import demo
from wds_pipeline.dataset import version, view
from wds_pipeline_tests.conftest import Project, Sample

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files open
SAMPLES = {
    "required": ["jpg", "txt", "json"],
    "fields": {"jpg": ["jpg", "jpeg", "png", "webp"], "txt": ["txt"], "json": ["json"]},
    "max_quarantined": 1,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The demo with all its awkward names, in two splits of several shards."""
    project = Project(tmp_path_factory.mktemp("readers"))
    demo.generate(project.source, 60)
    project.build(samples=SAMPLES, split={"train": 0.8, "val": 0.2}, shards={"max_bytes": "60kB"})
    assert all(split.shards > 1 for split in project.latest().splits.values())
    return project


def paths(project: Project, split: str) -> list[str]:
    return [project.storage.locate(shard.path) for shard in project.latest().of_split(split)]


def expected(project: Project, split: str) -> Sample:
    """What the version's ledger says of a split, with the bytes of the source."""
    storage, manifest = project.storage, project.latest()
    ledger = version.read_table(storage, manifest, version.LEDGER).to_pylist()
    keys = {row["key"] for row in ledger if row["split"] == split}
    inventory = version.read_table(storage, manifest, version.INVENTORY).to_pylist()
    found: Sample = {key: {} for key in keys}
    for row in inventory:
        if row["key"] in keys and row["status"] == "ok":
            found[row["key"]][row["field"]] = (project.source / row["path"]).read_bytes()
    assert len(keys) == manifest.splits[split].samples
    assert all(set(sample) == {"jpg", "txt", "json"} for sample in found.values())
    return found


def by_webdataset(urls: str | list[str]) -> Sample:
    found: Sample = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=True):
        key = sample["__key__"]
        assert key not in found, "a key came back: a sample was split"
        found[key] = {k: v for k, v in sample.items() if not k.startswith("__")}
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_by_a_list(published: Project, split: str) -> None:
    assert by_webdataset(paths(published, split)) == expected(published, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_by_braces(published: Project, split: str) -> None:
    pattern = view.patterns(published.storage, published.latest())[split]
    assert "{000000.." in pattern
    assert by_webdataset(pattern) == expected(published, split)


def test_webdataset_by_braces_of_one_shard(project: Project) -> None:
    project.add(0, 2)
    project.build()
    (pattern,) = view.patterns(project.storage, project.latest()).values()
    assert by_webdataset(pattern) == project.raw()


def test_webdataset_decodes(published: Project) -> None:
    data = webdataset.WebDataset(paths(published, "train"), shardshuffle=False).decode("pil")
    count = 0
    for sample in data:
        assert sample["jpg"].size[0] > 0
        assert isinstance(sample["txt"], str)
        assert isinstance(sample["json"], dict)
        count += 1
    assert count == published.latest().splits["train"].samples


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("split", ["train", "val"])
def test_gnu_tar(published: Project, split: str, tmp_path: Path) -> None:
    names: list[str] = []
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    for path in paths(published, split):
        for arguments in (
            ["tf", path, "--quoting-style=literal"],
            ["xf", path, "-C", str(tmp_path)],
        ):
            done = subprocess.run(["tar", *arguments], capture_output=True, check=True, env=env)
            assert done.stderr == b""
            names += done.stdout.decode().splitlines()
    wanted = {
        f"{k}.{f}": data for k, s in expected(published, split).items() for f, data in s.items()
    }
    assert sorted(names) == sorted(wanted)
    unpacked = {
        str(path.relative_to(tmp_path)): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert unpacked == wanted


HUGGING_FACE = """
import hashlib, json, sys
from datasets import Features, Value, load_dataset
files, cache = json.loads(sys.argv[1]), sys.argv[2]
data = load_dataset("webdataset", data_files=files, streaming=True, cache_dir=cache)
found = {}
for split in data:
    part = data[split].decode(False) if hasattr(data[split], "decode") else data[split]
    for sample in part:
        image = sample["jpg"]["bytes"]
        assert sample["__key__"] not in found
        found[sample["__key__"]] = [split, hashlib.md5(image).hexdigest(), sample["txt"], sample["json"]]
print(json.dumps(found))
"""


def test_hugging_face(published: Project, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    files = {split: paths(published, split) for split in ("train", "val")}
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, json.dumps(files), str(tmp_path)],
        capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    import hashlib

    wanted = {
        key: (split, hashlib.md5(sample["jpg"]).hexdigest(), sample["txt"].decode())
        for split in ("train", "val")
        for key, sample in expected(published, split).items()
    }
    assert {key: tuple(each[:3]) for key, each in found.items()} == wanted
    for key, each in found.items():
        sample = expected(published, each[0])[key]
        numbers = {k: v for k, v in json.loads(sample["json"]).items() if isinstance(v, int)}
        assert numbers.items() <= each[3].items()
