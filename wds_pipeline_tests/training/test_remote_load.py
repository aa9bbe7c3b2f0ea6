"""What reading from a bucket asks of the machine: requests under way, open files, threads, and its end."""

from __future__ import annotations

import signal
import subprocess
import sys

from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.conftest import aws, make_bucket, make_proxy, moto_server
from wds_pipeline_tests.s3.proxy import PATIENCE, Proxy
from wds_pipeline_tests.training.test_remote import TAR, expected, large, proxied, url

__all__ = ["aws", "expected", "large", "make_bucket", "make_proxy", "moto_server", "proxied", "url"]


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
