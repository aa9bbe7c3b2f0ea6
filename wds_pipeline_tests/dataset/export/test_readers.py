"""Each format by its own tool, where that is installed: every sample, and every sample's bytes."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from braceexpand import braceexpand

from wds_pipeline.dataset import export
from wds_pipeline.dataset.tar_indexing import index_tars
from wds_pipeline.errors import DataError
from wds_pipeline_tests.conftest import Project, Sample
from wds_pipeline_tests.dataset.foreign_tars import make

ENERGON = "megatron.energon.flavors.webdataset"
BySplit = Callable[[], dict[str, Sample]]
Publish = Callable[..., Path]


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[Path, Sample]:
    """Two tars of somebody else's, with upper-case extensions and PAX headers; and their samples."""
    folder = tmp_path / "tars"
    folder.mkdir()
    samples: Sample = {}
    for number in range(2):
        members = []
        for key in (f"{number}/{each:03d}" for each in range(5)):
            fields = {"JPG": f"image {key}".encode(), "json": b'{"n": 1}'}
            samples[key] = {name.lower(): data for name, data in fields.items()}
            members += [(f"{key}.{name}", data) for name, data in fields.items()]
        (folder / f"cc-{number:04d}.tar").write_bytes(make(members, 1 + number, mtime=1.5))
    return folder, samples


def export_foreign(folder: Path, name: str, where: str) -> None:
    index = index_tars([str(folder)]).index
    contents = export.of_index(index, "cc", "train", "2020-01-01T00:00:00+00:00")
    export.write(name, contents, index.tars, where)


# wids


def read_wids(path: Path, cache: Path) -> Sample:
    pytest.importorskip("torch", reason="wids needs torch")
    wids = pytest.importorskip("wids")
    data = wids.ShardListDataset(
        str(path), cache_dir=str(cache), transformations=[lambda each: each], keep=True
    )
    found = {}
    for number in range(len(data)):
        sample = data[number]
        fields = {k[1:].lower(): v.read() for k, v in sample.items() if k.startswith(".")}
        found[sample["__key__"]] = fields
    return found


def test_wids(publish: Publish, by_split: BySplit, tmp_path: Path) -> None:
    folder = publish("wids")
    for split, samples in by_split().items():
        assert read_wids(folder / f"{split}.json", tmp_path / split) == samples


def test_wids_of_foreign_tars(foreign: tuple[Path, Sample], tmp_path: Path) -> None:
    folder, samples = foreign
    export_foreign(folder, "wids", ".wds_pipeline/wids/")
    assert read_wids(folder / ".wds_pipeline/wids/train.json", tmp_path / "cache") == samples


# Megatron-Energon


def read_energon(folder: Path, split: str) -> Sample:
    energon = pytest.importorskip("megatron.energon")
    readers = pytest.importorskip(f"{ENERGON}.itar_reader")
    metadata = pytest.importorskip(f"{ENERGON}.metadata")
    path = energon.epathlib.EPath(str(folder))
    meta = metadata.WebdatasetMeta.from_config(path, split_part=split)
    reader = readers.ShardInfosITarReader(path, meta.shards)
    found = {}
    for number in range(len(reader)):
        sample = reader[number]
        found[sample["__key__"]] = {
            name.lower(): data for name, data in sample.items() if not name.startswith("__")
        }
    reader.close()
    return found


def check_energon_database(folder: Path, samples: Sample) -> None:
    """By key, whole samples and single parts."""
    energon = pytest.importorskip("megatron.energon")
    readers = pytest.importorskip(f"{ENERGON}.itar_reader")
    path = energon.epathlib.EPath(str(folder))
    whole = readers.SqliteITarEntryReader(path)
    single = readers.SqliteITarEntryReader(path, key_is_full_entryname=True)
    assert len(whole) == len(samples)
    for key, fields in samples.items():
        sample = whole[key]
        assert {n.lower(): d for n, d in sample.items() if not n.startswith("__")} == fields
        for name in (name for name in sample if not name.startswith("__")):
            data, _ = single[f"{key}.{name}"]
            assert data == fields[name.lower()]
    whole.close()
    single.close()


def test_energon(publish: Publish, by_split: BySplit) -> None:
    folder = publish("energon")
    splits = by_split()
    for split, samples in splits.items():
        assert read_energon(folder, split) == samples
    check_energon_database(folder, {k: v for part in splits.values() for k, v in part.items()})


def test_energon_loads_it_as_a_dataset(publish: Publish, by_split: BySplit) -> None:
    energon: Any = pytest.importorskip("megatron.energon")
    folder = publish("energon")

    plain = energon.Cooker(energon.stateless(lambda sample: sample))
    task = type("Task", (energon.DefaultTaskEncoder,), {"cookers": (plain,), "decoder": None})
    worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    data = energon.get_val_dataset(
        str(folder), split_part="val", worker_config=worker, batch_size=None, task_encoder=task()
    )
    keys = [sample["__key__"] for sample in energon.get_loader(data)]
    assert sorted(keys) == sorted(by_split()["val"])


def test_energon_of_foreign_tars(foreign: tuple[Path, Sample]) -> None:
    folder, samples = foreign
    export_foreign(folder, "energon", "")
    assert read_energon(folder, "train") == samples
    check_energon_database(folder, samples)


def test_energon_is_as_its_own_command_makes_it(
    foreign: tuple[Path, Sample], tmp_path: Path
) -> None:
    prepare = pytest.importorskip("megatron.energon.flavors").BaseWebdatasetFactory.prepare_dataset
    import shutil
    import sqlite3

    folder, _ = foreign
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    export_foreign(folder, "energon", "")
    names = sorted(path.name for path in other.glob("*.tar"))
    prepare(other, names, split_parts_ratio=[("train", 1.0)], shuffle_seed=None, workers=1)
    for name in names:
        assert (folder / f"{name}.idx").read_bytes() == (other / f"{name}.idx").read_bytes()

    def rows(root: Path) -> list[list[Any]]:
        with sqlite3.connect(root / ".nv-meta/index.sqlite") as db:
            tables = ("samples", "sample_parts")
            found = [sorted(db.execute(f"SELECT * FROM {name}").fetchall()) for name in tables]
        db.close()
        return found

    assert rows(folder) == rows(other)
    ours, theirs = (
        json.loads((root / ".nv-meta/.info.json").read_text())["shard_counts"]
        for root in (folder, other)
    )
    assert ours == theirs


def test_energon_files_that_were_changed_stay(foreign: tuple[Path, Sample]) -> None:
    folder, _ = foreign
    export_foreign(folder, "energon", "")
    (folder / ".nv-meta/dataset.yaml").write_text("mine: true\n")
    export_foreign(folder, "energon", "")
    assert (folder / ".nv-meta/dataset.yaml").read_text() == "mine: true\n"


# DALI: it needs a GPU's libraries, so its format is read here as its documentation says.


def read_dali(path: Path) -> Sample:
    lists = json.loads(path.read_text())
    found: Sample = {}
    for shard, index in zip(lists["paths"], lists["index_paths"], strict=True):
        data = (path.parent / shard).read_bytes()
        first, *lines = (path.parent / index).read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        for line in lines:
            words = line.split(" ")
            for extension, start, size, name in (words[n : n + 4] for n in range(0, len(words), 4)):
                key, _, field = name.rpartition(f".{extension}")
                assert field == "" and int(start) % 512 == 0
                sample = found.setdefault(key, {})
                sample[extension.lower()] = data[int(start) : int(start) + int(size)]
    return found


def test_dali(publish: Publish, by_split: BySplit) -> None:
    folder = publish("dali")
    for split, samples in by_split().items():
        assert read_dali(folder / f"{split}.json") == samples


def test_dali_of_foreign_tars(foreign: tuple[Path, Sample]) -> None:
    folder, samples = foreign
    export_foreign(folder, "dali", ".wds_pipeline/dali/")
    assert read_dali(folder / ".wds_pipeline/dali/train.json") == samples


# open_clip: training/data.py, get_dataset_size


def open_clip_size(shards: str) -> int:
    urls = list(braceexpand(shards))
    sizes = json.loads(Path(posixpath.dirname(urls[0]), "sizes.json").read_text())
    return sum(int(sizes[posixpath.basename(url)]) for url in urls)


def test_open_clip(publish: Publish, by_split: BySplit, project: Project) -> None:
    publish("open_clip")
    for split, samples in by_split().items():
        last = len(project.latest().of_split(split)) - 1
        pattern = f"{project.destination}/views/00000001/{split}-{{000000..{last:06d}}}.tar"
        assert open_clip_size(pattern) == len(samples)


def test_open_clip_of_foreign_tars(foreign: tuple[Path, Sample]) -> None:
    folder, samples = foreign
    export_foreign(folder, "open_clip", "")
    assert open_clip_size(f"{folder}/cc-{{0000..0001}}.tar") == len(samples)
    assert int((folder / "__len__").read_text()) == len(samples)


# Hugging Face


def test_huggingface(
    publish: Publish, by_split: BySplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    folder = publish("huggingface")
    splits = by_split()
    files = json.loads((folder / "data_files.json").read_text())
    files = {name: [str(folder / each) for each in some] for name, some in files.items()}
    view = folder.parents[3] / "views/00000001"
    streams = [
        datasets.load_dataset("webdataset", data_files=files, streaming=True),
        datasets.load_dataset(str(view), streaming=True),  # by its card
    ]
    for found in streams:
        assert set(found) == set(splits)
        for split, samples in splits.items():
            rows = {row["__key__"]: row for row in found[split].decode(False)}
            assert rows.keys() == samples.keys()
            for key, fields in samples.items():
                assert rows[key]["png"]["bytes"] == fields["png"]
                assert rows[key]["txt"] == fields["txt"].decode()
                assert rows[key]["json"] == json.loads(fields["json"])


def test_huggingface_where_fields_are_missing(project: Project) -> None:
    datasets = pytest.importorskip("datasets")
    for key in project.add(0, 20)[::2]:
        (project.source / f"{key}.json").unlink()
    project.build(exports=["huggingface"])
    folder = str(project.destination / "views/00000001")
    with pytest.raises(ValueError, match="don't share the same prefix or the same types"):
        datasets.load_dataset(folder, streaming=True)
    text = datasets.Value("string")
    features = {"__key__": text, "txt": text, "json": {"number": datasets.Value("int64")}}
    found = datasets.load_dataset(folder, streaming=True, features=datasets.Features(features))
    rows = {row["__key__"]: row["json"] for row in found["train"]}
    assert len(rows) == 20
    assert all((value is None) == (int(key[-4:]) % 2 == 0) for key, value in rows.items())


# Croissant


@pytest.mark.parametrize("digest", ["xxh3-128", "sha256"])
def test_croissant(publish: Publish, project: Project, digest: str) -> None:
    croissant = pytest.importorskip("mlcroissant")
    folder = publish("croissant", shards={"digest": digest})
    data = croissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not data.metadata.ctx.issues.errors
    rows = list(data.records(record_set="shards"))
    shards = project.latest().shards
    assert [row["shards/samples"] for row in rows] == [each.samples for each in shards]
    for row, shard in zip(rows, shards, strict=True):
        path = row["shards/path"]
        path = folder / (path.decode() if isinstance(path, bytes) else path)
        assert path.samefile(project.destination / shard.path)
    files = len(data.metadata.file_objects)
    assert files == 1 + (len(shards) if digest == "sha256" else 0)


# The sample table


def test_sample_table(publish: Publish, by_split: BySplit) -> None:
    folder = publish("sample_table")
    for split, samples in by_split().items():
        rows = pq.read_table(folder / f"{split}.parquet").to_pylist()
        assert {row["key"] for row in rows} == samples.keys()
        for row in rows:
            data = (folder / row["shard"]).read_bytes()
            for field, content in samples[row["key"]].items():
                place = row[field]
                assert data[place["offset"] : place["offset"] + place["size"]] == content
            assert row["png"]["height"] == 8 and row["png"]["format"] == "PNG"


def test_sample_table_where_fields_are_missing(project: Project) -> None:
    project.add(0, 6)
    (project.source / "a/0002.json").unlink()
    project.build(exports=["sample_table"])
    table = pq.read_table(project.destination / export.folder(1, "sample_table") / "train.parquet")
    assert table["json"].null_count == 1
    assert table["png"].null_count == 0
    row = table.to_pylist()[table["key"].to_pylist().index("a/0002")]
    assert row["json"] is None and row["txt"]["chars"] == len("caption of a/0002")
    assert np.array_equal(
        np.sort(np.unique(table["sample"])), np.arange(max(table["sample"].to_pylist()) + 1)
    )


def test_sample_table_in_duckdb_and_polars(publish: Publish, by_split: BySplit) -> None:
    folder = publish("sample_table")
    path, samples = folder / "train.parquet", by_split()["train"]
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT key, png.size FROM '{path}' WHERE png.width >= 10 ORDER BY key"
    found = duckdb.sql(query).fetchall()
    assert found
    assert all(len(samples[key]["png"]) == size for key, size in found)
    polars = pytest.importorskip("polars")
    table = polars.scan_parquet(path).filter(polars.col("png").struct.field("width") >= 10)
    assert sorted(table.collect()["key"]) == [key for key, _ in found]


# streaming-wds, which reads from S3 alone


def test_streaming_wds_index() -> None:
    from wds_pipeline.dataset.export.contents import Contents, Shard
    from wds_pipeline.storage import open_storage

    source, target = (
        open_storage("s3://bucket/pre/fix"),
        open_storage("memory://streaming-wds-export"),
    )
    shards = [Shard(f"shards/train-{n:06d}.tar", "train", 3 + n, 100, "") for n in range(2)]
    contents = Contents(
        storage=source, dataset="small", description="", version=1, created="", digest="",
        splits={"train": shards}, read_members=lambda _: None, read_facts=lambda _: None,
        longest_key=lambda: 0, in_place=False,
    )  # fmt: skip
    export.write("streaming_wds", contents, target, "")
    theirs = pytest.importorskip("streaming_wds.core.index", exc_type=ImportError)
    index = theirs.DatasetIndex.decode(target.read("train/index.wds")).to_dict()
    assert index["num_items"] == 7
    assert [each["key"] for each in index["shards"]] == [
        f"pre/fix/shards/train-{n:06d}.tar" for n in range(2)
    ]


def test_dali_cannot_say_names_with_spaces(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(make([("a.jpg", b"1"), ("my photo.jpg", b"2")]))
    with pytest.raises(
        DataError, match=r"export dali: x\.tar: the name 'my photo\.jpg' has a space"
    ):
        export_foreign(tmp_path, "dali", "dali/")


@pytest.mark.parametrize("space", ["\v", "\t", "\f"])
def test_dali_cannot_say_other_spaces(tmp_path: Path, space: str) -> None:
    (tmp_path / "x.tar").write_bytes(make([(f"a{space}.jpg", b"1"), ("b\u3000.jpg", b"2")]))
    with pytest.raises(DataError, match="has a space in it"):
        export_foreign(tmp_path, "dali", "dali/")


def test_energon_wants_each_key_once(tmp_path: Path) -> None:
    for name in ("x.tar", "y.tar"):
        (tmp_path / name).write_bytes(make([("a.jpg", b"1"), (f"{name}.jpg", b"2")]))
    with pytest.raises(DataError, match="export energon: found the key 'a' twice"):
        export_foreign(tmp_path, "energon", "")


def test_tars_without_samples_are_left_out_where_they_must(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(make([("a.jpg", b"1")]))
    (tmp_path / "y.tar").write_bytes(make([]))
    for name in ("dali", "energon", "sample_table", "wids", "croissant", "huggingface"):
        export_foreign(tmp_path, name, f"{name}/" if name != "energon" else "")
    assert read_dali(tmp_path / "dali/train.json") == {"a": {"jpg": b"1"}}
    info = json.loads((tmp_path / ".nv-meta/.info.json").read_text())
    assert info["shard_counts"] == {"x.tar": 1}
    assert pq.read_table(tmp_path / "sample_table/train.parquet").num_rows == 1
