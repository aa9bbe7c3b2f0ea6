"""Lists as `tarp create` takes them become samples; commands run only where they may, and once."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wds_pipeline.dataset.preview import preview
from wds_pipeline.dataset.sources import open_source
from wds_pipeline.dataset.sources.recipe import RecipeSource
from wds_pipeline.errors import ConfigError, DataError, SourceError
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
