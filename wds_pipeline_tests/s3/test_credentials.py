"""Who we are, by the usual ways; and one clear error, soon, where that is missing or wrong.

The secret is never shown or stored: not in messages and their causes, logs, pickles, manifests.
"""

from __future__ import annotations

import logging
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.pack import PackJob
from wds_pipeline.dataset.plan import Recipe
from wds_pipeline.errors import DestinationError, SourceError, WdsPipelineError, may_pass
from wds_pipeline.storage import Place, Storage, open_storage
from wds_pipeline_tests.s3 import faults
from wds_pipeline_tests.s3.conftest import MakeProxy
from wds_pipeline_tests.s3.project import S3Project, open_s3, place
from wds_pipeline_tests.s3.servers import KEY, SECRET, MakeBucket, S3Server

TOKEN = "a-session-token-of-the-tests-0123456789"
WRONG = "a-wrong-secret-of-the-tests/9876543210"
# A first contact is given up soon: what is wrong is told within seconds.
pytestmark = pytest.mark.timeout(60)

Verb = Callable[[Storage], Any]
VERBS: dict[str, Verb] = {
    "check": lambda s: s.check(),
    "list": lambda s: list(s.list_keys()),
    "read": lambda s: s.read("k"),
    "stat": lambda s: s.stat("k"),
    "fill": lambda s: s.read_into("k", memoryview(bytearray(3)), ""),
    "put": lambda s: s.put("k", b"new"),
}


def refused(storage: Storage, verb: str) -> str:
    """The one error, of the part's kind, that names the URL and is made after one request."""
    kind = SourceError if storage.place.part == "source" else DestinationError
    with pytest.raises(kind) as error:
        VERBS[verb](storage)
    text = str(error.value)
    assert text.startswith(f"small: {storage.place.part}.url: ")
    assert storage.url in text
    assert "\n" not in text
    assert storage.usage.retries == 0
    check_clean("".join(traceback.format_exception(error.value)))
    return text


def check_clean(text: str) -> None:
    """No secret is in it."""
    for secret in (SECRET, WRONG, TOKEN):
        assert secret not in text


def test_no_credentials(server: S3Server, make_bucket: MakeBucket, no_keys: None) -> None:
    bucket = make_bucket(server)
    for verb in VERBS:
        text = refused(open_s3(server.endpoint, bucket, part="source"), verb)
        for said in (
            "no credentials",
            "default profile",
            "AWS_ACCESS_KEY_ID",
            "source.storage.profile",
        ):
            assert said in text


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


def test_a_wrong_secret(
    rclone_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(rclone_server)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    for verb in VERBS:
        text = refused(open_s3(rclone_server.endpoint, bucket), verb)
        if verb != "stat":  # the answer to HEAD has no body to say it in
            assert "SignatureDoesNotMatch" in text
            assert "its secret key is not that of its access key" in text
        assert "the environment's AWS_ACCESS_KEY_ID" in text


def test_an_unknown_key(
    rclone_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = make_bucket(rclone_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODYKNOWSTHIS1")
    assert "InvalidAccessKeyId" in refused(open_s3(rclone_server.endpoint, bucket), "check")


def write_profiles(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


@pytest.mark.parametrize("by", ["config", "environment"])
def test_an_unknown_profile(
    moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    write_profiles(tmp_path, monkeypatch, "[profile known]\nregion = us-east-1\n")
    given = {"profile": "teem"} if by == "config" else {}
    if by == "environment":
        monkeypatch.setenv("AWS_PROFILE", "teem")
    for verb in ("check", "fill"):
        text = refused(open_s3(moto_server.endpoint, "bucket", part="source", **given), verb)
        assert "'teem'" in text or "(teem)" in text


@pytest.mark.parametrize("by", ["config", "environment"])
def test_a_profile_has_it_all(
    rclone_server: S3Server,
    make_bucket: MakeBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
) -> None:
    """Key, secret, region and endpoint; with it, every verb gets through."""
    bucket = make_bucket(rclone_server)
    text = (
        f"[profile team]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        f"region = eu-west-1\nendpoint_url = {rclone_server.endpoint}\n"
        f"[profile other]\naws_access_key_id = {KEY}\naws_secret_access_key = {WRONG}\n"
        f"endpoint_url = {rclone_server.endpoint}\n"
    )
    write_profiles(tmp_path, monkeypatch, text)
    given = {"profile": "team"} if by == "config" else {}
    if by == "environment":
        monkeypatch.setenv("AWS_PROFILE", "team")
    here = Place.model_validate(
        {"url": f"s3://{bucket}/root", "storage": given, "dataset": "small"}
    )
    get_through(open_storage(here))
    other = here.model_copy(
        update={"storage": here.storage.model_copy(update={"profile": "other"})}
    )
    assert "'other'" in refused(open_storage(other), "check")


def get_through(storage: Storage) -> None:
    storage.put("k", b"one")
    for verb in VERBS.values():
        verb(storage)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_endpoint_of_the_environment(
    rclone_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bucket = make_bucket(rclone_server)
    monkeypatch.setenv(name, rclone_server.endpoint)
    get_through(open_storage(Place(url=f"s3://{bucket}/root", dataset="small")))


def test_a_session_token_goes_along(
    rclone_server: S3Server,
    make_bucket: MakeBucket,
    make_proxy: MakeProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = make_proxy(rclone_server)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    get_through(open_s3(proxy.endpoint, make_bucket(rclone_server)))
    for each in proxy.requests:
        said = {name.lower(): value for name, value in (each.headers | each.query).items()}
        assert said["x-amz-security-token"] == TOKEN


@pytest.mark.parametrize(
    "fault",
    [faults.DENIED, faults.RESET, faults.STALL, faults.SLOW_DOWN],
    ids=lambda each: each.name,
)
def test_nothing_secret_in_what_went_wrong(
    moto_server: S3Server,
    make_proxy: MakeProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: faults.Fault,
) -> None:
    """Not in the message, not in what caused it, not in a log."""
    proxy = make_proxy(moto_server)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    proxy.on(fault)
    caplog.set_level(logging.INFO)
    storage = open_s3(proxy.endpoint, "bucket", timeout_seconds=0.3, retry_seconds=0)
    for verb in VERBS.values():
        with pytest.raises(WdsPipelineError) as error:
            verb(storage)
        check_clean("".join(traceback.format_exception(error.value)))
    check_clean(caplog.text)


def test_no_such_bucket(server: S3Server) -> None:
    for verb in VERBS.keys() - {"stat"}:
        text = refused(open_s3(server.endpoint, "no-such-bucket-of-ours", part="source"), verb)
        assert "has no such bucket" in text
        assert server.endpoint in text
        assert "source.url" in text


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first contact gives up even sooner than in life, where it takes some seconds."""
    monkeypatch.setattr("wds_pipeline.storage.s3.objects._CONTACT_SECONDS", 0.5)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("part", ["source", "destination"])
def test_nobody_listens(part: str) -> None:
    """`check` gives up soon, whatever the budget of a build is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        storage = open_s3(endpoint, "bucket", part=part, retry_seconds=3600)
        with pytest.raises((SourceError, DestinationError)) as error:
            storage.check()
    text = str(error.value)
    assert text.startswith(f"small: {part}.url: s3://bucket/root: ")
    assert f"{part}.storage.endpoint_url" in text
    assert "connection refused" in text
    assert may_pass(error.value)


@pytest.mark.usefixtures("hasty")
def test_somebody_listens_and_says_nothing(moto_server: S3Server, make_proxy: MakeProxy) -> None:
    """As a firewall does: soon too, although a build waits longer for an answer."""
    proxy = make_proxy(moto_server)
    proxy.on(faults.STALL)
    storage = open_s3(proxy.endpoint, "bucket", timeout_seconds=3600, retry_seconds=3600)
    with pytest.raises(DestinationError, match=r"s3://bucket/root: .*timed out") as error:
        storage.check()
    assert may_pass(error.value)


@pytest.mark.parametrize(
    ("status", "code"),
    [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")],
)
def test_another_region(
    moto_server: S3Server, make_proxy: MakeProxy, status: int, code: str
) -> None:
    """As Amazon answers those who ask in the wrong region."""
    proxy = make_proxy(moto_server)
    proxy.on(faults.answer(status, code, {"x-amz-bucket-region": "eu-west-1"}))
    for verb in VERBS.keys() - {"stat"}:
        text = refused(open_s3(proxy.endpoint, "bucket"), verb)
        assert "region" in text
        assert "destination.storage.region" in text


@pytest.mark.parametrize("verb", ["check", "list"])
def test_something_else_listens(moto_server: S3Server, make_proxy: MakeProxy, verb: str) -> None:
    """A console's web page instead of S3, say."""
    proxy = make_proxy(moto_server)
    proxy.on(faults.page("<!DOCTYPE html>\n<html><body>Welcome</body></html>"))
    text = refused(open_s3(proxy.endpoint, "bucket"), verb)
    assert "found a web page" in text
    assert "destination.storage.endpoint_url" in text


def test_anonymous(moto_server: S3Server, make_bucket: MakeBucket, make_proxy: MakeProxy) -> None:
    """Nothing is signed, and nobody's credentials are asked for."""
    proxy, bucket = make_proxy(moto_server), make_bucket(moto_server)
    public = {"Key": "root/k", "Body": b"one", "ACL": "public-read"}
    moto_server.client().put_object(Bucket=bucket, **public)
    storage = open_s3(proxy.endpoint, bucket, part="source", anonymous=True)
    for verb in VERBS.keys() - {"put"}:
        VERBS[verb](storage)
    for each in proxy.requests:
        assert "authorization" not in each.headers
        assert not [name for name in each.query if name.lower().startswith("x-amz-")]


def test_a_proxy_of_the_environment(
    rclone_server: S3Server,
    make_bucket: MakeBucket,
    make_proxy: MakeProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HTTP_PROXY is used by every verb, and NO_PROXY is kept to."""
    bucket, proxy = make_bucket(rclone_server), make_proxy(rclone_server)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy.endpoint)
    monkeypatch.setenv("http_proxy", proxy.endpoint)
    storage = open_s3(rclone_server.endpoint, bucket, retry_seconds=0)
    get_through(storage)
    assert len(proxy.requests) == storage.usage.requests


# Nothing secret in what is kept or sent to workers.


def test_what_workers_are_sent(moto_server: S3Server) -> None:
    where = place(moto_server.endpoint, "bucket")
    storage = open_storage(where)
    with pytest.raises(WdsPipelineError):
        storage.check()  # whatever a session keeps, it keeps now
    job = PackJob(Recipe.__new__(Recipe), where, where)
    for each in (where, storage, storage.usage, job.source):
        check_clean(repr(each))
    for each in (where, storage.place, storage.usage, job.destination):
        check_clean(pickle.dumps(each).decode("latin-1"))
    again = pickle.loads(pickle.dumps(where))
    assert again == where


def test_a_build_keeps_nothing_secret(
    rclone_server: S3Server,
    make_bucket: MakeBucket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In no object, no log, no output."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    project = S3Project(
        rclone_server, make_bucket(rclone_server), destination={"commit": "single_writer"}
    )
    project.add(0, 6)
    assert project.build().status == "published"
    objects = project.objects()
    assert any(path.endswith("manifest.json") for path in objects)
    for data in objects.values():
        check_clean(data.decode("latin-1"))
        assert KEY.encode() not in data
    check_clean(caplog.text + "".join(capsys.readouterr()))
    assert KEY not in project.config().model_dump_json()


def test_a_build_with_a_wrong_secret(
    rclone_server: S3Server, make_bucket: MakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One error that names the end where it happened; nothing is written."""
    project = S3Project(rclone_server, make_bucket(rclone_server))
    project.add(0, 3)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    with pytest.raises((SourceError, DestinationError), match="SignatureDoesNotMatch") as error:
        project.build(retry_seconds=3600)
    assert f"s3://{project.bucket}/" in str(error.value)
    check_clean("".join(traceback.format_exception(error.value)))
    monkeypatch.undo()
    assert project.objects() == {}


def test_the_yaml_file_may_not_hold_a_secret() -> None:
    for bad in ({"secret": "x"}, {"key": "x"}, {"options": {"secret": "x"}}):
        with pytest.raises(ValueError, match=r"secret|key|credential"):
            DatasetConfig.model_validate(
                {
                    "name": "small",
                    "source": {"url": "s3://a/b", "storage": bad},
                    "destination": {"url": "s3://c/d"},
                }
            )
