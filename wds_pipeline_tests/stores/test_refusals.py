"""What is wrong with a store is said once, clearly, within seconds, without a secret; or it passes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config_storage import StorageConfig
from wds_pipeline.errors import (
    ConfigError,
    DestinationError,
    SourceChanged,
    SourceError,
    WdsPipelineError,
    may_pass,
)
from wds_pipeline.storage import Place, Storage, open_storage
from wds_pipeline_tests.stores.backends import AZURITE, Backends, gs_backend, serve_gcs
from wds_pipeline_tests.stores.conftest import prepare
from wds_pipeline_tests.stores.sftp_server import serve_paramiko
from wds_pipeline_tests.stores.verbs import listing, read_chunks, read_whole
from wds_pipeline_tests.stores.web_server import serve_web


def place(url: str, part: Any = "source", **storage: Any) -> Place:
    config = StorageConfig.model_validate(storage)
    return Place(url=url, storage=config, dataset="small", part=part)


# ------------------------------------------------------------------------------- before anything is asked


@pytest.mark.parametrize(
    ("url", "storage", "message"),
    [
        ("nope://x/y", {}, r"small: source.url: nope://x/y: no store is known for nope://"),
        ("gs://b/x", {"profile": "p"}, r"storage.profile is not for gs://.*storage.options"),
        ("az://b/x", {"endpoint_url": "http://x"}, r"storage.endpoint_url is not for az://"),
        ("memory://x", {"sse": "AES256"}, r"storage.sse is not for memory://"),
        ("sftp://h/x", {"anonymous": True}, r"storage.anonymous is not for sftp://"),
        ("https://h/x", {"requester_pays": True}, r"storage.requester_pays is not for https://"),
    ],
)
def test_what_cannot_be_opened(url: str, storage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_storage(place(url, **storage))


@pytest.mark.parametrize(
    ("scheme", "package", "extra"),
    [
        ("gs", "gcsfs", "gcs"),
        ("az", "adlfs", "azure"),
        ("abfs", "adlfs", "azure"),
        ("sftp", "paramiko", "sftp"),
        ("hf", "huggingface_hub", "huggingface"),
        ("https", "aiohttp", "http"),
        ("smb", "smbclient", ""),
    ],
)
def test_a_package_that_is_not_installed(scheme: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from wds_pipeline.storage import Place, open_storage\n"
        "from wds_pipeline.errors import ConfigError\n"
        f"try: open_storage(Place(url='{scheme}://a/b', dataset='small', part='source'))\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith(f"small: source.url: {scheme}://a/b: a package for {scheme}://")
    assert (f"pip install 'wds-pipeline[{extra}]'" if extra else "nstall") in said.stdout


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://h/x", "a web server can be a source, not a destination"),
        ("hf://datasets/me/data", "a repository of the Hub is no destination.*hf://buckets/"),
    ],
)
def test_what_is_no_destination(url: str, message: str) -> None:
    with pytest.raises(DestinationError, match=f"small: destination.url: {url}: {message}"):
        open_storage(place(url, "destination"))
    open_storage(place(url, "source"))
    open_storage(url)  # somebody reads what is published there


# --------------------------------------------------------------------------- the first look at a store


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def mute_server() -> Iterator[int]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(storage: Storage) -> WdsPipelineError:
    """What `check` says."""
    with pytest.raises(SourceError) as caught:
        storage.check()
    assert not isinstance(caught.value, SourceChanged)
    return caught.value


AWAY = {
    "http": lambda port: place(f"http://127.0.0.1:{port}/x"),
    "sftp": lambda port: place(f"sftp://me@127.0.0.1:{port}/x"),
    "gs": lambda port: place(
        "gs://bucket/x", anonymous=True, options={"endpoint_url": f"http://127.0.0.1:{port}"}
    ),
    "az": lambda port: place("az://container/x"),
}


@pytest.mark.parametrize("kind", AWAY)
@pytest.mark.parametrize("state", ["closed", "mute"])
@pytest.mark.timeout(60)
def test_a_server_that_is_away(
    kind: str, state: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with mute_server() as mute:
        port = closed_port() if state == "closed" else mute
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", AZURITE.format(port=port))
        found = AWAY[kind](port)
        patience = found.storage.model_copy(update={"timeout_seconds": 2, "retry_seconds": 100})
        error = refusal(open_storage(found.model_copy(update={"storage": patience})))
    assert found.url in str(error)
    assert "cannot be reached or does not answer" in str(error)
    assert may_pass(error)
    assert "Eby8vdM" not in str(error)


def test_a_host_that_nobody_knows() -> None:
    for url in ("http://nowhere.invalid/x", "sftp://nowhere.invalid/x"):
        error = refusal(open_storage(place(url)))
        assert str(error).startswith(f"small: source.url: {url}: ")


def test_a_key_that_is_not_let_in(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with serve_paramiko(tmp_path) as (url, _), serve_paramiko(tmp_path / "other") as (_, key):
        options = {"key_filename": str(key), "look_for_keys": False, "allow_agent": False}
        error = refusal(open_storage(place(f"{url}{tmp_path}", options=options)))
    assert "access was refused" in str(error)
    assert "the SSH agent" in str(error)
    assert not may_pass(error)


def test_azures_wrong_key_and_container(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = prepare(backends.get("az"), monkeypatch)
    error = refusal(open_storage(place("az://no-such-container/x")))
    assert "az://no-such-container/x: not found" in str(error)
    connection = backend.environment["AZURE_STORAGE_CONNECTION_STRING"]
    wrong = connection.replace("Eby8vdM02xNOcqFl", "AAAAAAAAAAAAAAAA")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", wrong)
    # Connections of a process are kept, with the credentials that they were made with.
    error = refusal(open_storage(place(backend.url, concurrency=7)))
    assert "access was refused" in str(error)
    assert "AZURE_STORAGE_CONNECTION_STRING" in str(error)
    assert "AAAAAAAA" not in str(error)
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    error = refusal(open_storage(place(backend.url, concurrency=8)))
    assert backend.url in str(error)


def test_a_root_that_is_not_there(tmp_path: Path, backends: Backends) -> None:
    with serve_web(tmp_path) as url:
        assert "not found" in str(refusal(open_storage(place(f"{url}/none"))))
    backend = backends.get("sftp")
    assert "not found" in str(refusal(backend.open("source")))
    with pytest.raises(SourceError, match="not found"):
        list(backend.open("source").list_keys())
    backend.open("destination").check()  # it will be made


def test_googles_missing_bucket(backends: Backends) -> None:
    backend = backends.get("gs")
    found = backend.place("source").model_copy(update={"url": "gs://no-such-bucket/x"})
    assert "gs://no-such-bucket/x: not found" in str(refusal(open_storage(found)))


# ------------------------------------------------------------------------ stores that overwrite silently


def check_overwriting(storage: Storage, single: Storage) -> None:
    with pytest.raises(DestinationError, match=r"overwrites.*destination.commit: single_writer"):
        storage.check_put_if_absent()
    with pytest.raises(DestinationError, match="single_writer"):
        storage.put_if_absent("f", b"x")
    assert storage.is_empty(), "the probe is gone"
    single.check_put_if_absent()
    assert single.put_if_absent("f", b"x")
    assert not single.put_if_absent("f", b"y")
    assert single.read("f") == b"x"


def test_an_emulator_without_conditions() -> None:
    with serve_gcs() as endpoint:
        backend = gs_backend(endpoint, "root")
        single = backend.place().model_copy(update={"single_writer": True})
        check_overwriting(backend.open(), open_storage(single))


def test_an_sftp_server_whose_rename_replaces(tmp_path: Path) -> None:
    with serve_paramiko(tmp_path, exclusive=False) as (url, key):
        options = {"key_filename": str(key), "look_for_keys": False}
        found = place(f"{url}{tmp_path}/root", "destination", options=options)
        single = found.model_copy(update={"single_writer": True})
        check_overwriting(open_storage(found), open_storage(single))


# -------------------------------------------------------------------------------- faults on the way


class Faults(BaseHTTPRequestHandler):
    """Answers as it is told to, once each, and then well."""

    protocol_version = "HTTP/1.1"
    data = b"the content of a file"
    left: list[str]

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        """A fault, or the file, to whoever still listens."""
        with suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        fault = self.left.pop() if self.left else "none"
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault == "stall":
            time.sleep(3)
        self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(self.data[:5])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif self.command == "GET":
            self.wfile.write(self.data)


@contextmanager
def faulty(*faults: str) -> Iterator[str]:
    handler = type("Handler", (Faults,), {"left": list(faults)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("fault", ["503", "429", "500", "reset", "cut", "stall"])
def test_what_passes_is_tried_again(fault: str) -> None:
    with faulty(fault, fault) as url:
        storage = open_storage(place(url, retry_seconds=20, timeout_seconds=1))
        assert read_whole(storage, "f", len(Faults.data), 'etag:"1"') == Faults.data
        # aiohttp itself asks again once when a connection was reset.
        assert storage.usage.retries in ((1, 2) if fault == "reset" else (2,))
        assert storage.usage.get == storage.usage.retries + 1


@pytest.mark.parametrize("fault", ["503", "reset", "cut"])
def test_when_patience_is_over(fault: str) -> None:
    with faulty(*[fault] * 1000) as url:
        storage = open_storage(place(url, retry_seconds=0.5, timeout_seconds=1))
        for read in (read_whole, read_chunks):
            with pytest.raises(SourceError) as caught:
                read(storage, "f", len(Faults.data), 'etag:"1"')
            assert not isinstance(caught.value, SourceChanged), "the file may be well"
            assert may_pass(caught.value)
            assert f"{url}/f" in str(caught.value)
        assert storage.usage.retries > 0


def test_what_does_not_pass_is_not_tried_again() -> None:
    with faulty("403") as url:
        storage = open_storage(place(url))
        with pytest.raises(SourceChanged, match="cannot be read"):
            read_whole(storage, "f", len(Faults.data), 'etag:"1"')
        assert storage.usage.get == 1
    with faulty("401") as url, pytest.raises(SourceError, match="access was refused") as caught:
        read_whole(open_storage(place(url)), "f", len(Faults.data), 'etag:"1"')
    assert not isinstance(caught.value, SourceChanged), "it is not this file's fault"


# ------------------------------------------------------------------------------- other web servers


@pytest.mark.parametrize(("etags", "ranges"), [(False, True), (True, False), (False, False)])
def test_plainer_web_servers(tmp_path: Path, etags: bool, ranges: bool) -> None:
    data = bytes(range(256)) * 80_000
    (tmp_path / "f").write_bytes(data)
    (tmp_path / "g").write_bytes(b"small")
    with serve_web(tmp_path, etags=etags, ranges=ranges) as url:
        storage = open_storage(place(url))
        found = listing(storage)
        assert all(state.startswith("etag:" if etags else "mtime:") for _, state in found.values())
        assert read_chunks(storage, "f", *found["f"]) == data
        assert read_whole(storage, "g", *found["g"]) == b"small"
        with storage.open("f") as file:
            file.seek(10_000_000)
            assert file.read(1000) == data[10_000_000:10_001_000]


def test_a_web_server_without_an_index(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "index.html").write_text(
        "<a href='f'>f</a> <a href='http://elsewhere.invalid/x'>x</a>"
    )
    with serve_web(tmp_path) as url:
        storage = open_storage(place(url))
        assert list(listing(storage)) == ["f"], "an index of one's own will do"
    with faulty() as url, pytest.raises(SourceError, match="found no index page"):
        list(open_storage(place(url)).list_keys())


@pytest.mark.parametrize(
    "link",
    [
        "?C=N;O=D",
        "../",
        "/",
        "/elsewhere/x",
        "http://elsewhere.invalid/x",
        "#top",
        "a/b",
        "mailto:x@y",
    ],
)
def test_links_that_are_no_files(tmp_path: Path, link: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "f").write_bytes(b"x")
    (tmp_path / "raw" / "index.html").write_text(f'<a href="{link}">x</a><A HREF="./f">f</A>')
    with serve_web(tmp_path) as url:
        assert list(listing(open_storage(place(f"{url}/raw")))) == ["f"]
