"""verify, versions, show, urls, view, restore, gc: on what is published."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.conftest import png


def test_verify_passes_and_writes_its_report(built: Cli, tmp_path: Path) -> None:
    before = built.project.shard_files()
    text = built("verify", "small", "--output", tmp_path / "out").stdout
    assert "verification passed" in text
    assert json.loads((tmp_path / "out" / "report.json").read_bytes())["passed"]
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert built.project.shard_files() == before


def test_verify_finds_one_flipped_bit(built: Cli) -> None:
    shard = built.project.latest().shards[0]
    path = built.project.destination / shard.path
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert "passed" in built("verify", "small", "--level", "stat").stdout
    found = built.json("verify", "small", "--level", "digest", code=1)
    assert not found["passed"]
    assert found["findings"] == {"wrong_digest": 1}
    text = built("verify", "small", code=1).stdout
    assert shard.name in text and "verify small --repair" in text


def test_verify_repairs(built: Cli) -> None:
    whole = built.project.shard_files()
    tars = [built.project.destination / shard.path for shard in built.project.latest().shards]
    content = [path.read_bytes() for path in tars]
    for path, data in zip(tars[:2], content, strict=False):
        path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    done = built("verify", "small", "--repair")
    assert "2 damaged shards packed anew: version 1 repaired" in done.stderr
    assert "verification passed" in done.stdout
    assert [path.read_bytes() for path in tars] == content
    assert built.project.shard_files().keys() == whole.keys()
    assert "newest version" in built("verify", "small", "--repair", "--version", 1, code=2).stderr


@pytest.mark.parametrize("share", ["10%", "0.1", "0"])
def test_verify_a_share(built: Cli, share: str) -> None:
    assert built.json("verify", "small", "--sample", share)["passed"]


@pytest.mark.parametrize("share", ["11", "x", "-1%"])
def test_verify_refuses_what_is_no_share(built: Cli, share: str) -> None:
    assert "10% or 0.1" in built("verify", "small", "--sample", share, code=2).stderr


def test_versions(cli: Cli) -> None:
    assert "no version yet" in cli("versions", "small").stdout
    assert cli.json("versions", "small") == []
    assert "build it first" in cli("versions", "small", "--summary", code=1).stderr
    cli.project.build()
    cli.project.write("a/0001.txt", "edited")
    cli.project.build()
    assert cli.json("restore", "small", 1)["version"] == 3
    newest, second, first = cli.json("versions", "small")
    assert newest["restored_from"] == 1
    assert second["changed"] == {"edited": 1}
    assert first["changed"] == {"new": 20}
    text = cli("versions", "small").stdout
    assert "restored from version 1" in text
    assert "1 edited (1 shard" in text


def test_restore(built: Cli) -> None:
    assert "version 1 is the newest already" in built("restore", "small", 1).stdout
    built.project.add(900, 1)
    built.project.build()
    for _ in range(2):  # once is enough
        assert "version 3 is version 1 again" in built("restore", "small", 1).stdout
    assert "version 9 is not" in built("restore", "small", 9, code=1).stderr
    assert built("restore", "small", "one", code=2)


def test_show(built: Cli, tmp_path: Path) -> None:
    text = built("show", "small", "a/0004").stdout
    assert "caption of a/0004" in text
    assert "12 × 8 pixels, PNG" in text
    shown = built.json("show", "small", "a/0004", "--save", tmp_path / "saved")
    assert shown["fields"]["png"]["width"] == 12
    with open(shown["shard"], "rb") as tar:
        tar.seek(shown["fields"]["txt"]["offset"])
        assert tar.read(shown["fields"]["txt"]["size"]) == b"caption of a/0004"
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "0004.png",
        "0004.txt",
        "0004.json",
    }
    assert (tmp_path / "saved" / "0004.png").read_bytes() == png(4)
    assert built.json("show", "small")["position"] == 0
    assert "'a/0004'" in built("show", "small", "a/004", code=1).stderr


def test_urls(built: Cli) -> None:
    urls = built("urls", "small").stdout.splitlines()
    assert [Path(each).is_file() for each in urls] == [True] * len(built.project.latest().shards)
    assert built.json("urls", "small", "--split", "train")["urls"]["train"] == urls
    assert "it has train" in built("urls", "small", "--split", "test", code=1).stderr
    assert "not published" in built("urls", "small", "--version", 7, code=1).stderr


def test_braces_need_a_view(built: Cli) -> None:
    import braceexpand

    (pattern,) = built("urls", "small", "--braces").stdout.split()
    files = list(braceexpand.braceexpand(pattern))
    Path(files[0]).unlink()
    assert "wds-pipeline view small" in built("urls", "small", "--braces", code=1).stderr
    assert built("view", "small").stdout.split() == [pattern]
    assert all(Path(each).is_file() for each in files)
    assert built.json("urls", "small", "--braces")["patterns"] == {"train": pattern}


def test_gc_lists_and_removes(built: Cli) -> None:
    built.configure(retention={"versions": 1, "days": 0})
    assert "nothing to remove" in built("gc", "small").stdout
    built.project.write("a/0001.txt", "edited")
    built.project.build()
    time.sleep(0.01)
    listed = built.json("gc", "small", "--grace", "0")
    assert listed["versions"] == [1]
    assert len(listed["shards"]) == 1
    assert not listed["removed"]
    text = built("gc", "small", "--grace", "0").stdout
    assert "do it with: wds-pipeline gc small --grace 0s --yes" in text
    assert built.json("gc", "small")["spared_young_shards"] == 1
    assert built.json("gc", "small", "--grace", "0s", "--yes")["bytes"] == listed["bytes"]
    assert [each["version"] for each in built.json("versions", "small")] == [2]
    built("verify", "small")
    assert "24h" in built("gc", "small", "--grace", "soon", code=2).stderr


def test_datasets(built: Cli) -> None:
    other = built.configure("other", destination={"url": str(built.project.folder / "elsewhere")})
    rows = built.json("datasets")
    assert [(row["name"], row["version"]) for row in rows] == [("other", None), ("small", 1)]
    assert "small" in built("datasets").stdout
    (built.project.folder / "elsewhere").mkdir()
    (built.project.folder / "elsewhere" / "thesis.tex").touch()
    result = built("datasets")
    assert "other files" in result.stderr
    other.unlink()
    built.configure().unlink()
    assert "wds-pipeline init" in built("datasets").stdout


def test_another_datasets_destination_is_left_alone(built: Cli) -> None:
    built.configure().unlink()
    built.configure("other")
    for command in ("plan", "build", "versions", "gc", "urls", "show", "verify", "view"):
        assert "holds the dataset 'small'" in built(command, "other", code=1).stderr


def test_schema(cli: Cli, tmp_path: Path) -> None:
    schema = json.loads(cli("schema").stdout)
    assert "samples" in schema["properties"]
    cli("schema", "--output", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == schema
    assert "cannot be written" in cli("schema", "--output", "/nowhere/x.json", code=1).stderr
