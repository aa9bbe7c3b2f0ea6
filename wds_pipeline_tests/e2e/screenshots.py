"""Takes the pictures of docs/images/ from a running server: `python -m wds_pipeline_tests.e2e.screenshots`.

The project is copied to a folder of its own first, so that the paths in the pictures are nobody's. The
demo dataset is drawn there, built, changed and built again, as often as the plots need.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from wds_pipeline.dataset import version
from wds_pipeline.storage import open_storage
from wds_pipeline_tests.e2e.client import ENDED, Client
from wds_pipeline_tests.e2e.conftest import open_chromium
from wds_pipeline_tests.e2e.server import PROJECT, Server, wait_for
from wds_pipeline_tests.tokens.tiny import train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import FloatRect, Locator, Page

IMAGES = PROJECT / "docs" / "images"
WIDTH, HEIGHT = 1400, 900
MARK = ".screenshots"
LARGEST = 200_000  # bytes of a picture
COPIED = ("wds_pipeline", "datasets", "dagster.yaml", "workspace.yaml")
SENSOR = "sensor: {interval_seconds: 10, settle_seconds: 2}"
TOKENS = """
name: demo_tokens
description: The demo's captions as tokens, shard by shard.
source: {dataset: demo_small}
destination: {url: ../demo/tokens}
transforms:
  - tokenize: {layout: one_modality, text: {tokenizer: ../demo/tokenizer.json, block_size: 32}}
shards: {layout: source}
combine: {url: ../demo/memory}
sensor: {interval_seconds: 10}
owners: ["team:data"]
"""
ROUNDS = 5  # of changes, each built by the sensor: points of the plots
LOCATION = "/locations/__repository__@wds_pipeline"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Takes the pictures of docs/images/.")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/srv/photos"),
        help="where the demo is built; made anew, and its name is in the pictures (%(default)s)",
    )
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(SHOTS)}")
    options = parser.parse_args(arguments)
    IMAGES.mkdir(parents=True, exist_ok=True)
    with demo_server(options.folder) as server, open_chromium() as browser:
        for name in options.only or SHOTS:
            page = browser.new_page(base_url=server.url)
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(120_000)
            data = SHOTS[name](page)
            (IMAGES / f"{name}.png").write_bytes(data)
            print(f"{name}.png: {len(data):,} bytes", flush=True)
            page.close()


@contextmanager
def demo_server(folder: Path) -> Iterator[Server]:
    """A server over the demo in this folder, with a history of some builds.

    Raises SystemExit for a folder that is there and was not made by this program.
    """
    if folder.exists() and not (folder / MARK).exists():
        raise SystemExit(f"{folder}: is there already; expected a folder that may be made anew")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    for name in COPIED:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, folder / name)
    for path in (folder / "datasets").glob("demo*.yaml"):
        path.write_text(re.sub(r"(?m)^sensor:.*", SENSOR, path.read_text()))
    subprocess.run([sys.executable, "-m", "wds_pipeline.demo"], cwd=folder, check=True)
    tokenizer = folder / "demo" / "tokenizer.json"
    train_tokenizer(tokenizer)
    tokens = TOKENS.replace("../demo/tokenizer.json", str(tokenizer))
    (folder / "datasets" / "demo_tokens.yaml").write_text(tokens.lstrip())
    os.environ["PYTHONPATH"] = str(folder)
    server = Server(folder / ".dagster", folder / "datasets", project=folder)
    try:
        server.start()
        client = Client(server.url)
        assert client.location_error() == ""
        wait_for_version(client, folder, 1)
        for number in range(2, 2 + ROUNDS):
            change(folder / "demo" / "raw", number)
            wait_for_version(client, folder, number)
        wait_for("what is made of it", lambda: tokens_are_current(folder))
        client.wait_for_run(client.launch("demo_tokens_combine"))
        yield server
    finally:
        server.stop()


def wait_for_version(client: Client, folder: Path, number: int) -> None:
    manifest = folder / "demo" / "published" / "versions" / f"{number:08d}" / "manifest.json"
    wait_for(f"version {number}", manifest.is_file)
    wait_for("the runs", lambda: all(run.status in ENDED for run in client.runs({})))


def tokens_are_current(folder: Path) -> bool:
    """Whether the newest version has gone through the chain."""
    source = "published"
    for made in ("small", "tokens"):
        newest = [
            version.latest(open_storage(str(folder / "demo" / each))) for each in (source, made)
        ]
        if None in newest or newest[1].made_of["version"] != newest[0].version:  # type: ignore[union-attr]
            return False
        source = made
    return True


def change(raw: Path, number: int) -> None:
    """What a day brings: a caption is corrected, some pictures come, one goes."""
    captions = sorted(raw.glob("coast/coast-*.txt"))
    caption = captions[number]
    caption.write_text(f"{caption.read_text().strip()}, seen again\n")
    for copied in captions[-2 * number :]:
        for path in raw.glob(f"coast/{copied.stem}.*"):
            shutil.copy(path, path.with_name(path.name.replace("coast", f"day-{number}")))
    for path in raw.glob(f"coast/{captions[number + 10].stem}.*"):
        path.unlink()


# --------------------------------------------------------------------------------------- pictures


def sensor(page: Page) -> bytes:
    """What the sensor saw, and what it launched; soon after the last build, or that is not in it."""
    page.goto(f"{LOCATION}/sensors/demo_source_sensor")
    page.get_by_text("1 run requested").first.wait_for()
    return picture(page)  # its clock never stands still


def lineage(page: Page) -> bytes:
    """The graph of one dataset, each asset with its kinds and its state."""
    page.set_viewport_size({"width": 2100, "height": 900})
    page.goto(f"{LOCATION}/asset-groups/demo/lineage")
    page.get_by_text("Hide navigation").click()
    settle(page)
    first = box(page.get_by_text("source_files", exact=True).first)
    last = box(page.get_by_text("published_version", exact=True).first)
    right = int(last["x"]) + 280
    top, bottom = sorted((int(first["y"]), int(last["y"])))
    return picture(page, crop=(int(first["x"]) - 50, top - 25, right, bottom + 175))


def derived(page: Page) -> bytes:
    """What the shards of a dataset that is made of another one are made of, and what is made of them."""
    page.set_viewport_size({"width": 2200, "height": 1300})
    page.goto("/assets/demo_small/shards?view=lineage&lineageScope=neighbors")
    page.get_by_text("Hide navigation").click()
    page.get_by_text("shard_index", exact=True).wait_for()
    settle(page)
    boxes = [box(each) for each in page.locator("svg foreignObject").all()]
    left, top = (int(min(each[side] for each in boxes)) for side in ("x", "y"))
    right = int(max(each["x"] + each["width"] for each in boxes))
    bottom = int(max(each["y"] + each["height"] for each in boxes))
    return picture(page, crop=(left - 20, top - 20, right + 20, bottom + 20))


def partition(page: Page) -> bytes:
    """One shard."""
    page.goto("/assets/demo/shards?view=partitions&partition=train-000003")
    page.get_by_text("contact sheet", exact=True).wait_for()
    settle(page)
    return picture(page)


def contact_sheet(page: Page) -> bytes:
    """What is in it."""
    page.goto("/assets/demo/shards?view=partitions&partition=train-000003")
    row = page.get_by_role("row").filter(has_text="contact sheet")
    row.get_by_text("[Show Markdown]").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("img").first.wait_for()
    settle(page)
    return optimised(dialog.screenshot())


def checks(page: Page) -> bytes:
    """What holds of the published version."""
    page.goto("/assets/demo/published_version?view=checks")
    page.get_by_text("Passed").first.wait_for()
    settle(page)
    return picture(page)


def plots(page: Page) -> bytes:
    """The numbers of the versions over time."""
    page.set_viewport_size({"width": WIDTH, "height": 2000})
    page.goto("/assets/demo/published_version")
    button = page.get_by_role("button", name="Plots")
    button.click()
    page.locator("canvas").first.wait_for()
    settle(page)
    top = int(box(button)["y"]) + 50
    return picture(page, crop=(245, top, 1040, top + 760))


def launchpad(page: Page) -> bytes:
    """How a build can be asked for more than usual."""
    page.goto(f"{LOCATION}/jobs/demo_build/playground")
    page.get_by_text("No errors").wait_for()
    settle(page)
    return picture(page, crop=(0, 0, 1400, 720))


SHOTS = {
    "sensor": sensor,
    "lineage": lineage,
    "derived": derived,
    "partition": partition,
    "contact-sheet": contact_sheet,
    "checks": checks,
    "plots": plots,
    "launchpad": launchpad,
}


def settle(page: Page) -> None:
    """Waits until two looks at the page are the same: nothing moves or is loaded any more."""
    last = b""

    def still() -> bool:
        nonlocal last
        before, last = last, page.screenshot()
        return before == last

    wait_for("the page to be still", still, every=1)


def box(element: Locator) -> FloatRect:
    """Where it is on the page."""
    found = element.bounding_box()
    assert found is not None, element
    return found


def picture(page: Page, crop: tuple[int, int, int, int] | None = None) -> bytes:
    return optimised(page.screenshot(), crop)


def optimised(png: bytes, crop: tuple[int, int, int, int] | None = None) -> bytes:
    """A PNG of few colours. Raises AssertionError if it is too large for the documentation."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    small = image.crop(crop or image.getbbox()).quantize(128, dither=Image.Dither.NONE)
    data = io.BytesIO()
    small.save(data, "PNG", optimize=True)
    assert data.tell() < LARGEST, f"{data.tell():,} bytes"
    return data.getvalue()


if __name__ == "__main__":
    main()
