"""A published version in every kind of store: the same samples, also kept in a cache, also in a fork."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from wds_pipeline.storage import LocalStorage
from wds_pipeline.training import open_dataset
from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.stores.backends import Backend
from wds_pipeline_tests.stores.conftest import backend, backends, nobodys_credentials
from wds_pipeline_tests.training.conftest import plain, stored

__all__ = ["backend", "backends", "nobodys_credentials"]


def test_every_sample(published: Project, backend: Backend, tmp_path: Path) -> None:
    root = published.destination
    paths = [path for path in root.rglob("*") if path.is_file() and "views" not in path.parts]
    backend.fill({str(path.relative_to(root)): path.read_bytes() for path in paths})
    storage = backend.place().storage
    # A web server's folders are not always listed.
    dataset = open_dataset(backend.url, 1, "val", storage=storage)
    expected = stored(published, "val")
    assert [plain(each) for each in dataset] == expected
    order = np.random.default_rng(0).permutation(len(expected))
    groups = np.array_split(order, 4)
    shuffled = [expected[number] for number in order]
    assert [plain(each) for each in dataset.reader.read_ahead(groups, ahead_bytes=9000)] == shuffled
    assert [plain(dataset[number]) for number in order[:5]] == shuffled[:5]
    cached = open_dataset(backend.url, 1, "val", storage=storage, cache=tmp_path, verify=True)
    for _ in range(2):
        assert [plain(each) for each in cached.reader.read_ahead(groups)] == shuffled
    assert any(tmp_path.iterdir()) != isinstance(dataset.catalog.storage, LocalStorage)
    if backend.name != "memory":  # which is another in another process
        child = os.fork()
        if not child:
            try:
                found = [plain(each) for each in dataset]
                os._exit(0 if found == expected else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
