"""Stores that run, once a test process; a root of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from wds_pipeline_tests.stores.backends import NAMES, WRITABLE, Backend, Backends

_OF_CREDENTIALS = ("AWS_", "AZURE_", "GOOGLE_", "GCSFS_", "FSSPEC_", "HF_", "STORAGE_EMULATOR")


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backends]:
    """All of them; each server starts when it is first asked for."""
    found = Backends(tmp_path_factory.mktemp("stores"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def nobodys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own, and no others."""
    for name in list(os.environ):
        if name.startswith(_OF_CREDENTIALS) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(params=NAMES)
def backend(
    request: pytest.FixtureRequest, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> Backend:
    """Each of the stores."""
    return prepare(backends.get(request.param), monkeypatch)


@pytest.fixture(params=WRITABLE)
def writable(
    request: pytest.FixtureRequest, backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> Backend:
    """Each of the stores that can be written."""
    return prepare(backends.get(request.param), monkeypatch)


def prepare(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Puts its credentials where its tools look for them."""
    for name, value in backend.environment.items():
        monkeypatch.setenv(name, value)
    return backend
