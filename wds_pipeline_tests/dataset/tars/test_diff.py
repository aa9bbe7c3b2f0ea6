"""What differs between two versions, or two sets of tars."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from wds_pipeline.dataset import seal, version
from wds_pipeline.dataset.tars import diff
from wds_pipeline.dataset.tars.cat import cat
from wds_pipeline.dataset.tars.diff import Change, diff_tars, diff_versions, in_words
from wds_pipeline.dataset.tars.shuffle import shuffle
from wds_pipeline.dataset.tars.split import split
from wds_pipeline.errors import DataError
from wds_pipeline_tests.conftest import Project, png
from wds_pipeline_tests.dataset.foreign_tars import make
from wds_pipeline_tests.dataset.tars import archives
from wds_pipeline_tests.dataset.tars.archives import Archive


def told(changes: list[Change]) -> list[tuple[str, str, str]]:
    return [(each.kind, each.key, ", ".join(in_words(each))) for each in changes]


def between(project: Project, old: int, new: int, **more: Any) -> diff.Difference:
    storage = project.storage
    return diff_versions(
        storage, version.read(storage, old, "small"), version.read(storage, new, "small"), **more
    )


def test_two_versions(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.add(0, 20)
    project.build()
    project.write("a/0003.txt", "another caption")
    project.write("a/0004.png", png(77))
    (project.source / "a/0005.json").unlink()
    for end in ("png", "txt", "json"):
        (project.source / f"a/0006.{end}").unlink()
    project.add(30, 1)
    project.build()
    # No tar is read: the reports say it all.
    monkeypatch.setattr(diff, "_add", None)
    found = between(project, 1, 2)
    words = told(found.changes)
    assert words[0] == ("edited", "a/0003", "txt 17 → 15 bytes")
    assert [each[:2] for each in words] == [
        ("edited", "a/0003"),
        ("edited", "a/0004"),
        ("edited", "a/0005"),
        ("deleted", "a/0006"),
        ("added", "a/0030"),
    ]
    assert words[2][2] == "-json"
    assert (found.same, sum(found.totals.values())) == (16, 5)
    assert found.counts() == {"train": {"edited": 3, "deleted": 1, "added": 1}}
    assert told(between(project, 2, 1).changes)[2] == ("edited", "a/0005", "+json")
    assert between(project, 2, 2).changes == []
    assert between(project, 2, 2).same == 20


def test_versions_whose_samples_moved(project: Project) -> None:
    project.add(0, 20)
    project.build()
    project.build(repack=True, shards={"max_bytes": 30_000})
    moved = between(project, 1, 2)
    assert set(moved.totals) == {"moved"}
    assert moved.same + moved.totals["moved"] == 20
    assert "train-000001 → train-000000" in {text for _, _, text in told(moved.changes)}
    assert set(moved.counts()) == {"train"}
    same = between(project, 1, 2, moves=False)
    assert (same.changes, same.same) == ([], 20)


def test_a_report_that_lacks_is_made_up_for_by_reading(project: Project) -> None:
    project.add(0, 20)
    project.build()
    project.write("a/0003.txt", "another caption")
    project.build()
    wanted = told(between(project, 1, 2).changes)
    assert len(wanted) == 1
    for path in (project.destination / seal.FOLDER).glob(f"*{seal.REPORT}"):
        path.unlink()
    assert told(between(project, 1, 2).changes) == wanted


def test_two_sets_of_tars(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    (one / "0.tar").write_bytes(make([("a.jpg", b"1"), ("a.txt", b"x"), ("b.jpg", b"2")]))
    (one / "1.tar").write_bytes(make([("c.jpg", b"3"), ("d.jpg", b"4")]))
    (two / "0.tar").write_bytes(make([("a.jpg", b"1"), ("a.txt", b"y"), ("d.jpg", b"4")]))
    (two / "1.tar").write_bytes(make([("c.JPG", b"3"), ("e.jpg", b"5")]))
    found = diff_tars([str(one)], [str(two)])
    assert [each[:2] for each in told(found.changes)] == [
        ("edited", "a"),
        ("deleted", "b"),
        ("moved", "d"),
        ("added", "e"),
    ]
    assert told(found.changes)[2][2] == "1.tar → 0.tar"
    assert found.same == 1
    assert [each.kind for each in diff_tars([str(one)], [str(two)], moves=False).changes] == [
        "edited",
        "deleted",
        "added",
    ]
    (two / "2.tar").write_bytes(make([("e.jpg", b"6")]))
    with pytest.raises(DataError, match=r"2\.tar: the key 'e' is there twice"):
        diff_tars([str(one)], [str(two)])


@given(archives.archives())
@settings(max_examples=15)
def test_nothing_differs_after_the_other_verbs(tars: list[Archive]) -> None:
    with tempfile.TemporaryDirectory() as name:
        one, two = f"{name}/one.tar", f"{name}/two.tar"
        cat(archives.write(Path(name), tars), one, duplicates="rename")
        shuffle([one], two)
        split([two], f"{name}/part-%d.tar", max_samples=1)
        count = len(archives.samples(Path(one)))
        for other in (two, f"{name}/part-*.tar"):
            found = diff_tars([one], [other])
            assert (found.changes, found.same) == ([], count)
