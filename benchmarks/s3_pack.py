"""Packing small objects from a bucket into shards in a bucket, and uploading a large one.

The server is `rclone serve s3` over a folder, on this machine, where it takes its share of the processors
from everybody: the ratios say what a client costs. And once more as if it were 20 ms away (`delay`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import s3fs

from benchmarks import s3_server
from benchmarks.measure import (
    Contender,
    Section,
    Settings,
    Stopwatch,
    Table,
    Took,
    best,
    cpu,
    in_subprocess,
    log,
    median,
    take_turns,
)
from wds_pipeline.config_storage import Place
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.s3 import servers

_OBJECTS = 5000
_FEWER = 1000  # with a latency: one by one takes a while
_SIZE = 10_000
_SHARD = 250_000_000
_ONE = "one by one: `s3fs` reads into a tar, then `put`"
_COPY = "`rclone copy` to a folder, GNU tar, `rclone copy` back"
_OURS = "wds_pipeline, 2 workers (digest, member index, seal)"
_OURS_ONE = "the same, 1 worker"


def run(settings: Settings) -> Section:
    section = Section("Object stores")
    for count, latency in ((_OBJECTS, 0), (_FEWER, s3_server.LATENCY)):  # before the server looks
        for number in range(count // 10 if settings.quick else count):
            folder = settings.folder / "buckets" / _bucket(latency) / f"{number % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:06d}.bin").write_bytes(os.urandom(_SIZE))
    (settings.folder / "buckets" / "published").mkdir()
    with servers.serve_rclone(settings.folder / "buckets") as server:
        assert server.folder is not None
        with s3_server.reached(server.endpoint):
            section.tables.append(_packing(settings, server.folder, _OBJECTS))
            section.tables.append(_upload(settings))
        with s3_server.farther_away(server.endpoint) as endpoint, s3_server.reached(endpoint):
            section.tables.append(_packing(settings, server.folder, _FEWER, s3_server.LATENCY))
    shutil.rmtree(settings.folder / "buckets")
    return section


def _bucket(latency: int) -> str:
    return f"raw-{latency}-ms"


def _packing(settings: Settings, buckets: Path, count: int, latency: int = 0) -> Table:
    count = count // 10 if settings.quick else count
    raw = _bucket(latency)
    scratch = settings.folder / "scratch"

    def timed(work: Callable[[], None]) -> Took:
        scratch.mkdir()
        watch = Stopwatch()
        work()
        took = watch.took()
        shutil.rmtree(scratch)
        return took

    def one_by_one() -> None:
        store = _s3fs()
        with tarfile.open(scratch / "x.tar", "w") as tar:
            for key in sorted(store.find(raw)):
                data = store.cat_file(key)
                info = tarfile.TarInfo(key.removeprefix(f"{raw}/"))
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
        store.put_file(str(scratch / "x.tar"), "published/x.tar")

    def copied() -> None:
        _rclone("copy", f"lab:{raw}", str(scratch / "raw"), "--transfers", "64", "--checkers", "64")
        subprocess.run(
            ["tar", "cf", scratch / "x.tar", "--sort=name", "-C", scratch / "raw", "."], check=True
        )
        _rclone("copy", str(scratch / "x.tar"), "lab:published")

    def ours(workers: int) -> Took:
        found: dict[str, float] = in_subprocess(
            "pack",
            source=f"s3://{raw}",
            destination="s3://published/ours",
            shards={"max_bytes": count * _SIZE // 4},
            compute={"workers": workers},
        )
        _empty("ours/")
        return Took(found["pack"], found["cpu"])

    contenders = [
        Contender(_ONE, lambda: timed(one_by_one)),
        Contender(_COPY, lambda: timed(copied)),
        Contender(_OURS_ONE, lambda: ours(1)),
        Contender(_OURS, lambda: ours(2)),
    ]
    seconds = take_turns(contenders, min(settings.rounds, 3))
    where = f", {latency} ms away" if latency else ", on this machine"
    title = f"{count:,} objects of {_SIZE // 1000} KB from a bucket into shards in a bucket{where}"
    table = Table(title, ["what", "best s", "median s", "CPU s", "objects/s", "× one by one"])
    for name, rounds in seconds.items():
        table.rows.append(
            [
                name,
                best(rounds),
                median(rounds),
                cpu(rounds),
                count / best(rounds),
                best(seconds[_ONE]) / best(rounds),
            ]
        )
    return table


def _upload(settings: Settings) -> Table:
    size = _SHARD // 10 if settings.quick else _SHARD
    log("a shard to upload")
    block = os.urandom(1_000_000)
    file = settings.folder / "shard.tar"
    with file.open("wb") as out:
        for _ in range(size // len(block)):
            out.write(block)
    store = open_storage(Place(url="s3://published/up"))

    def ours() -> None:
        with store.create("shard.tar") as out, file.open("rb", buffering=0) as data:
            buffer = bytearray(4_000_000)
            while got := data.readinto(buffer):
                out.write(memoryview(buffer)[:got])

    def timed(work: Callable[[], Any]) -> Took:
        watch = Stopwatch()
        work()
        return watch.took()

    rclone = "`rclone copy` of the finished file"
    contenders = [
        Contender(rclone, lambda: timed(lambda: _rclone("copy", str(file), "lab:published/a"))),
        Contender(
            "`s3fs` `put` of the finished file",
            lambda: timed(lambda: _s3fs().put_file(str(file), "published/b/shard.tar")),
        ),
        Contender("wds_pipeline, as it is packed, looked at afterwards", lambda: timed(ours)),
    ]

    def fresh(contender: Contender) -> Contender:
        def run() -> Took:
            took = contender.run()
            _empty("")
            return took

        return Contender(contender.name, run)

    seconds = take_turns([fresh(each) for each in contenders], settings.rounds)
    table = Table(
        f"one shard of {size / 1e6:.0f} MB into a bucket",
        ["what", "best s", "median s", "CPU s", "MB/s", "× `rclone copy`"],
    )
    for name, rounds in seconds.items():
        table.rows.append(
            [
                name,
                best(rounds),
                median(rounds),
                cpu(rounds),
                size / best(rounds) / 1e6,
                best(seconds[rclone]) / best(rounds),
            ]
        )
    file.unlink()
    return table


def _empty(prefix: str) -> None:
    """Not behind the server's back: it remembers folders."""
    client = servers.make_client(os.environ["AWS_ENDPOINT_URL"])
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="published", Prefix=prefix)
    for key in [each["Key"] for page in pages for each in page.get("Contents", [])]:
        client.delete_object(Bucket="published", Key=key)


def _s3fs() -> Any:
    return s3fs.S3FileSystem(
        skip_instance_cache=True,
        # rclone sends the checksum of the whole object with a part of it
        config_kwargs={"response_checksum_validation": "when_required"},
    )


def _rclone(*arguments: str) -> None:
    program = servers.find_rclone()
    assert program is not None
    subprocess.run([program, "--quiet", *arguments], check=True)
