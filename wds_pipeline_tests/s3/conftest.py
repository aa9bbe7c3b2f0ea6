"""S3 servers, started once a test process; buckets and proxies, a test each; nobody's credentials."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack

import pytest

from wds_pipeline_tests.s3 import servers
from wds_pipeline_tests.s3.proxy import Proxy
from wds_pipeline_tests.s3.servers import MakeBucket, S3Server

MakeProxy = Callable[[S3Server], Proxy]


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """rclone: signatures are checked, conditions ignored."""
    with servers.serve_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto: conditions, checksums, unfinished uploads."""
    with servers.serve_moto() as server:
        yield server


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the servers."""
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' credentials in the environment, and nobody else's."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    # The same for all tests: another environment is another session, which takes a while to make.
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", servers.REGION)


@pytest.fixture
def make_bucket() -> Iterator[MakeBucket]:
    """Makes new buckets; they are emptied and removed after the test."""
    made: list[tuple[S3Server, str]] = []

    def make(server: S3Server) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        server.client().create_bucket(Bucket=name)
        made.append((server, name))
        return name

    yield make
    for server, name in made:
        if server.folder is not None:
            shutil.rmtree(server.folder / name, ignore_errors=True)
        else:
            servers.remove_bucket(server.client(), name)


@pytest.fixture
def make_proxy() -> Generator[MakeProxy, None, None]:
    """Puts a proxy before a server, until the end of the test."""
    with ExitStack() as running:
        yield lambda server: running.enter_context(Proxy(server.endpoint).running())
