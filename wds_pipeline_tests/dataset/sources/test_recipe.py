"""Lists as `tarp create` takes them become samples; commands run only where they may, and once."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.dataset.preview import preview
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.sources.recipe import RecipeSource
from wds_pipeline.errors import ConfigError, DataError, SourceError
from wds_pipeline_tests.cli.conftest import Cli
from wds_pipeline_tests.conftest import png
from wds_pipeline_tests.dataset.sources.table_project import TableProject


@pytest.fixture
def project(tmp_path: Path) -> TableProject:
    (tmp_path / "pics").mkdir()
    for n in range(3):
        (tmp_path / "pics" / f"{n} a.png").write_bytes(png(n))
    return TableProject(tmp_path)


def test_paths_files_and_text(project: TableProject) -> None:
    text = (
        "# a comment\n"
        "a/0.png pics/0 a.png\n"  # the source is all the rest of the line
        "a/0.txt\ttext:two  words \n"
        "\n"
        "  b.png   file:pics/1 a.png\r\n"
        "b.seg.png ./pics/2 a.png\n"
        "b.txt text:"
    )
    project.recipe(text).build(samples={"max_quarantined": 1, "on_invalid": "keep"})
    assert project.published() == {
        "a/0": {"png": png(0), "txt": b"two  words "},
        "b": {"png": png(1), "seg.png": png(2), "txt": b""},
    }
    assert project.build(samples={"max_quarantined": 1, "on_invalid": "keep"}).status == "unchanged"


def test_what_is_wrong_with_a_list_is_said(project: TableProject) -> None:
    text = b"a.txt text:1\nb.png pics/gone.png\nc.png ../c.png\nd.txt text:1\nd.txt text:2\n\xff.txt text:x\n"
    project.recipe(text).build()
    assert project.published() == {"a": {"txt": b"1"}}
    found = project.quarantine()
    assert {key: reason for key, (reason, _) in found.items()} == {
        "b": "missing_file", "c": "missing_file", "d": "duplicate_field", "\\xff": "name_not_utf8",
    }  # fmt: skip
    assert "pics/gone.png is not there" in found["b"][1]
    assert "list.txt, line 4 and " in found["d"][1]
    assert "list.txt, line 5" in found["d"][1]
    with pytest.raises(DataError, match=r"list.txt:2: found 'a.png'; expected a member's name"):
        project.recipe("a.txt text:1\na.png\n").build()
    (project.folder / "list.txt").unlink()
    with pytest.raises(SourceError, match=r"source.recipe.url: .*list.txt: no such file"):
        open_source(project.config()).check()


def test_commands_need_permission(project: TableProject) -> None:
    proof = project.folder / "ran"
    text = f"a.txt text:1\nb.txt pipe:touch {proof}\n"
    with pytest.raises(ConfigError, match=r"list.txt:2: pipe: runs a command.*allow_pipe: true"):
        project.recipe(text).build()
    assert not proof.exists()


def test_commands_run_once_and_failures_again(project: TableProject) -> None:
    log = project.folder / "log"
    text = "".join(
        f"{n}.txt pipe:echo {n} >> {log}; cat 'pics/{n} a.png' | wc -c | tr -d ' \\n'\n"
        for n in range(3)
    )
    text += f"bad.txt pipe:echo bad >> {log}; echo oh no >&2; exit 3\n"
    project.recipe(text, allow_pipe=True)
    assert "4 commands are not fetched yet" in preview(project.config()).warnings[0]
    assert not log.exists()
    project.build()
    assert project.published() == {str(n): {"txt": str(len(png(n))).encode()} for n in range(3)}
    reason, detail = project.quarantine()["bad"]
    assert (reason, detail) == ("download_failed", "bad.txt: exit 3: oh no")
    assert project.build().status == "unchanged"
    assert sorted(log.read_text().split()) == ["0", "1", "2", "bad", "bad"]
    project.recipe(text.replace("bad.txt", "good.txt").replace("exit 3", "exit 0"), allow_pipe=True)
    project.build(samples={"max_quarantined": 1, "on_invalid": "keep"})
    assert project.published()["good"] == {"txt": b""}
    assert sorted(log.read_text().split()) == ["0", "1", "2", "bad", "bad", "bad"]
    rows = [
        (row["shown"], row["code"])
        for path in (project.destination / "sources" / "pipes").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
        if row["status"] != "ok"
    ]
    assert set(rows) == {(f"pipe:echo bad >> {log}; echo oh no >&2; exit 3", 3)}


def ended(pid: int) -> bool:
    """Within a moment; what nobody waits for stays as a zombie on a machine without an init."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            time.sleep(0.05)
        return False
    return True


def test_a_command_that_hangs(project: TableProject) -> None:
    """It is ended with all that it started, and tried again by the next build."""
    pid = project.folder / "pid"
    text = f"a.txt text:1\nb.txt pipe:sleep 600 & echo $! > {pid}; wait; echo ok\n"
    project.recipe(text, allow_pipe=True, timeout_seconds=0.5).build()
    assert set(project.published()) == {"a"}
    reason, detail = project.quarantine()["b"]
    assert reason == "download_failed"
    assert detail == "b.txt: ended after 0.5 s (timeout_seconds): it said nothing"
    assert ended(int(pid.read_text()))
    project.recipe(text.replace("sleep 600", "true"), allow_pipe=True).build()
    assert set(project.published()) == {"a", "b"}


def test_commands_end_with_the_build(project: TableProject) -> None:
    """Ctrl-C reaches no command by itself: each leads a session of its own."""
    pid = project.folder / "pid"
    project.recipe(f"a.txt pipe:sleep 600 & echo $! > {pid}; wait\n", allow_pipe=True)
    cli = Cli(project)
    cli.configure()
    build = subprocess.Popen(
        [sys.executable, "-m", "wds_pipeline.cli", "build", "small"], env=cli.environment
    )
    try:
        while build.poll() is None and not (pid.exists() and pid.read_text().endswith("\n")):
            time.sleep(0.02)
        build.terminate()
        assert build.wait(30) == 143
    finally:
        build.kill()
    assert ended(int(pid.read_text()))


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="#"),
    min_size=1,
)
sources = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@given(names, sources, st.sampled_from([" ", "\t", "   "]))
def test_every_line_is_taken_as_it_is(name: str, source: str, space: str) -> None:
    text = f"{name}{space}text:{source}".encode()
    source_of = RecipeSource.__new__(RecipeSource)
    assert source_of._split("here:1", text) == (name.encode(), 0, source.encode())
