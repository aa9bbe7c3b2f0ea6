"""What people see and click: the pages of a running web server in Chromium."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from wds_pipeline_tests.conftest import Project
from wds_pipeline_tests.e2e.client import Client, Run
from wds_pipeline_tests.e2e.conftest import Site
from wds_pipeline_tests.e2e.server import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

# Deadlines within are shorter, and say more: this is for a machine that is busy with other things.
pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.timeout(900)]

# Of each image on the page: its alternative text, and its width once it is decoded.
IMAGES = "[...document.images].map(image => [image.alt, image.complete ? image.naturalWidth : 0])"


def value(page: Page, label: str) -> Locator:
    """The cell beside this label in the table of metadata."""
    name = page.get_by_role("cell", name=label, exact=True)
    return page.get_by_role("row").filter(has=name).get_by_role("cell").nth(1)


def open_partition(page: Page, dataset: str, partition: str) -> None:
    page.goto(f"/assets/{dataset}/shards?view=partitions&partition={partition}")
    page.get_by_text("Metadata", exact=True).wait_for()


def runs_of_assets(client: Client) -> list[Run]:
    return [run for run in client.runs({}) if run.job == "__ASSET_JOB"]


def test_one_partition_is_materialized_by_a_click(
    small: Project, client: Client, page: Page
) -> None:
    shard = small.latest().shards[2]
    path = small.destination / shard.path
    data, others = path.read_bytes(), small.shard_files()
    before = {run.id for run in runs_of_assets(client)}

    open_partition(page, "small", shard.partition)
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("1 partition", exact=True).wait_for()
    dialog.get_by_role("button", name="Launch 1 run").click()
    launched = wait_for(
        "the run", lambda: [run for run in runs_of_assets(client) if run.id not in before]
    )
    assert [run.tags["dagster/partition"] for run in launched] == [shard.partition]
    run = launched[0].id
    page.goto(f"/runs/{run}")
    page.get_by_text("Success", exact=True).first.wait_for()
    client.wait_for_run(run)

    assert path.read_bytes() == data
    now = small.shard_files()
    assert {name for name in now if name.partition(".")[0] != shard.name} == {
        name for name in others if name.partition(".")[0] != shard.name
    }
    assert client.built_by(run, "small/shards") == [shard.partition]
    open_partition(page, "small", shard.partition)
    page.get_by_role("link", name=run[:8]).first.wait_for()
    assert value(page, "digest").inner_text() == shard.digest

    build = client.launch("small_build")
    client.wait_for_run(build)
    assert small.latest().version == 1
    assert client.built_by(build, "small/shards") == []
    assert {node["staleStatus"] for node in client.assets("small").values()} == {"FRESH"}


def test_the_page_of_a_partition(small: Project, page: Page) -> None:
    shard = small.latest().shards[0]
    open_partition(page, "small", shard.partition)
    assert value(page, "samples").inner_text() == str(shard.samples)
    assert value(page, "bytes").inner_text() == str(shard.bytes)
    assert value(page, "digest").inner_text() == shard.digest
    assert f"{shard.samples} new" in value(page, "cause").inner_text()
    assert "passed (decode)" in value(page, "verification").inner_text()
    assert value(page, "tar").inner_text() == str(small.destination / shard.path)

    value(page, "contact sheet").get_by_text("[Show Markdown]").click()
    page.get_by_role("dialog").locator("img").first.wait_for()
    images = wait_for("the pictures", lambda: decoded(page))
    keys = {name for name in small.raw() if any(name == alt for alt, _ in images)}
    assert len(images) >= 3
    assert len(keys) == len(images)
    assert page.get_by_role("dialog").get_by_text(f"caption of {images[0][0]}").is_visible()


def decoded(page: Page) -> list[tuple[str, int]]:
    """The page's pictures, once all of them are decoded."""
    found = [(alt, width) for alt, width in page.evaluate(IMAGES)]
    return found if all(width > 0 for _, width in found) else []


def test_numbers_are_plotted(small: Project, page: Page) -> None:
    page.goto("/assets/small/published_version")
    page.get_by_role("button", name="Plots").click()
    for label in ("samples", "bytes", "quarantined"):
        page.get_by_text(label, exact=True).first.wait_for()
    page.locator("canvas").first.wait_for()


def test_datasets_side_by_side_are_groups(site: Site, page: Page) -> None:
    page.goto("/asset-groups")
    for name in site.projects:
        page.get_by_text(name, exact=True).first.wait_for()


def test_checks_are_on_the_page(small: Project, client: Client, page: Page) -> None:
    names = client.checks("small/published_version")
    assert names, "published_version has no checks"
    page.goto("/assets/small/published_version?view=checks")
    for name in names:
        page.get_by_text(name, exact=True).first.wait_for()
