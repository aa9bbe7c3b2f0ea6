"""`wds-pipeline read-bench`: what is measured, what is said of it, and of mistakes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from wds_pipeline.training import page_cache
from wds_pipeline.training.read_bench import Pass, ReadBench, Settings, advice
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.s3.conftest import aws, make_bucket, moto_server
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server, put_all

__all__ = ["aws", "make_bucket", "moto_server"]  # fixtures
QUICK = ("--seconds", 0.5)


def url(cli: Cli) -> Path:
    return cli.project.destination


def test_what_is_printed(built: Cli) -> None:
    shown = built("read-bench", url(built), "--decode", "pil", *QUICK).stdout
    for part in (
        "small: version 1: ",
        "20 samples of ",
        "batches of 64, shuffle window",
        "as asked, first pass",
        "reading alone",
        "decoding alone",
        "shards in large blocks",
        "first batch: ",
        "wait for a batch, ms: ",
        "cache: ",
        "bottleneck: ",
    ):
        assert part in shown


def test_as_json(built: Cli) -> None:
    found = built.json(
        "read-bench", url(built), "--decode", "png=rgb8", "--decode", "txt=txt", *QUICK
    )
    sizes = [path.stat().st_size for path in built.project.source.rglob("*") if path.is_file()]
    assert (found["dataset"], found["version"], found["samples"]) == ("small", 1, 20)
    assert found["sample_bytes"] == pytest.approx(sum(sizes) / 20, rel=0.2)
    assert set(found["passes"]) == {"first_pass", "again", "raw", "decode", "disk"}
    for each in found["passes"].values():
        assert each["samples"] > 0 and each["seconds"] > 0 and each["samples_per_second"] > 0
    assert found["passes"]["first_pass"]["samples"] == 20
    assert found["samples_per_second"] == found["passes"]["again"]["samples_per_second"]
    assert found["first_seconds"] > 0 and found["skipped"] == 0
    assert set(found["seconds_per_sample"]) == {"read", "decode", "collate", "Python"}
    assert found["bottleneck"] in found["seconds_per_sample"]


@pytest.mark.parametrize(
    "options",
    [
        ("--shuffle", "full", "--batch-size", 0),
        ("--shuffle", "stored", "--batch-size", 7, "--threads", 0),
        ("--fields", "txt", "--split", "train", "--version", 1),
        ("--decode", f"{__name__}:caption", "--collate", f"{__name__}:stacked"),
        ("--decode", "png=", "--decode", f"txt={__name__}:letters"),
        ("--workers", 1, "--batch-size", 5),
    ],
)
def test_settings(built: Cli, options: tuple[Any, ...]) -> None:
    found = built.json("read-bench", url(built), *options, *QUICK)
    assert 1 <= found["passes"]["first_pass"]["samples"] <= 20
    assert ("collate" in found["passes"]) == ("--collate" in options)
    assert ("decode" in found["passes"]) == ("--decode" in options)
    if "--fields" in options:
        assert found["sample_bytes"] < 30


def caption(sample: dict[str, Any]) -> int:
    return len(sample["txt"])


def stacked(batch: list[int]) -> int:
    return sum(batch)


def letters(data: bytes) -> int:
    return len(data)


def refuses(data: bytes) -> int:
    raise ValueError("not today")


def test_tars_of_others(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "cc3m"
    folder.mkdir()
    (folder / "cc3m-0000.tar").write_bytes(make([(f"{n}.txt", b"words") for n in range(9)]))
    cli("index", folder)
    assert cli.json("read-bench", folder, "--decode", "auto", *QUICK)["samples"] == 9


@pytest.fixture
def in_memory(built: Cli) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(url(built)), "/read-bench/published", recursive=True)
    yield "memory://read-bench/published"
    memory.rm("/read-bench", recursive=True)


def test_a_store(built: Cli, in_memory: str) -> None:
    found = built.json("read-bench", in_memory, *QUICK)
    assert "disk" not in found["passes"] and found["cached"] is None
    assert "is no folder whose shards" in built("read-bench", in_memory, "--cold", code=2).stderr


def test_a_bucket(
    built: Cli, moto_server: S3Server, make_bucket: MakeBucket, tmp_path: Path
) -> None:
    bucket, root = make_bucket(moto_server), url(built)
    files = {
        f"sets/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    put_all(moto_server.client(), bucket, files)
    found = built.json(
        *("read-bench", f"s3://{bucket}/sets", "--decode", "pil", "--cache", tmp_path / "cache"),
        *("--storage", f"endpoint_url={moto_server.endpoint}", *QUICK),
    )
    assert found["samples"] == 20 and found["passes"]["decode"]["samples"] > 0


def test_without_the_page_cache(built: Cli) -> None:
    found = built.json("read-bench", url(built), "--cold", *QUICK)
    assert found["settings"]["cold"] is True
    assert "cold: shards were dropped" in built("read-bench", url(built), "--cold", *QUICK).stdout


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--fields", "tx"), 1, "no sample has a field 'tx'; there are json, png, txt"),
        (("--split", "trian"), 1, "no split 'trian'"),
        (("--version", 9), 1, "version 9 is not there; there are 1"),
        (("--decode", "jpg=pil"), 2, "no field is, or ends with, 'jpg'; there are json, png, txt"),
        (("--decode", "plil"), 2, "did you mean 'pil'"),
        (("--decode", "pil", "--decode", "rgb8"), 2, "expected one for all fields"),
        (("--decode", f"{__name__}:nothing"), 2, "nothing"),
        (("--collate", "no_such_module:f"), 2, "no_such_module"),
        (("--collate", f"{__name__}:QUICK"), 2, "is no function"),
        (("--batch-size", 0, "--collate", f"{__name__}:stacked"), 2, "collate"),
        (("--storage", "endpoint_url"), 2, "expected NAME=VALUE"),
        (("--storage", "endpoint=x"), 1, "storage.endpoint"),
        (("--decode", f"txt={__name__}:refuses"), 1, "refuses raised ValueError: not today"),
        (("--seconds", 0), 2, "--seconds"),
    ],
)
def test_mistakes(built: Cli, options: tuple[Any, ...], code: int, message: str) -> None:
    assert message in built("read-bench", url(built), *options, code=code).stderr


def test_nothing_to_read(cli: Cli, tmp_path: Path) -> None:
    shown = cli("read-bench", tmp_path / "nowhere", code=1).stderr
    assert str(tmp_path / "nowhere") in shown
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "a.tar").write_bytes(make([]))
    cli("index", folder)
    assert "there are no samples to read" in cli("read-bench", folder, code=1).stderr


def found(**parts: float) -> ReadBench:
    one = Pass(samples=100, bytes=1000, seconds=1.0)
    every = {"read": 0.0, "decode": 0.0, "collate": 0.0, "Python": 0.0, **parts}
    return ReadBench(None, Settings(), 2, None, one, one, one, one, None, one, every)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("decode", "decoding alone comes to 100 samples/s with 2 threads"),
        ("collate", "stacking batches"),
        ("read", "the disk is the limit"),
        ("Python", "Python's own work"),
    ],
)
def test_the_largest_part_is_the_bottleneck(part: str, words: str) -> None:
    measured = found(**{part: 0.5, "Python": 0.5 if part == "Python" else 0.1})
    assert measured.bottleneck == part
    assert words in advice(measured)


def test_the_page_cache_is_no_disk() -> None:
    measured = found(read=0.5)
    measured.cached = 0.95
    assert "copying from memory is the limit" in advice(measured)


def test_what_was_cold() -> None:
    measured = found()
    measured.again = Pass(samples=1000, seconds=1.0)
    for cached, cold in ((None, False), (0.95, False), (0.2, True)):
        measured.cached = cached
        assert measured.was_cold is cold
    measured.cached, measured.disk = None, None
    assert measured.was_cold
    measured.again = measured.first_pass
    assert not measured.was_cold


def test_percentiles() -> None:
    one = Pass(waits=[0.1 * number for number in range(11)])
    assert [one.percentile(part) for part in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert Pass().percentile(0.5) == 0.0 and Pass().rate == 0.0


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs preadv2")
def test_what_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(os.urandom(4_000_000))
        file.flush()
        os.fsync(file)  # what is not on disk yet is not dropped
    path.read_bytes()
    if page_cache.cached([str(path)]) is None:
        pytest.skip("this filesystem does not say")
    assert page_cache.cached([str(path)]) == 1.0
    page_cache.drop([str(path)])
    assert (page_cache.cached([str(path)]) or 0.0) < 0.5
    assert page_cache.cached([]) is None
