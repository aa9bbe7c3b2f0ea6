"""Every sample's bytes are those that tarfile, webdataset and `datasets` give, whatever the names."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wds_pipeline.dataset.tar_indexing import index_tars
from wds_pipeline.errors import VersionError
from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline.training.reading import in_turn
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.training.conftest import plain, stored

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves files open

FIELDS = ["txt", "png", "seg.png", "json", "a.b.c", "x-y", "0", "bin"]
_LETTERS = "aB1_-é日 +%&='(){}[]~#!,;"
_FOLDERS = st.lists(st.text(_LETTERS, min_size=1, max_size=6), max_size=2)
_NAMES = st.text(_LETTERS, min_size=1, max_size=12) | st.text("long", min_size=90, max_size=130)
_CONTENT = st.sampled_from([b"", b"\0", b"x" * 511, b"y" * 512, b"z" * 513]) | st.binary(
    max_size=3000
)
SAMPLES = st.dictionaries(
    st.tuples(_FOLDERS, _NAMES).map(lambda parts: "/".join([*parts[0], parts[1]])),
    st.dictionaries(st.sampled_from(FIELDS), _CONTENT, min_size=1, max_size=4),
    min_size=1,
    max_size=12,
)


def usable(key: str) -> bool:
    """Whether a key can be a path here, and readers keep it."""
    parts = key.split("/")
    return not any(
        "__" in part or part.strip() != part or part[-1:] == "~" for part in parts
    ) and not (parts[0].startswith("~") or any(part.startswith(("~$", "#")) for part in parts))


def by_webdataset(urls: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    return [plain(each) for each in webdataset.WebDataset(urls, shardshuffle=False)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(samples=SAMPLES, splits=st.integers(1, 4), seed=st.integers(0, 9))
def test_odd_names_and_contents(
    samples: dict[str, dict[str, bytes]],
    splits: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "raw").mkdir()
    ratios = {f"part{number}": 1.0 / splits for number in range(splits)}
    project = Project(
        folder,
        {
            "samples": {
                "required": [],
                "fields": {name: [name] for name in FIELDS},
                "on_invalid": "keep",
            },
            "verify": {"level": "samples"},
            "split": ratios,
            "shards": {"max_bytes": 20_000, "max_samples": 1 + seed % 3},
        },
    )
    folders = {key.rpartition("/")[0] for key in samples}
    for key, fields in samples.items():
        if usable(key) and key not in folders:
            for name, data in fields.items():
                if not any(key == each or each.startswith(f"{key}.{name}/") for each in folders):
                    project.write(f"{key}.{name}", data)
    if not any(path.is_file() for path in project.source.rglob("*")):
        return
    project.build()
    manifest = project.latest()
    for split in [None, *manifest.splits]:
        dataset = open_dataset(str(project.destination), split=split)
        expected = stored(project, split)
        assert expected
        assert [plain(each) for each in dataset] == expected
        assert [plain(dataset[number]) for number in range(len(dataset))] == expected
        assert by_webdataset(dataset.urls) == expected
        numbers = random.Random(seed).sample(range(len(dataset)), len(dataset))
        shuffled = in_turn(dataset.reader, numbers)
        assert [plain(each) for each in shuffled] == [expected[n] for n in numbers]
        for number, (key, _) in enumerate(expected):
            assert dataset.index_of(key) == number
    everything = open_dataset(str(project.destination))
    assert len(everything) == manifest.total_samples


def test_large_and_small_fields_together(project: Project) -> None:
    """Fields around the sizes at which reading changes its way."""
    sizes = [0, 1, 511, 512, 4096, 20_000, 32 * 1024, 33_000, 130 * 1024, 300_000]
    fields = ["a", "b", "c"]
    project.options = {
        "samples": {
            "required": [],
            "fields": {name: [name] for name in fields},
            "on_invalid": "keep",
        },
        "shards": {"max_bytes": 2_000_000},
        "verify": {"level": "samples"},
    }
    random_ = random.Random(0)
    for number in range(40):
        for name in random_.sample(fields, random_.randint(1, 3)):
            data = random_.randbytes(random_.choice(sizes))
            project.write(f"{number:03d}.{name}", data)
    project.build()
    dataset, expected = open_dataset(str(project.destination)), stored(project)
    assert by_webdataset(dataset.urls) == [plain(each) for each in dataset] == expected
    assert [plain(dataset[number]) for number in range(40)] == expected
    for some in (["a"], ["b"], ["a", "c"]):
        part = open_dataset(str(project.destination), fields=some)
        wanted = [(key, {n: d for n, d in each.items() if n in some}) for key, each in expected]
        assert [plain(each) for each in part] == wanted
        assert [plain(part[number]) for number in range(40)] == wanted


HUGGING_FACE = """
import base64, json, sys
from datasets import load_dataset
files, cache = json.loads(sys.argv[1]), sys.argv[2]
data = load_dataset("webdataset", data_files={"train": files}, streaming=True, cache_dir=cache)["train"]
for sample in data.decode(False):
    fields = {}
    for name, value in sample.items():
        if not name.startswith("__") and value is not None:
            value = value["bytes"] if name == "png" else value
            fields[name] = base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
    print(json.dumps([sample["__key__"], fields]))
"""


def test_hugging_face(project: Project, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    project.add(0, 30)
    for number in range(
        30
    ):  # its loader parses json: bytes that survive that are compared elsewhere
        os.unlink(project.source / f"a/{number:04d}.json")
    project.build()
    dataset = open_dataset(str(project.destination))
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, json.dumps(dataset.urls), str(tmp_path)],
        capture_output=True, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = []
    for line in done.stdout.splitlines():
        key, fields = json.loads(line)
        found.append((key, {name: base64.b64decode(value) for name, value in fields.items()}))
    assert found == [plain(each) for each in dataset]
    assert len(found) == 30


# Tars that others made.


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: Any) -> None:
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(samples=SAMPLES, seed=st.integers(0, 2))
def test_odd_names_in_foreign_tars(
    samples: dict[str, dict[str, bytes]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("foreign")
    items = [(key, fields) for key, fields in samples.items() if "__" not in key]
    form = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[seed]
    for shard in range(0, len(items), 5):
        part = items[shard : shard + 5]
        members = [(f"{key}.{name}", data) for key, each in part for name, data in each.items()]
        if form != tarfile.USTAR_FORMAT or all(len(name.encode()) < 100 for name, _ in members):
            write_tar(folder / f"{shard:03d}.tar", members, format=form)
    if not any(folder.iterdir()):
        return
    index_tars([str(folder)], workers=1)
    dataset = open_dataset(str(folder))
    expected = by_webdataset(dataset.urls)
    assert [plain(each) for each in dataset] == expected
    assert [plain(dataset[number]) for number in range(len(dataset))] == expected
    for fields in (["txt"], ["seg.png", "bin"]):
        found = in_turn(dataset.reader, range(len(dataset)), fields)
        wanted = [(key, {n: d for n, d in each.items() if n in fields}) for key, each in expected]
        assert [plain(each) for each in found] == wanted


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars(tmp_path: Path, form: int) -> None:
    for shard in range(3):
        members = [
            (f"{'d' * 60}/{'e' * 60}/{shard}-{number}.{field}", os.urandom(number * 97))
            for number in range(5 + shard)
            for field in ("JPG", "txt", "seg.PNG")
        ]
        write_tar(tmp_path / f"cc3m-{shard:04d}.tar", members, format=form)
    write_tar(tmp_path / "empty.tar", [], format=form)
    index_tars([str(tmp_path)], workers=1)
    pattern = f"{tmp_path}/cc3m-{{0000..0002}}.tar"
    dataset = open_dataset(pattern)
    expected = by_webdataset(dataset.urls)
    assert len(expected) == len(dataset) == 18
    for each in (dataset, open_dataset(str(tmp_path)), open_dataset(f"{tmp_path}/.wds_pipeline")):
        assert isinstance(each, Dataset)
        assert [plain(sample) for sample in each] == expected
        assert [plain(each[number]) for number in range(18)] == expected
        assert each.index_of(expected[7][0]) == 7
    assert len(open_dataset(f"{tmp_path}/cc3m-*.tar").select(has="seg.png", keys="*/1-*")) == 6
    with pytest.raises(VersionError, match="has no splits; found 'train'"):
        open_dataset(pattern, split="train")
    with pytest.raises(VersionError, match="has no versions"):
        open_dataset(pattern, version=3)
    with pytest.raises(VersionError, match="an index of foreign tars knows"):
        dataset.select("jpg.width > 3")
    with pytest.raises(VersionError, match="no single pattern"):
        _ = dataset.braces


def test_foreign_tars_without_an_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
    with pytest.raises(VersionError, match="wds-pipeline index"):
        open_dataset(f"{tmp_path}/a.tar")
    with pytest.raises(VersionError, match="wds-pipeline index"):
        open_dataset(str(tmp_path))


def test_a_foreign_tar_that_was_cut_is_told_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{number}.txt", b"x" * 600) for number in range(9)])
    os.truncate(path, 5000)
    index_tars([str(path)], workers=1)
    with pytest.warns(UserWarning, match="1 errors were found in these tars"):
        dataset = open_dataset(str(path))
    assert [each["__key__"] for each in dataset] == ["0", "1", "2"]
