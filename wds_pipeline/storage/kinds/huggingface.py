"""`hf://`: repositories of the Hugging Face Hub to read, its buckets to read and write.

A repository is no destination: each file would be a commit of its own, of which the Hub takes some
hundred an hour.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem

from wds_pipeline.errors import DestinationError
from wds_pipeline.storage.kinds.base import Found, Kind, Upload

_PINNED = re.compile(r"@[0-9a-f]{40}(/|$)")


class HuggingFace(Kind):
    """Repositories and buckets of the Hugging Face Hub."""

    extra = "huggingface"
    anonymous: ClassVar[dict[str, Any]] = {"token": False}
    credentials = "looked for in HF_TOKEN, and where `hf auth login` puts them"
    order = ("xet", "sha256", "blob", "mtime")

    def __init__(self, place: Any, usage: Any) -> None:
        super().__init__(place, usage)
        self.unchanging = bool(_PINNED.search(place.url))

    def upload(self, path: str) -> Upload:
        """To a bucket. Raises DestinationError for a repository."""
        self.check_writable()
        return super().upload(path)

    def create(self, path: str, data: bytes) -> bool:
        """The Hub has no conditional create, and fsspec's mode for it is not heeded."""
        self.check_writable()
        raise NotImplementedError("no conditional create")

    def remove(self, path: str) -> None:
        """Removes a file of a bucket. Raises FileNotFoundError; DestinationError for a repository."""
        self.check_writable()
        super().remove(path)

    def copy(self, path: str, target: str) -> None:
        """By the Hub. Raises FileNotFoundError; DestinationError for a repository."""
        self.check_writable()
        super().copy(path, target)

    def check_writable(self) -> None:
        """Raises DestinationError for a repository."""
        if not self.bucket:
            raise DestinationError(
                f"{self.place.named}: a repository of the Hub is no destination (each file would be a "
                "commit of its own); expected a bucket, hf://buckets/…, or a folder that `hf upload` "
                "takes from there"
            )

    @property
    def bucket(self) -> bool:
        """Whether it is a bucket, and no repository."""
        return self.place.url.partition("://")[2].startswith("buckets/")

    def _info(self, fs: Any, path: str) -> dict[str, Any]:
        if self.bucket:
            return fs.info(self.where(path), refresh=True)
        return fs.info(self.where(path), refresh=True, expand_info=True)

    def _ls(self, fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:
        return fs.ls(self.where(path), detail=True, refresh=True)

    def _found(self, path: str, info: dict[str, Any]) -> Found:
        found = super()._found(path, info)
        lfs = info.get("lfs")
        sha256 = getattr(lfs, "sha256", None) or (lfs or {}).get("sha256") if lfs else None
        return found._replace(facts={**found.facts, **({"sha256": sha256} if sha256 else {})})
