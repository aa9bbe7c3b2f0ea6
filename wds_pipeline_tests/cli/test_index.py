"""`wds-pipeline index` and `wds-pipeline export`: what they print, and their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wds_pipeline.dataset.tar_index import open_index
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.dataset.foreign_tars import make


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "cc3m"
    folder.mkdir()
    for number in range(3):
        names = [f"{number}/{n}.{end}" for n in range(4) for end in ("jpg", "txt")]
        data = make([(name, name.encode()) for name in names])
        (folder / f"cc3m-{number:04d}.tar").write_bytes(data)
    return folder


def test_index_prints_what_is_there(cli: Cli, tars: Path) -> None:
    shown = cli("index", f"{tars}/cc3m-{{0000..0002}}.tar").stdout
    assert "3 tars" in shown and "samples: 12 (jpg 12, txt 12)" in shown
    assert f"{tars}/.wds_pipeline (3 read, 0 unchanged)" in shown
    assert "(0 read, 3 unchanged)" in cli("index", tars).stdout


def test_index_as_json(cli: Cli, tars: Path) -> None:
    found = cli.json("index", tars, "--format", "wids,sample_table", "--split", "val")
    assert (found["samples"], found["read"], found["fields"]) == (12, 3, {"jpg": 12, "txt": 12})
    assert [each["samples"] for each in found["shards"]] == [4, 4, 4]
    assert found["digest"] == open_index(str(tars)).digest
    wids = json.loads(Path(found["formats"]["wids"], "val.json").read_text())
    assert wids["name"] == "cc3m-val"
    assert [each["url"] for each in wids["shardlist"]] == [
        f"../../cc3m-{number:04d}.tar" for number in range(3)
    ]
    table = pq.read_table(Path(found["formats"]["sample_table"], "val.parquet"))
    assert table.num_rows == 12


def test_an_index_elsewhere_names_the_tars_absolutely(cli: Cli, tars: Path, tmp_path: Path) -> None:
    found = cli.json("index", tars, "--output", tmp_path / "index", "--format", "wids")
    assert list(tars.iterdir()) == list(tars.glob("*.tar"))
    wids = json.loads(Path(found["formats"]["wids"], "train.json").read_text())
    assert wids["shardlist"][0]["url"] == f"{tars}/cc3m-0000.tar"


def test_names_from_stdin(cli: Cli, tars: Path) -> None:
    names = "".join(f"{path}\n" for path in sorted(tars.glob("*.tar")))
    assert "3 tars" in cli("index", "-", input=names).stdout


def test_a_damaged_tar(cli: Cli, tars: Path) -> None:
    path = tars / "cc3m-0001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    result = cli("index", tars, code=1)
    assert "error: cc3m-0001.tar: truncated: at byte 2,000 ends within" in result.stdout
    assert "samples: 9 " in result.stdout
    result = cli("index", tars, "--format", "wids", code=1)
    assert "which it would misread; mend the tar" in result.stderr
    assert "error: cc3m-0001.tar: truncated" in result.stdout
    assert not (tars / ".wds_pipeline/wids").exists()
    found = cli.json("index", tars, code=1)
    assert found["shards"][1]["findings"][0]["code"] == "truncated"


def test_warnings_of_many_tars_are_one_line(cli: Cli, tars: Path) -> None:
    for path in tars.glob("*.tar"):
        path.write_bytes(make([("._a.jpg", b"1"), ("a.jpg", b"2")]))
    shown = cli("index", tars).stdout
    assert "warning: cc3m-0000.tar and 2 more tars: dropping (3):" in shown
    assert shown.count("warning:") == 1


def test_mistakes(cli: Cli, tars: Path) -> None:
    assert "did you mean 'energon'" in cli("index", tars, "--format", "energo", code=2).stderr
    assert "letters, digits" in cli("index", tars, "--split", "a b", code=2).stderr
    assert (
        "4 of 7 tars are not there"
        in cli("index", f"{tars}/cc3m-{{0000..0006}}.tar", code=1).stderr
    )
    assert "different stores" in cli("index", tars / "cc3m-0000.tar", "s3://b/x.tar", code=2).stderr


def test_export_a_version(built: Cli, tmp_path: Path) -> None:
    found = built.json("export", "small", "--format", "wids", "--format", "urls,huggingface")
    assert list(found["formats"]) == ["wids", "urls", "huggingface"]
    folder = built.project.destination / "versions/00000001/exports/wids"
    assert Path(found["formats"]["wids"]) == folder
    index = json.loads((folder / "train.json").read_text())
    assert all((folder / each["url"]).is_file() for each in index["shardlist"])
    assert (built.project.destination / "views/00000001/README.md").is_file()
    built("export", "small", "--format", "wids", "--output", tmp_path / "out")
    index = json.loads((tmp_path / "out/train.json").read_text())
    assert all(Path(each["url"]).is_file() for each in index["shardlist"])
    assert all(Path(each["url"]).is_absolute() for each in index["shardlist"])


def test_export_mistakes(built: Cli) -> None:
    assert "--format" in built("export", "small", code=2).stderr
    shown = built("export", "small", "--format", "wids", "--version", "9", code=1).stderr
    assert "version 9 is not published; there are 1" in shown
    shown = built("export", "small", "--format", "streaming_wds", code=2).stderr
    assert "that library reads from s3:// only" in shown
