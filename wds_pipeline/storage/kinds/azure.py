"""`az://`, `abfs://`: Azure Blob Storage, by the clients that adlfs makes.

adlfs finds the account and the credentials. The requests are Azure's own: adlfs takes names for URLs
(and loses parts of odd ones), and a file of its that is dropped half written is published all the same.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar, TypeVar

from fsspec.asyn import sync
from fsspec.spec import AbstractFileSystem

from wds_pipeline.storage import fingerprint
from wds_pipeline.storage.base import BLOCK
from wds_pipeline.storage.connections import threads
from wds_pipeline.storage.fingerprint import Facts
from wds_pipeline.storage.kinds.base import Found, Kind, Upload

_PARTS_UNDER_WAY = 4
Answer = TypeVar("Answer")


class Azure(Kind):
    """Azure Blob Storage."""

    extra = "azure"
    anonymous: ClassVar[dict[str, Any]] = {"anon": True}
    credentials = (
        "looked for in AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_NAME with "
        "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_CLIENT_ID with its "
        "secret and tenant, and where Azure's DefaultAzureCredential looks"
    )

    def load(self) -> type[AbstractFileSystem]:
        """adlfs's, whose clients would log what we say."""
        logging.getLogger("azure").addHandler(logging.NullHandler())
        return super().load()

    def _key(self, fs: AbstractFileSystem, path: str) -> tuple[str, str]:
        container, _, key = self.where(path).partition("/")
        return container, key

    def _blob(
        self, request: str, path: str, act: Callable[[Any], Awaitable[Answer]], **more: Any
    ) -> Answer:
        """Asks for a blob, by Azure's client for it."""

        def run(fs: Any) -> Answer:
            async def asking() -> Answer:
                async with fs.service_client.get_blob_client(*self._key(fs, path)) as blob:
                    return await act(blob)

            return sync(fs.loop, asking)

        return self._do(request, path, run)

    @property
    def limits(self) -> dict[str, Any]:
        """Of each request; Azure's own tries would take minutes."""
        return {
            "connection_timeout": self.timeout,
            "read_timeout": self.timeout,
            "retry_total": 0,
            "retry_connect": 0,
            "retry_read": 0,
            "retry_status": 0,
        }

    def check(self) -> None:
        """Whether the container is there and its names may be listed."""
        self._list("", most=1)

    def look(self, path: str) -> Found:
        """A blob's facts. Raises FileNotFoundError."""

        async def act(blob: Any) -> Any:
            return await blob.get_blob_properties(**self.limits)

        return self._of(path, self._blob("head", path, act))

    def _of(self, path: str, properties: Any) -> Found:
        facts = _facts(properties)
        return Found(path, properties.size, float(facts.get("mtime", 0)), facts)

    def folder(self, folder: str) -> tuple[list[Found], list[str]]:
        """The blobs and the folders directly below a prefix; nothing where there is none."""
        return self._list(folder)

    def _list(self, folder: str, most: int | None = None) -> tuple[list[Found], list[str]]:
        from azure.storage.blob import BlobProperties

        async def act(fs: Any, marker: str | None) -> tuple[list[Any], str | None]:
            container, prefix = self._key(fs, folder)
            prefix = prefix and f"{prefix.rstrip('/')}/"
            async with fs.service_client.get_container_client(container) as client:
                blobs = client.walk_blobs(
                    name_starts_with=prefix or None,
                    include=["metadata"],
                    results_per_page=most,
                    **self.limits,
                )
                pages = blobs.by_page(continuation_token=marker)
                page = [each async for each in await anext(pages)]
                return [(prefix, each) for each in page], pages.continuation_token

        def page(marker: str | None, fs: Any) -> tuple[list[Any], str | None]:
            return sync(fs.loop, act, fs, marker)

        files: list[Found] = []
        folders: list[str] = []
        marker: str | None = None
        while True:
            found, marker = self._do("list", folder, partial(page, marker))
            for prefix, each in found:
                name = each.name[len(prefix) :]
                if not isinstance(each, BlobProperties):
                    folders.append(name.rstrip("/"))
                elif name and not _is_folder(each):
                    files.append(self._of(folder + name, each))
            if not marker or most is not None:
                return files, sorted(folders)

    def fetch(self, path: str, start: int = 0, end: int | None = None) -> tuple[bytes, Facts]:
        """The bytes, and the state that the answer's headers tell."""
        if end is not None and end <= start:
            return b"", self.look(path).facts
        part = {} if not start and end is None else {"offset": start}
        if end is not None:
            part["length"] = end - start

        async def act(blob: Any) -> tuple[bytes, Any]:
            stream = await blob.download_blob(**part, **self.limits)
            return await stream.readall(), stream.properties

        data, properties = self._blob("get", path, act)
        self.ask.usage.count("get", requests=0, read=len(data))
        return data, {kind: fact for kind, fact in _facts(properties).items() if kind == "etag"}

    def upload(self, path: str) -> Upload:
        """Blocks go while it is written; the list of them, sent last, makes the blob."""
        return _Upload(self, path)

    def put(self, path: str, data: bytes, *, replace: bool) -> None:
        """Writes a blob in one request."""
        from azure.core.exceptions import ResourceExistsError

        async def act(blob: Any) -> None:
            try:
                await blob.upload_blob(data, overwrite=replace, **self.limits)
            except ResourceExistsError as error:
                raise FileExistsError(path) from error

        self._blob("put", path, act)

    def create(self, path: str, data: bytes) -> bool:
        """With `If-None-Match: *`, which Azure's client sends unless it may overwrite."""
        return self._created(path, data, lambda fs: None)

    def _created(self, path: str, data: bytes, act: Callable[[Any], None]) -> bool:
        before = self.ask.usage.retries
        try:
            self.put(path, data, replace=False)
        except FileExistsError:
            # The reply to a try that succeeded may have been lost; then the blob there is ours.
            return self.ask.usage.retries > before and self.fetch(path)[0] == data
        self.ask.usage.count("put", requests=0, written=len(data))
        return True

    def copy(self, path: str, target: str) -> None:
        """By the server. Raises FileNotFoundError."""

        def act(fs: Any) -> str:
            async def asking() -> str:
                service = fs.service_client
                url = service.get_blob_client(*self._key(fs, target)).url
                async with service.get_blob_client(*self._key(fs, path)) as blob:
                    return (await blob.start_copy_from_url(url, **self.limits))["copy_status"]

            return sync(fs.loop, asking)

        status = self._do("copy", path, act)
        while status == "pending":  # never within an account, by what is seen
            time.sleep(0.2)
            status = self._blob("head", path, self._copy_status)
        if status != "success":
            raise FileNotFoundError(target)

    async def _copy_status(self, blob: Any) -> str:
        return (await blob.get_blob_properties(**self.limits)).copy.status

    def touch(self, path: str) -> None:
        """Sets the metadata that it has. Raises FileNotFoundError."""

        async def act(blob: Any) -> None:
            properties = await blob.get_blob_properties(**self.limits)
            await blob.set_blob_metadata(properties.metadata, **self.limits)

        self._blob("put", path, act)

    def remove(self, path: str) -> None:
        """Removes a blob. Raises FileNotFoundError."""

        async def act(blob: Any) -> None:
            await blob.delete_blob(**self.limits)

        self._blob("delete", path, act)


def _facts(properties: Any) -> Facts:
    etag = (properties.etag or "").strip('"')  # with quotes in one answer, without in another
    return fingerprint.facts_of({"etag": etag, "mtime": properties.last_modified})


def _is_folder(blob: Any) -> bool:
    """Whether it stands for a folder: so tools mark them, and accounts with real folders do."""
    metadata = {name.lower(): value for name, value in (blob.metadata or {}).items()}
    return blob.name.endswith("/") or "true" in (
        metadata.get("hdi_isfolder"),
        metadata.get("is_directory"),
    )


class _Upload(Upload):
    """Blocks, some under way at a time."""

    def __init__(self, kind: Azure, path: str) -> None:
        self._kind, self._path = kind, path
        self._part = bytearray()
        self._blocks: list[str] = []
        self._under_way: deque[Future[None]] = deque()

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            some = view[: BLOCK - len(self._part)]
            self._part += some
            view = view[len(some) :]
            if len(self._part) == BLOCK:
                self._stage()

    def _stage(self) -> None:
        while len(self._under_way) >= _PARTS_UNDER_WAY:
            self._under_way.popleft().result()
        name, data = uuid.uuid4().hex, bytes(self._part)
        self._blocks.append(name)
        self._part.clear()
        pool = threads(self._kind.place.storage.concurrency)
        self._under_way.append(pool.submit(self._stage_block, name, data))

    def _stage_block(self, name: str, data: bytes) -> None:
        async def act(blob: Any) -> None:
            await blob.stage_block(name, data, validate_content=True, **self._kind.limits)

        self._kind._blob("put", self._path, act)
        self._kind.ask.usage.count("put", requests=0, written=len(data))

    def finish(self) -> None:
        if not self._blocks:
            self._kind.put(self._path, bytes(self._part), replace=True)
            self._kind.ask.usage.count("put", requests=0, written=len(self._part))
            return
        if self._part:
            self._stage()
        while self._under_way:
            self._under_way.popleft().result()

        async def act(blob: Any) -> None:
            from azure.storage.blob import BlobBlock

            blocks = [BlobBlock(name) for name in self._blocks]
            await blob.commit_block_list(blocks, **self._kind.limits)

        self._kind._blob("put", self._path, act)

    def abandon(self) -> None:
        """Azure removes blocks that belong to no blob after a week."""
        for each in self._under_way:
            each.cancel()
