"""The way to one bucket: the clients of this process, made once, and their credentials.

Two clients. botocore asks for everything, and knows where credentials, regions, endpoints and proxies
are usually found. obstore gets small objects: a tenth of the time for each, and without Python's lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import botocore.session
import urllib3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import NoCredentialsError
from botocore.loaders import create_loader
from botocore.utils import get_environ_proxies
from fsspec.config import conf as fsspec_conf
from obstore.store import S3Store
from pydantic import ValidationError

from wds_pipeline.config_storage import Place, StorageConfig
from wds_pipeline.errors import ConfigError
from wds_pipeline.storage.base import Usage
from wds_pipeline.storage.retry import persist
from wds_pipeline.storage.s3.errors import explain

_CONNECT_SECONDS = 5.0
_KEPT = timedelta(minutes=2)  # how long obstore keeps credentials before it asks again
_UPLOADS = 4  # parts of one shard under way
Result = TypeVar("Result")
_lock = threading.Lock()
# So that no thread has it at a fork: the child would wait for that thread for ever.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def session_for(place: Place) -> S3Session:
    """This process's session for a place. Raises nothing: clients are made when they are needed."""
    bucket = urlsplit(place.url).netloc
    with _lock:
        return _session(bucket, place.storage.model_dump_json(), os.getpid(), _environment())


def _environment() -> tuple[tuple[str, str], ...]:
    """What of the environment decides who we are: another session where it is another."""
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "FSSPEC_"))))


@cache
def _session(bucket: str, config: str, pid: int, environment: object) -> S3Session:
    return S3Session(bucket, StorageConfig.model_validate_json(config))


@cache
def _loader() -> Any:
    """The descriptions of S3's API, which take a while to read."""
    return create_loader()


class S3Session:
    """The clients for one bucket, in one process."""

    def __init__(self, bucket: str, config: StorageConfig) -> None:
        self.bucket = bucket
        self.config = config
        known = fsspec_conf.get("s3", {})  # where users of s3fs keep their settings
        given = known.get("client_kwargs", {})
        self._endpoint = (
            config.endpoint_url or known.get("endpoint_url") or given.get("endpoint_url")
        )
        self._region = config.region or given.get("region_name")
        self._keys = (known.get("key"), known.get("secret"), known.get("token"))
        self._profile = config.profile or known.get("profile")
        self.anonymous = config.anonymous or bool(known.get("anon"))
        self._making = threading.RLock()

    @property
    def profile(self) -> str:
        """Who we are, for messages."""
        if self.anonymous:
            return "no signature (anonymous)"
        name = (
            self._profile or os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
        )
        if name:
            return f"the profile {name!r}"
        if os.environ.get("AWS_ACCESS_KEY_ID"):
            return "the environment's AWS_ACCESS_KEY_ID"
        return "the default profile"

    @property
    def server(self) -> str:
        """Who is asked, for messages."""
        found = self._endpoint
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            found = found or os.environ.get(name)
        return found or "its endpoint"

    def call(
        self,
        kind: str,
        work: Callable[[], Result],
        place: Place,
        usage: Usage,
        where: str,
        seconds: float | None = None,
    ) -> Result:
        """Asks, again as long as it may help, and tells errors as `explain` does; FileNotFoundError
        is left as it is.

        `kind` is what is counted, `where` the URL for messages, `seconds` the budget for trying.
        """

        def attempt() -> Result:
            usage.count(kind)
            return work()

        budget = self.config.retry_seconds if seconds is None else seconds
        return persist(
            attempt,
            budget,
            usage,
            lambda error: explain(error, place, where, self.profile, self.server),
        )

    @cached_property
    def _core(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self._profile)
        session.register_component("data_loader", _loader())
        return session

    @cached_property
    def client(self) -> Any:
        """botocore's client, which never tries again by itself. Raises botocore's errors."""
        with self._making:
            made = self.__dict__.get("client")
            return (
                made
                if made is not None
                else self._make_client(UNSIGNED if self.anonymous else "s3v4")
            )

    def _make_client(self, signature: Any) -> Any:
        key, secret, token = self._keys
        style = self.config.addressing_style
        if not self.anonymous and key is None and self._core.get_credentials() is None:
            raise NoCredentialsError
        config = Config(
            signature_version=signature,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=self.config.timeout_seconds,
            max_pool_connections=self.config.concurrency + _UPLOADS,
            retries={"total_max_attempts": 1},
            # Others than Amazon refuse botocore's checksums; each part is signed with its SHA-256.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style, "payload_signing_enabled": True},
        )
        region = self._region or self._core.get_config_variable("region")
        self._check_endpoint()
        return self._core.create_client(
            "s3",
            region_name=region or os.environ.get("AWS_REGION") or "us-east-1",
            endpoint_url=self._endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=config,
        )

    def _check_endpoint(self) -> None:
        """Raises ConfigError for one of the environment that is none: the configuration's is checked
        when it is read."""
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            found = os.environ.get(name)
            if found:
                try:
                    StorageConfig(endpoint_url=found)
                except ValidationError as error:
                    what = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ConfigError(f"{name} of the environment: {what}") from None

    @cached_property
    def extra(self) -> dict[str, str]:
        """Arguments of every request."""
        return {"RequestPayer": "requester"} if self.config.requester_pays else {}

    @cached_property
    def encryption(self) -> dict[str, str]:
        """Arguments of every request that makes an object."""
        found: dict[str, str] = {}
        if self.config.sse:
            found["ServerSideEncryption"] = self.config.sse
        if self.config.sse_kms_key:
            found["SSEKMSKeyId"] = self.config.sse_kms_key
        return found

    @cached_property
    def reader(self) -> S3Store:
        """obstore's client. Raises botocore's errors."""
        with self._making:
            return self.__dict__.get("reader") or self._make_reader()

    def _make_reader(self) -> S3Store:
        client = self.client
        # botocore's own idea of where the bucket is.
        sample = client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": "x"}
        )
        parts = urlsplit(sample)
        in_path = parts.path.startswith(f"/{self.bucket}/")
        timeout = timedelta(seconds=self.config.timeout_seconds)
        options: Any = {
            "allow_http": parts.scheme == "http",
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "read_timeout": timeout,
            "timeout": 4 * timeout,
        }
        authority = self._authority()
        if authority:
            options["root_certificate"] = Path(authority).read_text()
        proxy = get_environ_proxies(sample).get(parts.scheme)
        if proxy:
            options["proxy_url"] = proxy
        signed: dict[str, Any] = {"skip_signature": True}
        if not self.anonymous:
            signed = {"credential_provider": self._credentials}
        return S3Store(
            self.bucket,
            endpoint=f"{parts.scheme}://{parts.netloc}",
            region=client.meta.region_name,
            virtual_hosted_style_request=not in_path,
            request_payer=self.config.requester_pays,
            client_options=options,
            retry_config={"max_retries": 0, "retry_timeout": timedelta(0)},
            **signed,
        )

    def _credentials(self) -> Any:
        """For obstore: what botocore has, which renews it in time."""
        found = self.client._request_signer._credentials.get_frozen_credentials()
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(timezone.utc) + _KEPT,
        }

    def _authority(self) -> str | None:
        return self._core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")

    @cached_property
    def http(self) -> Any:
        """For URLs that the client has signed."""
        url = self.client.meta.endpoint_url
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=_CONNECT_SECONDS, read=self.config.timeout_seconds),
            "retries": False,
            "maxsize": max(32, self.config.concurrency),
            "ca_certs": self._authority(),
        }
        proxy = get_environ_proxies(url).get(urlsplit(url).scheme)
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    @cached_property
    def reads(self) -> ThreadPoolExecutor:
        """For small objects, as many at a time as `concurrency` says."""
        return ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="wds-get")

    @cached_property
    def ranges(self) -> ThreadPoolExecutor:
        """For blocks of large objects."""
        return ThreadPoolExecutor(8, thread_name_prefix="wds-range")

    @cached_property
    def uploads(self) -> ThreadPoolExecutor:
        """For parts of shards."""
        return ThreadPoolExecutor(_UPLOADS, thread_name_prefix="wds-put")
