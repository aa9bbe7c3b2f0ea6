"""URLs of a table: downloaded once, kept, tried again; each row's fate is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from wds_pipeline.config_source import DownloadConfig
from wds_pipeline.dataset.preview import preview
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.sources.download import Download, Downloader, shown_url
from wds_pipeline.errors import SourceError
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.dataset.sources.table_project import TableProject
from wds_pipeline_tests.dataset.sources.web import Web, serve


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        yield running


@pytest.fixture
def project(tmp_path: Path) -> TableProject:
    return TableProject(tmp_path)


def options(project: TableProject, rows: dict[str, str], **download: Any) -> TableProject:
    """The project with a table: key → URL of a png."""
    lines = [{"id": key, "url": url, "caption": f"of {key}"} for key, url in rows.items()]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    fields = {"png": {"column": "url", "holds": "url"}, "txt": "caption"}
    quick = {"timeout_seconds": 0.5, "retries": 1, "max_bytes": 20_000, **download}
    return project.table("table.jsonl", text, key="id", fields=fields, download=quick)


def status_table(project: TableProject) -> dict[str, dict[str, Any]]:
    """What the tables beside the kept tars say, by URL; the last word counts."""
    found = {}
    for path in sorted((project.destination / "sources" / "downloads").glob("2*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[row["shown"]] = row
    return found


ODD = {
    "/gone.png": ("http 404", 1),
    "/broken": ("http 500", 2),
    "/later": ("http 429", 1),
    "/circle": ("too many redirects", 6),
    "/away": ("bad url", 1),
    "/large": ("too large", 1),
    "/endless": ("too large", 1),
    "/stall": ("timeout", 2),
    "/drip": ("timeout", 2),
    "/page": ("bad content", 1),
    "/empty": ("bad content", 1),
}


def test_what_cannot_be_downloaded_is_told_row_by_row(project: TableProject, web: Web) -> None:
    web.files["/there.txt"] = png(7)
    good = {f"a/{n}": f"/{n}.png" for n in range(5)}
    web.files |= {path: png(n) for n, path in enumerate(good.values())}
    odd = {f"odd/{n}": path for n, path in enumerate(ODD)}
    paths = good | odd | {"a/moved": "/moved"}
    rows = {key: web.url + path for key, path in paths.items()}
    rows |= {"odd/none": "ftp://example.org/x.png", "odd/nowhere": "http://127.0.0.1:1/x.png"}
    derived = options(project, rows)
    manifest = derived.build().manifest
    expected = {
        key: {"png": web.files[path], "txt": f"of {key}".encode()} for key, path in good.items()
    }
    expected["a/moved"] = {"png": png(7), "txt": b"of a/moved"}
    assert derived.published() == expected
    assert manifest.quarantined == {"download_failed": len(odd) + 2}
    found, status = derived.quarantine(), status_table(derived)
    for key, path in odd.items():
        wanted, asked = ODD[path]
        assert found[key][0] == "download_failed"
        assert wanted in found[key][1], path
        assert status[web.url + path]["status"] == wanted
        # On a machine that is busy, a try may end before the server has counted it.
        assert min(asked, 1) <= web.asked[path] <= asked, path
    assert "3,600 s" in found["odd/2"][1]
    assert status["ftp://example.org/x.png"]["status"] == "bad url"
    assert status["http://127.0.0.1:1/x.png"]["status"] == "no connection"
    row = status[web.url + "/0.png"]
    assert (row["status"], row["code"], row["bytes"], row["tries"]) == ("ok", 200, len(png(0)), 1)
    for kept in (derived.destination / "sources" / "downloads").glob("*.tar"):
        with tarfile.open(kept) as tar:  # any tar program reads what was kept
            assert sorted(tar.extractfile(m).read() for m in tar) == sorted(  # type: ignore[union-attr]
                [*(png(n) for n in range(5)), png(7)]
            )


def test_what_passes_is_tried_again(project: TableProject, web: Web) -> None:
    config = DownloadConfig(timeout_seconds=5, retries=2)
    for path, content in (("/busy", b"after all"), ("/cut", b"the whole of it")):
        got = Downloader(config)(Download(web.url + path, "bin"))
        assert got.body is not None
        with got.body as body:
            assert (got.status, body.read(), got.tries) == ("ok", content, 2)


def test_nothing_is_downloaded_twice_and_failures_again(project: TableProject, web: Web) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(4)}
    rows = {f"a/{n}": f"{web.url}/{n}.png" for n in range(6)}
    derived = options(project, rows)
    assert derived.build().manifest.quarantined == {"download_failed": 2}
    assert derived.build().status == "unchanged"
    assert {web.asked[f"/{n}.png"] for n in range(4)} == {1}
    assert {web.asked[f"/{n}.png"] for n in (4, 5)} == {2}
    web.files |= {"/4.png": png(4), "/5.png": png(5)}
    rows["a/9"] = f"{web.url}/9.png"
    web.files["/9.png"] = png(9)
    derived = options(project, rows)
    assert derived.build().manifest.quarantined == {}
    assert derived.build().status == "unchanged"
    assert {web.asked[f"/{n}.png"] for n in range(4)} == {1}
    assert len(derived.published()) == 7
    # Each build that failed left a table; only what is of use stays.
    assert len(list((derived.destination / "sources/downloads").glob("*.parquet"))) == 2


def test_urls_of_a_part_of_a_merge(project: TableProject, web: Web) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(3)}
    rows = {f"{n}": f"{web.url}/{n}.png" for n in range(3)}
    table = options(project, rows).options["source"]["table"]
    project.options["source"] = {"merge": [{"label": "web", "table": table}]}
    assert preview(project.config()).warnings[0].startswith("web: 3 URLs are not fetched yet")
    project.build()
    assert project.build().status == "unchanged"
    web.files["/1.png"] = png(50)
    for path in (project.destination / "sources" / "downloads").iterdir():
        path.unlink()
    assert project.build().status == "published"
    assert project.published()["web/1"]["png"] == png(50)


def test_two_rows_of_one_url_are_downloaded_once(project: TableProject, web: Web) -> None:
    web.files["/x.png"] = png(1)
    derived = options(project, {"a": f"{web.url}/x.png", "b": f"{web.url}/x.png"})
    derived.build()
    assert web.asked["/x.png"] == 1
    assert {each["png"] for each in derived.published().values()} == {png(1)}


def test_removing_what_was_kept_downloads_again(project: TableProject, web: Web) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(12)}
    derived = options(project, {f"a/{n}": f"{web.url}/{n}.png" for n in range(12)})
    assert derived.build().packed > 2
    web.files["/3.png"] = png(99)
    assert (
        derived.build().status == "unchanged"
    )  # nobody looks whether a URL has got another content
    for path in (derived.destination / "sources" / "downloads").iterdir():
        path.unlink()
    again = derived.build()
    assert (again.status, again.packed) == ("published", 1)
    assert derived.published()["a/3"]["png"] == png(99)
    assert derived.build().status == "unchanged"


def test_a_lost_tar_is_downloaded_again_and_a_short_one_never_used(
    project: TableProject, web: Web
) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(3)}
    derived = options(project, {f"a/{n}": f"{web.url}/{n}.png" for n in range(3)})
    derived.build()
    folder = derived.destination / "sources" / "downloads"
    (tar,) = folder.glob("*.tar")
    tar.unlink()
    old = folder / "20200101T000000.000000-00000000.tar"
    old.write_bytes(b"cut short")
    os.utime(old, (1, 1))
    young = folder / "20990101T000000.000000-00000000.tar"
    young.write_bytes(b"another build is at it")
    assert derived.build().status == "unchanged"  # the same contents
    assert {web.asked[f"/{n}.png"] for n in range(3)} == {2}
    assert not old.exists()
    assert young.exists()


def test_plan_says_what_is_still_to_download(project: TableProject, web: Web) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(4)}
    rows = {f"a/{n}": f"{web.url}/{n}.png" for n in range(4)}
    derived = options(project, rows)
    plan = preview(derived.config())
    assert not web.asked
    assert not derived.destination.exists()
    assert plan.samples == 4
    assert "4 URLs are not fetched yet" in plan.warnings[0]
    looked = open_source(derived.config()).look(10)
    derived.build()
    listing = open_source(derived.config()).scan()  # as plan and repair do it
    assert {looked.digest, open_source(derived.config()).look(10).digest} == {listing.digest}
    assert preview(derived.config()).outcome == "nothing"
    derived = options(project, rows | {"a/8": f"{web.url}/8.png", "a/9": f"{web.url}/9.png"})
    plan = preview(derived.config())
    assert (plan.samples, plan.outcome) == (6, "publish")
    assert "2 URLs are not fetched yet" in plan.warnings[0]
    derived.build()
    plan = preview(derived.config())
    assert [(each.reason, each.count) for each in plan.quarantined] == [("download_failed", 2)]
    assert "2 URLs could not be fetched; a build tries again" in plan.warnings


_BUILD = """
import json, sys
from wds_pipeline.config import DatasetConfig
from wds_pipeline.dataset.build import build
from wds_pipeline.dataset.sources import kept
kept._BATCH_ROWS = 5
build(DatasetConfig.model_validate(json.loads(sys.argv[1])))
"""


def test_killed_while_downloading_goes_on_with_the_rest(project: TableProject, web: Web) -> None:
    web.files = {f"/{n}.png": png(n) for n in range(30)}
    rows = {f"a/{n:02d}": f"{web.url}/{n}.png" for n in range(30)}
    derived = options(project, rows, concurrency=2, timeout_seconds=60)
    config = derived.config().model_dump_json(exclude_unset=True)
    web.hold_after = 20
    child = subprocess.Popen([sys.executable, "-c", _BUILD, config])
    folder = derived.destination / "sources" / "downloads"
    deadline = time.monotonic() + 60
    while web.asked.total() <= 20 or len(list(folder.glob("2*.parquet"))) < 4:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    sealed = {url for url, row in status_table(derived).items() if row["status"] == "ok"}
    assert len(sealed) == 20
    web.hold_after = None
    web.release.set()
    before = dict(web.asked)
    derived.build()
    again = {web.url + path for path, count in web.asked.items() if count > before.get(path, 0)}
    assert again == set(rows.values()) - sealed
    assert derived.published() == {
        key: {"png": png(n), "txt": f"of {key}".encode()} for n, key in enumerate(rows)
    }


def test_credentials_are_sent_and_never_shown(project: TableProject, web: Web) -> None:
    host = web.url.removeprefix("http://")
    web.files["/x.png"] = png(1)
    rows = {
        "a": f"http://me:swordfish@{host}/x.png?X-Amz-Signature=swordfish&size=5",
        "b": f"http://me:swordfish@{host}/gone.png?token=swordfish",
        "c": "http://me:swordfish@[/",
    }
    derived = options(project, rows)
    derived.build()
    assert set(web.users) == {"Basic bWU6c3dvcmRmaXNo"}
    shown = status_table(derived)
    assert f"{web.url}/x.png?X-Amz-Signature=…&size=5" in shown
    for path in derived.destination.rglob("*"):
        assert path.is_dir() or b"swordfish" not in path.read_bytes(), path
    for path in (derived.destination / "versions").rglob("*.parquet"):
        assert "swordfish" not in str(pq.read_table(path).to_pylist())
    assert "swordfish" not in str(shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h.org/a?b=c#d", "https://h.org/a?b=c#d"),
        ("https://h.org/a?sig=x&api_key=y&keyword=z", "https://h.org/a?sig=…&api_key=…&keyword=z"),
        ("http://u:p@[/", "http://[/"),
    ],
)
def test_shown_urls(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_a_list_of_urls(project: TableProject, web: Web) -> None:
    web.files = {f"/pics/{n}.png": png(n) for n in range(3)}
    text = "# ours\n" + "".join(f"{web.url}/pics/{n}.png\n\n" for n in range(3))
    fields = {"png": {"column": "url", "holds": "url"}}
    project.table("urls.txt", text, key="stem", fields=fields).build()
    assert project.published() == {str(n): {"png": png(n)} for n in range(3)}
    project.table("urls.txt", text, fields=fields).build()
    assert all(len(key) == 32 for key in project.published())
    assert web.asked.total() == 3  # another key, the same URLs


def test_an_empty_list_is_an_error(project: TableProject) -> None:
    fields = {"png": {"column": "url", "holds": "url"}}
    with pytest.raises(SourceError, match="declares no sample"):
        project.table("urls.txt", "\n", fields=fields).build()
