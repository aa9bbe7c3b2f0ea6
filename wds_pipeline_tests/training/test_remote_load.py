"""What reading from a bucket asks of the machine: requests under way, open files, threads, and its end."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wds_pipeline.training import Dataset, open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.conftest import MakeProxy, aws, make_bucket, make_proxy, moto_server
from wds_pipeline_tests.s3.proxy import PATIENCE, Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server
from wds_pipeline_tests.training.conftest import stored
from wds_pipeline_tests.training.test_remote import TAR, expected, large, proxied, upload, url

__all__ = ["aws", "expected", "large", "make_bucket", "make_proxy", "moto_server", "proxied", "url"]


@pytest.fixture
def scattered(
    moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy, tmp_path: Path
) -> tuple[Proxy, Dataset, list[bytes]]:
    """400 captions with 40 KB of something else between them, and what they are."""
    options = {"samples": {"required": [], "fields": {"bin": ["bin"], "txt": ["txt"]}}}
    project = Project(tmp_path, {**options, "shards": {"max_bytes": 2_000_000}})
    for number in range(400):
        project.write(f"{number:03d}.bin", random.Random(number).randbytes(40_000))
        project.write(f"{number:03d}.txt", f"caption {number}")
    project.build()
    url, proxy = upload(project, moto_server, make_bucket(moto_server)), make_proxy(moto_server)
    storage = {"endpoint_url": proxy.endpoint, "concurrency": 200, "timeout_seconds": PATIENCE}
    dataset = open_dataset(url, storage=storage, fields=["txt"])
    return proxy, dataset, [sample["txt"] for _, sample in stored(project)]


def test_hundreds_of_requests(scattered: tuple[Proxy, Dataset, list[bytes]]) -> None:
    """Few at first, and more as they are answered: at last as many as `concurrency` says."""
    proxy, dataset, captions = scattered
    held = proxy.on(faults.LATE, "GET", TAR)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(each["txt"] for each in dataset))
    thread.start()
    for count in (4, 20, 100, 200):  # each answer lets four more begin
        proxy.wait_held(count)
        if count == 200:
            time.sleep(0.3)  # a moment for one more, if there were any
            assert proxy.held == 200
            proxy.remove(held)
        proxy.release()
    thread.join()
    assert found == captions


def test_indexes_that_were_forgotten(scattered: tuple[Proxy, Dataset, list[bytes]]) -> None:
    """Several are asked for at a time, as when they were not known yet."""
    proxy, dataset, captions = scattered
    whole = [list(range(len(dataset)))]

    def read() -> list[bytes]:
        return [each["txt"] for each in dataset.reader.read_ahead(whole, ["txt"])]

    assert read() == captions
    dataset.catalog._members.clear()
    held = proxy.on(faults.LATE, "GET", "members")
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(read()))
    thread.start()
    proxy.wait_held(4)
    proxy.remove(held)
    proxy.release()
    thread.join()
    assert found == captions


def test_interrupted_while_the_store_is_away(proxied: tuple[Proxy, str]) -> None:
    """The process ends, and does not try for as long as a job would."""
    proxy, url = proxied
    rule = proxy.on(faults.SLOW_DOWN, "GET", TAR)
    program = (
        "import sys\n"
        "from wds_pipeline.training import open_dataset\n"
        "storage = {'endpoint_url': sys.argv[2], 'retry_seconds': 10_000}\n"
        "list(open_dataset(sys.argv[1], storage=storage))\n"
    )
    command = [sys.executable, "-c", program, url, proxy.endpoint]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            proxy.wait_for(rule, hits=8)
            process.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
