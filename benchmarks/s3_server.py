"""An S3 server on this machine, near or as if it were farther away, and how everybody finds it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from benchmarks.measure import HERE
from wds_pipeline_tests.s3 import servers

LATENCY = 20  # milliseconds, there and back: as within a region of a cloud


@contextmanager
def farther_away(endpoint: str) -> Iterator[str]:
    """The same server, `LATENCY` away (`delay`)."""
    port = str(urlsplit(endpoint).port)
    command = [sys.executable, "-m", "benchmarks.delay", port, str(LATENCY)]
    process = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def reached(endpoint: str) -> Iterator[None]:
    """The environment by which everybody finds the server."""
    wanted = {
        "AWS_ENDPOINT_URL": endpoint,
        "S3_ENDPOINT_URL": endpoint,  # MosaicML streaming
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_REGION": servers.REGION,
        "AWS_DEFAULT_REGION": servers.REGION,
        # rclone sends the checksum of the whole object with a part of it
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "RCLONE_CONFIG_LAB_TYPE": "s3",
        "RCLONE_CONFIG_LAB_PROVIDER": "Rclone",
        "RCLONE_CONFIG_LAB_ENDPOINT": endpoint,
        "RCLONE_CONFIG_LAB_ACCESS_KEY_ID": servers.KEY,
        "RCLONE_CONFIG_LAB_SECRET_ACCESS_KEY": servers.SECRET,
        "RCLONE_CONFIG": "/dev/null",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
