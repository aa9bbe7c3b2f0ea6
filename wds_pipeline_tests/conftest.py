"""Small datasets for the tests: a folder of raw files, and the configuration that builds it."""

from __future__ import annotations

import codecs
import gc
import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from PIL import Image

from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.build import BuildResult, build
from wds_pipeline.dataset.digests import DIGESTS
from wds_pipeline.dataset.version import Manifest
from wds_pipeline.storage import Storage, open_storage

# How long an example takes says nothing on a machine that others use too.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

TINY_SHARD = 12_000  # bytes: five of `png`'s samples

Sample = dict[str, dict[str, bytes]]


@cache
def png(number: int) -> bytes:
    """A small picture; another number is another picture."""
    data = io.BytesIO()
    colour = (number * 7 % 256, number // 7 % 256, number * 31 % 256)
    Image.new("RGB", (8 + number % 5, 8), colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(autouse=True)
def no_loaders_left() -> Iterator[None]:
    """Ends the workers of DataLoaders that a test let go of: they were forked with all that is open here, and
    what waits for the end of a pipe would wait for them too."""
    before = set(multiprocessing.active_children())
    yield
    left = {each for each in multiprocessing.active_children() if each.daemon} - before
    for child in left:
        with suppress(RuntimeError):  # torch says so when a worker is killed
            child.kill()
            child.join()
    if left:
        gc.collect()  # the loaders; they would wait for their workers


@dataclass
class Project:
    """A source, a destination, and how to build the one from the other."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "raw"

    @property
    def destination(self) -> Path:
        return self.folder / "published"

    @property
    def storage(self) -> Storage:
        return open_storage(str(self.destination))

    def config(self, **more: Any) -> DatasetConfig:
        values: dict[str, Any] = {
            "name": "small",
            "source": {"url": str(self.source)},
            "destination": {"url": str(self.destination)},
            "samples": {"required": ["png", "txt"], "max_quarantined": 1},
            "shards": {"max_bytes": TINY_SHARD},
            "compute": {"kind": "threads", "workers": 1},
        }
        for key, value in {**self.options, **more}.items():
            merge = isinstance(value, dict) and isinstance(values.get(key), dict)
            values[key] = {**values[key], **value} if merge else value
        return DatasetConfig.model_validate(values)

    def write(self, path: str, data: bytes | str) -> Path:
        """Writes a raw file."""
        target = self.source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
        return target

    def add(self, first: int, count: int, folder: str = "a") -> list[str]:
        """Writes samples of a picture, a caption and json; returns their keys."""
        keys = [f"{folder}/{number:04d}" for number in range(first, first + count)]
        for number, key in enumerate(keys, first):
            self.write(f"{key}.png", png(number))
            self.write(f"{key}.txt", f"caption of {key}")
            self.write(f"{key}.json", json.dumps({"number": number}))
        return keys

    def build(self, **more: Any) -> BuildResult:
        repack = more.pop("repack", False)
        return build(self.config(**more), repack=repack)

    def latest(self) -> Manifest:
        manifest = version.latest(self.storage)
        assert manifest is not None
        return manifest

    def raw(self) -> Sample:
        """The raw files as samples, by webdataset's rule; only for plain names."""
        return group_members(
            (str(path.relative_to(self.source)), path.read_bytes())
            for path in sorted(self.source.rglob("*"))
            if path.is_file()
        )

    def published(self, manifest: Manifest | None = None) -> Sample:
        """The samples of a version, by tarfile; each shard is checked against its digest."""
        found: Sample = {}
        for shard in (manifest or self.latest()).shards:
            path = self.destination / shard.path
            data = path.read_bytes()
            assert len(data) == shard.bytes, path
            assert digest_of(data, shard.digest) == shard.digest, path
            samples = group_members(read_tar(path))
            assert len(samples) == shard.samples
            assert not samples.keys() & found.keys()
            found |= samples
        return found

    def shard_files(self) -> dict[str, tuple[int, int, int]]:
        """What a rewrite would change of every file in shards/: inode, size, time."""
        return {
            path.name: (path.stat().st_ino, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.destination / seal.FOLDER).iterdir()
        }

    def stray(self) -> list[str]:
        """Unfinished writes."""
        return [str(path) for path in self.destination.rglob(".tmp-*")]

    def copy(self, folder: Path) -> Project:
        """The same project elsewhere: times and hard links are kept."""
        shutil.copytree(self.source, folder / "raw", symlinks=True)
        return Project(folder, self.options)


def digest_of(data: bytes, like: str) -> str:
    algorithm = like.partition(":")[0]
    state = DIGESTS[algorithm]()
    state.update(data)
    return f"{algorithm}:{state.hexdigest()}"


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and data of each member, by the standard library."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            assert member.isreg()
            file = tar.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def group_members(members: Any) -> Sample:
    """{key: {field: data}}; a sample's members must be adjacent."""
    samples: Sample = {}
    last = ""
    for name, data in members:
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        assert key == last or key not in samples, f"{key} came back"
        fields = samples.setdefault(key, {})
        assert extension not in fields
        fields[extension] = data
        last = key
    return samples


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """An empty project."""
    (tmp_path / "raw").mkdir()
    return Project(tmp_path)


@pytest.fixture
def unprivileged() -> Callable[[Callable[[], Any]], str]:
    """Runs a function in a child process without root's rights; returns what it raised, as text."""

    def run(work: Callable[[], Any]) -> str:
        codecs.lookup("utf-8-sig")  # what is imported late may lie where only root may read
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            text = ""
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                work()
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            finally:
                os.write(writer, text.encode()[:60_000])
                sys.stdout.flush()
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            text = file.read().decode()
        os.waitpid(child, 0)
        return text

    return run
