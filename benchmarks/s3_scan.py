"""Listing the keys of a bucket: seconds, requests, memory, as the number of keys grows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import s3fs

from benchmarks.measure import HERE, Section, Settings, Stopwatch, Table, in_subprocess, log
from wds_pipeline_tests.s3 import servers

_COUNTS = (30_000, 100_000, 300_000, 1_000_000)
_PEER = 100_000  # keys that s3fs lists: it takes a while


def run(settings: Settings) -> Section:
    counts = _COUNTS[:2] if settings.quick else _COUNTS
    table = Table(
        "keys listed, a thousand in a folder, each count in a fresh process",
        ["keys", "s", "CPU s", "keys/s", "LIST requests", "peak MB", "bytes a key above the least"],
    )
    base = None
    for count in counts:
        with _bucket(count):
            found: dict[str, Any] = in_subprocess("list_keys", url="s3://bucket", count=count)
        log(f"{count:,} keys: {found['seconds']:.2f} s")
        base = base or (count, found["peak"])
        above = (found["peak"] - base[1]) / (count - base[0]) if count > base[0] else 0.0
        table.rows.append(
            [
                count,
                found["seconds"],
                found["cpu"],
                count / found["seconds"],
                found["requests"],
                found["peak"] / 1e6,
                above,
            ]
        )
    note = "The server makes its answers up, on the same two cores: it takes more of them than the client."
    return Section("Listing buckets", [table], [note, _peer(min(_PEER, counts[-1]))])


def _peer(count: int) -> str:
    with _bucket(count):
        watch = Stopwatch()
        listed = len(s3fs.S3FileSystem(skip_instance_cache=True).find("bucket", withdirs=False))
        took = watch.took()
        if listed != count:
            raise RuntimeError(f"s3fs listed {listed:,} of {count:,} keys")
        ours: dict[str, Any] = in_subprocess("list_keys", url="s3://bucket", count=count)
    return (
        f"`s3fs.find` of {count:,} such keys took {took.seconds:.1f} s ({took.cpu:.1f} of a processor); "
        f"ours {ours['seconds']:.2f} s ({ours['cpu']:.2f}), "
        f"{took.seconds / ours['seconds']:.0f} times as fast."
    )


@contextmanager
def _bucket(count: int) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.s3_keys", str(count)]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(process.stdout.readline())}",
            "AWS_ACCESS_KEY_ID": servers.KEY,
            "AWS_SECRET_ACCESS_KEY": servers.SECRET,
            "AWS_REGION": servers.REGION,
        }
        yield
    finally:
        process.terminate()
        process.wait()
