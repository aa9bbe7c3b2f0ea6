"""Dagster's web server and daemon on a few small datasets, and a browser. They are started once, and end
with these tests: a daemon works all the time."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.e2e.client import Client
from wds_pipeline_tests.e2e.server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SHARD_BYTES = 24_000  # ten of `Project.add`'s samples
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
# It asks nothing of anybody but the page's own server.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS_FOR_A_PAGE = 180


@dataclass
class Site:
    """A server, what asks it, and the folder of the datasets that it serves."""

    server: Server
    client: Client
    projects: dict[str, Project]


def _project(folder: Path, name: str, **options: Any) -> Project:
    """A dataset's folder and its file."""
    project = Project(folder / name, {"name": name, **options})
    project.source.mkdir(parents=True)
    values = {
        "name": name,
        "description": f"The tests' dataset {name}.",
        "source": {"url": str(project.source)},
        "destination": {"url": str(project.destination)},
        "compute": {"workers": 2},
        **options,
    }
    datasets = folder / "datasets"
    datasets.mkdir(exist_ok=True)
    (datasets / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return project


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The servers, with nothing built yet: `small` is built by hand, `watched` and `copied` have
    a sensor, `wide` takes a while."""
    folder = tmp_path_factory.mktemp("e2e")
    usual = {
        "samples": {"required": ["png", "txt"], "max_quarantined": 1},
        "shards": {"max_bytes": SHARD_BYTES},
        "split": {"train": 0.7, "val": 0.3},
    }
    sensor = {"interval_seconds": 5, "settle_seconds": 1}
    projects = {
        "small": _project(folder, "small", **usual),
        "watched": _project(folder, "watched", sensor=sensor, **usual),
        "copied": _project(folder, "copied", sensor=sensor, **usual),
        "wide": _project(folder, "wide", samples={"required": ["txt"]}, shards={"max_samples": 1}),
    }
    projects["small"].add(0, 60)
    projects["watched"].add(0, 40)
    projects["copied"].add(0, 10)
    server = Server(folder / "home", folder / "datasets")
    try:
        server.start()
        client = Client(server.url)
        assert client.location_error() == ""
        yield Site(server, client, projects)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(site: Site) -> Client:
    return site.client


@pytest.fixture(scope="package")
def small(site: Site) -> Project:
    """The dataset `small`, built."""
    site.client.wait_for_run(site.client.launch("small_build"))
    return site.projects["small"]


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Chromium without a window. Skips where it, or what drives it, is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUMS)} is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def page(site: Site, browser: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here."""
    context: BrowserContext = browser.new_context(
        viewport={"width": 1400, "height": 900}, base_url=site.server.url
    )
    context.set_default_timeout(SECONDS_FOR_A_PAGE * 1000)
    yield context.new_page()
    context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows with a failure what the servers wrote."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and site is not None:
        report.sections.append(("the web server and the daemon", site.server.logs()))
    return report
